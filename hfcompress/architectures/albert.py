"""Where things are in transformers' ALBERT, and a BERT with factorized embeddings as one.

An ALBERT with as many groups as layers shares no layer: it is a BERT whose embeddings have a size of their own.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfcompress.architectures import encoders
from hfcompress.architectures.encoder import EMBEDDINGS
from hfcompress.errors import UserError
from hfcompress.ops import norm_factors

if TYPE_CHECKING:
    from transformers import AlbertForSequenceClassification

NAME = "AlbertForSequenceClassification"
SHARED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "id2label", "label2id", "pad_token_id", "problem_type",
)  # fmt: skip


def require_bert(network: Any) -> None:
    """Refuse any other architecture than BERT, where a native class for the result is known of BERT alone.

    Raises:
        UserError: see above.
    """
    if type(network).__name__ != "BertForSequenceClassification":
        raise UserError(f"{type(network).__name__}: embeddings are factorized or tabled for BERT alone; give a BERT")


def layers(network: Any) -> list[Any]:
    """The encoder's layers, first to last."""
    return [group.albert_layers[0] for group in network.albert.encoder.albert_layer_groups]


def linear_groups(network: Any) -> list[list[tuple[nn.Module, str]]]:
    """As encoders.linear_groups; the projection behind the embeddings comes first."""
    groups: list[list[tuple[nn.Module, str]]] = [[(network.albert.encoder, "embedding_hidden_mapping_in")]]
    for layer in layers(network):
        groups += [
            [(layer.attention, name) for name in ("query", "key", "value")],
            [(layer.attention, "dense")],
            [(layer, "ffn")],
            [(layer, "ffn_output")],
        ]
    return [*groups, [(network.albert, "pooler")]]


def encoder_linears(network: Any) -> list[tuple[nn.Module, str]]:
    """As encoders.encoder_linears: those of the layers, without projection and pooler."""
    return [pair for group in linear_groups(network)[1:-1] for pair in group]


def factorized(network: Any, directions: Tensor) -> "AlbertForSequenceClassification":
    """A BERT classifier whose embeddings keep only their part along `directions` [rank, hidden size]; else the same.

    Args:
        network: a BertForSequenceClassification; it is left as it is.
        directions: orthonormal, each sums to zero, at most hidden size - 1 of them (see ops/norm_factors.py).
    """
    from transformers import AlbertConfig, AlbertForSequenceClassification

    old = network.config.to_dict()
    if old.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"position_embedding_type {old['position_embedding_type']}: factorized embeddings take a BERT of absolute "
            "positions; give such a model"
        )
    config = AlbertConfig(
        **{name: old[name] for name in SHARED_FIELDS if old.get(name) is not None},
        embedding_size=len(directions) + 1,
        num_hidden_groups=old["num_hidden_layers"],
        inner_group_num=1,
        classifier_dropout_prob=old.get("classifier_dropout") or old["hidden_dropout_prob"],
    )
    new = AlbertForSequenceClassification(config).eval()
    source, target = network.bert, new.albert
    with torch.no_grad():
        for name in EMBEDDINGS:
            table = getattr(source.embeddings, name).weight
            getattr(target.embeddings, name).weight.copy_(norm_factors.in_factors(table, directions))
        norm, mapping = source.embeddings.LayerNorm, target.encoder.embedding_hidden_mapping_in
        mapping.weight.copy_(norm_factors.projection(directions, norm.weight))
        mapping.bias.copy_(norm.bias)
    for before, after in zip(encoders.layers(network), layers(new), strict=True):
        copy_layer(before, after)
    target.pooler.load_state_dict(source.pooler.dense.state_dict())
    new.classifier.load_state_dict(network.classifier.state_dict())
    return new


def copy_layer(before: Any, after: Any) -> None:
    """A BERT layer's weights into an ALBERT layer."""
    pairs = [
        *((getattr(before.attention.self, n), getattr(after.attention, n)) for n in ("query", "key", "value")),
        (before.attention.output.dense, after.attention.dense),
        (before.attention.output.LayerNorm, after.attention.LayerNorm),
        (before.intermediate.dense, after.ffn),
        (before.output.dense, after.ffn_output),
        (before.output.LayerNorm, after.full_layer_layer_norm),
    ]
    for source, target in pairs:
        target.load_state_dict(source.state_dict())
