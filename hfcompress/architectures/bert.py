"""Where things are in transformers' BERT: the one file that knows its module names."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfcompress.architectures.factors import LowRankLinear
from hfcompress.errors import UserError
from hfcompress.ops.importance import l1_norm
from hfcompress.ops.slicing import cut_embedding, cut_layer_norm, cut_linear, head_rows

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification, PreTrainedModel

MEAN_OVER_CLS = 5.0  # how much more the mean of the tokens counts than [CLS] itself, which the residual adds
EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")


@dataclass(frozen=True)
class Kept:
    """What stays of a BERT: old layer numbers, and for each of them the old heads and neurons; residual dimensions."""

    layers: list[int]
    heads: list[Tensor]
    neurons: list[Tensor]
    dimensions: Tensor


def require_bert(network: "PreTrainedModel") -> None:
    """Raise UserError for any other architecture than BertForSequenceClassification."""
    if type(network).__name__ != "BertForSequenceClassification":
        raise UserError(
            f"{type(network).__name__} cannot be made smaller here: only BERT's shape "
            "(BertForSequenceClassification) can be cut; give such a model"
        )


def require_stock(network: "PreTrainedModel", option: str) -> None:
    """Raise UserError for a model that is no stock BERT any more, where a stock one is to be cut.

    Args:
        option: the stage's name as it is typed.
    """
    require_bert(network)
    if getattr(network, "edits", None):
        raise UserError(
            f"--{option}: the model was cut or factored before (it has a surgery.json), and this needs a stock BERT; "
            "do this first, and factorize or prune single layers after it"
        )


def unwrapped(model: Any) -> Any:
    """The network inside DistributedDataParallel, or the network itself."""
    return getattr(model, "module", model)


def with_attention_maps(network: "PreTrainedModel") -> "PreTrainedModel":
    """The same model with attention that can return its maps (eager); the fused kernels never form them."""
    from transformers import BertForSequenceClassification

    new = BertForSequenceClassification._from_config(copy.deepcopy(network.config), attn_implementation="eager")
    new.load_state_dict(network.state_dict())
    return new.train(network.training)


def layers(network: Any) -> list[Any]:
    """The encoder's layers, first to last."""
    return list(network.bert.encoder.layer)


def layer_norms(network: Any) -> Iterator[tuple[nn.Module, str]]:
    """(parent, attribute name) of every LayerNorm on the residual stream."""
    yield network.bert.embeddings, "LayerNorm"
    for layer in layers(network):
        yield layer.attention.output, "LayerNorm"
        yield layer.output, "LayerNorm"


def attention_output(layer: Any) -> nn.Linear:
    """Its inputs are the heads' contexts, side by side."""
    return layer.attention.output.dense


def feed_forward_output(layer: Any) -> nn.Linear:
    """Its inputs are the feed-forward neurons."""
    return layer.output.dense


def start_as_mean(network: Any) -> None:
    """Make the last layer one that begins by giving [CLS] the mean of all tokens, and learns on from there.

    A base made for mean pooling (as sentence-transformers') never trained its [CLS], which the stock classifier reads.
    Zero queries attend to all tokens alike, identity values pass them on, and a feed-forward block whose outputs are
    zero adds nothing. Keys and the feed-forward block's inputs stay as they are, so that gradients reach every matrix
    from the second step on.
    """
    layer, pooler = layers(network)[-1], network.bert.pooler.dense
    attention, output = layer.attention.self, attention_output(layer)
    with torch.no_grad():
        for linear in (attention.query, attention.value, output, feed_forward_output(layer), pooler):
            linear.weight.zero_()
            linear.bias.zero_()
        for linear, scale in ((attention.value, 1.0), (output, MEAN_OVER_CLS), (pooler, 1.0)):
            linear.weight.fill_diagonal_(scale)
        for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
            norm.reset_parameters()


def linear_names(network: Any) -> list[str]:
    """Module names of the linear layers of encoder and pooler, factored or not."""
    names = {module: name for name, module in network.named_modules()}
    return [f"{names[parent]}.{name}" for group in _linear_places(network) for parent, name in group]


def linear_groups(network: Any) -> list[list[tuple[nn.Module, str]]]:
    """(parent, attribute name) of the Linear layers of encoder and pooler; those of a group read the same tensor.

    A layer that consists of two factors is two of them: the first reads what the layer reads, the second the first.
    """
    groups: list[list[tuple[nn.Module, str]]] = []
    for places in _linear_places(network):
        found = [(getattr(parent, name), parent, name) for parent, name in places]
        groups.append(
            [(layer, "down") if isinstance(layer, LowRankLinear) else (parent, name) for layer, parent, name in found]
        )
        groups += [[(layer, "up")] for layer, _, _ in found if isinstance(layer, LowRankLinear)]
    return groups


def encoder_linears(network: Any) -> list[tuple[nn.Module, str]]:
    """(parent, attribute name) of the Linear layers of the encoder alone, without the pooler's."""
    pooler = set(network.bert.pooler.modules())
    return [pair for group in linear_groups(network) for pair in group if pair[0] not in pooler]


def _linear_places(network: Any) -> list[list[tuple[nn.Module, str]]]:
    """Where the stock class has its linear layers; those of a group read the same tensor."""
    groups: list[list[tuple[nn.Module, str]]] = []
    for layer in layers(network):
        groups += [
            [(layer.attention.self, name) for name in ("query", "key", "value")],
            [(layer.attention.output, "dense")],
            [(layer.intermediate, "dense")],
            [(layer.output, "dense")],
        ]
    return [*groups, [(network.bert.pooler, "dense")]]


def head_size(network: Any) -> int:
    return int(network.config.hidden_size // network.config.num_attention_heads)


def cut(network: Any, kept: Kept) -> "BertForSequenceClassification":
    """A new stock model with what is kept; `network` is left as it is.

    Heads and neurons must be equally many in all kept layers, and the dimensions as many as heads times head size:
    that is what the stock class can express.
    """
    from transformers import BertConfig, BertForSequenceClassification

    size = head_size(network)
    if len({len(heads) for heads in kept.heads}) != 1 or len({len(neurons) for neurons in kept.neurons}) != 1:
        raise ValueError("every layer must keep as many heads, and as many neurons, as the others")
    if len(kept.dimensions) != len(kept.heads[0]) * size:
        raise ValueError(f"{len(kept.dimensions)} dimensions are not {len(kept.heads[0])} heads of {size}")
    config = BertConfig.from_dict(
        network.config.to_dict()
        | {
            "num_hidden_layers": len(kept.layers),
            "num_attention_heads": len(kept.heads[0]),
            "hidden_size": len(kept.dimensions),
            "intermediate_size": len(kept.neurons[0]),
        }
    )
    new = BertForSequenceClassification(config).eval()
    dims, source, target = kept.dimensions, network.bert, new.bert
    for name in EMBEDDINGS:
        setattr(target.embeddings, name, cut_embedding(getattr(source.embeddings, name), dims))
    target.embeddings.LayerNorm = cut_layer_norm(source.embeddings.LayerNorm, dims)
    for i, old in enumerate(kept.layers):
        cut_layer(
            source.encoder.layer[old], target.encoder.layer[i], head_rows(kept.heads[i], size), kept.neurons[i], dims
        )
    target.pooler.dense = cut_linear(source.pooler.dense, dims, dims)
    new.classifier = cut_linear(network.classifier, None, dims)
    return new


def cut_layer(source: Any, target: Any, head_rows: Tensor, neurons: Tensor, dims: Tensor) -> None:
    """Fill the modules of one layer."""
    for name in ("query", "key", "value"):
        setattr(target.attention.self, name, cut_linear(getattr(source.attention.self, name), head_rows, dims))
    if hasattr(source.attention.self, "distance_embedding"):  # relative positions: one table for all heads
        target.attention.self.distance_embedding = copy.deepcopy(source.attention.self.distance_embedding)
    target.attention.output.dense = cut_linear(source.attention.output.dense, dims, head_rows)
    target.attention.output.LayerNorm = cut_layer_norm(source.attention.output.LayerNorm, dims)
    target.intermediate.dense = cut_linear(source.intermediate.dense, neurons, dims)
    target.output.dense = cut_linear(source.output.dense, dims, neurons)
    target.output.LayerNorm = cut_layer_norm(source.output.LayerNorm, dims)


def weight_scores(network: Any, norm: Any = l1_norm) -> tuple[Tensor, Tensor, Tensor]:
    """Heads [layers, heads], neurons [layers, neurons] and dimensions [size] by a norm of their own weights.

    A head's weights are its value rows and its columns of the output projection; a neuron's its row in and its column
    out; a dimension's the embeddings and output projections that write to it (the sum of their norms).
    """
    size = head_size(network)
    heads, neurons = [], []
    written = norm(network.bert.embeddings.word_embeddings.weight.T)
    for layer in layers(network):
        value, out = layer.attention.self.value.weight, attention_output(layer).weight
        per_head = torch.cat([value, out.T], dim=1).reshape(-1, size * (value.shape[1] + out.shape[0]))
        heads.append(norm(per_head))
        neurons.append(norm(torch.cat([layer.intermediate.dense.weight, feed_forward_output(layer).weight.T], dim=1)))
        written = written + norm(out) + norm(feed_forward_output(layer).weight)
    return torch.stack(heads).detach(), torch.stack(neurons).detach(), written.detach()
