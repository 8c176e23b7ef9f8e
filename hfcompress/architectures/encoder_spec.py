"""The shape of an encoder as plain numbers: what `plan` predicts from, with no weights and no torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures import ENCODERS
from hfcompress.architectures.bert import BERT

FACTOR_BYTES, QDQ_FACTOR_BYTES = 375, 1_650  # of graph, for a linear layer that became two; measured on exported files


@dataclass(frozen=True)
class Shape:
    """A sequence classifier of one of the encoders in the table.

    `weight_bits` counts the linear layers, `embedding_bits` the embedding tables; everything else (LayerNorm, biases)
    stays in 32 bits. Of layers that are factored `linear_share` says what is left of their weights, and `word_weights`
    how many the word embeddings have as a tensor train (in 32 bits). `format` is report.json's word.
    `tokenizer_bytes` is what the tokenizer's files take on disk; `tokenizer_folder` is where they lie, when they are
    on this machine.
    """

    described_as: ClassVar[str] = "a text encoder"
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    num_labels: int = 2
    weight_bits: int = 32
    embedding_bits: int = 32
    linear_share: float = 1.0
    word_weights: int | None = None
    format: str = "transformers"
    tokenizer_bytes: int | None = None
    tokenizer_folder: Path | None = None
    embedding_size: int | None = None
    """Of factorized embeddings; None: the hidden size, and no projection."""
    model_type: str = "bert"
    """config.json's, where it is one of the table's (`architectures.ENCODERS`)."""
    positions: int | None = None
    """Tokens that a text may have; None: as many as the position table has rows."""

    @classmethod
    def from_config(cls, config: dict[str, Any], num_labels: int) -> "Shape":
        """Read the shape from the fields of an encoder's config.json; of one in no table, as a BERT's.

        Raises:
            UserError: see `Encoder.require_sizes`.
        """
        kind = config.get("model_type", "bert")
        encoder = ENCODERS.get(kind, BERT)
        encoder.require_sizes(config)
        return cls(
            num_hidden_layers=encoder.size(config, "num_hidden_layers"),
            hidden_size=encoder.size(config, "hidden_size"),
            num_attention_heads=encoder.size(config, "num_attention_heads"),
            intermediate_size=encoder.size(config, "intermediate_size"),
            vocab_size=encoder.size(config, "vocab_size"),
            max_position_embeddings=config.get("max_position_embeddings", 512),
            type_vocab_size=config.get("type_vocab_size", encoder.defaults.get("type_vocab_size", 2)),
            model_type=kind if kind in ENCODERS else "bert",
            num_labels=num_labels,
            embedding_size=None if "embedding_size" in encoder.as_hidden_size else config.get("embedding_size"),
        )

    @property
    def longest_text(self) -> int:
        """Tokens that a text may have."""
        return self.max_position_embeddings if self.positions is None else self.positions

    def with_(self, **changes: Any) -> "Shape":
        return replace(self, **changes)


def linear_parameters(shape: Shape) -> int:
    """Weights of the Linear layers, biases left out."""
    h, i = shape.hidden_size, shape.intermediate_size
    projection = h * (shape.embedding_size or 0)
    factorable = shape.num_hidden_layers * (4 * h * h + 2 * h * i) + h * h
    return projection + round(shape.linear_share * factorable) + h * shape.num_labels


def embedding_rows(shape: Shape) -> int:
    """Of the word, position and type tables together."""
    return shape.vocab_size + shape.max_position_embeddings + shape.type_vocab_size


def embedding_parameters(shape: Shape) -> int:
    size = shape.embedding_size or shape.hidden_size
    if shape.word_weights is not None:
        return shape.word_weights + (embedding_rows(shape) - shape.vocab_size) * size
    return embedding_rows(shape) * size


def embedding_bytes(shape: Shape) -> float:
    """What the tables, their scales, and the projection of factorized ones take (see formats/size.py)."""
    scales = 4 * embedding_rows(shape) if shape.embedding_bits < 32 else 0
    projection = shape.hidden_size * (shape.embedding_size or 0) * shape.weight_bits / 8
    return embedding_parameters(shape) * shape.embedding_bits / 8 + scales + projection


def other_parameters(shape: Shape) -> int:
    """Biases and LayerNorms."""
    h, i = shape.hidden_size, shape.intermediate_size
    before = 2 * h if shape.embedding_size is None else 2 * shape.embedding_size + h  # a LayerNorm; one, and a bias
    return before + shape.num_hidden_layers * (4 * h + i + h + 4 * h) + h + shape.num_labels


def parameters(shape: Shape) -> int:
    """All parameters of a BertForSequenceClassification of this shape."""
    return linear_parameters(shape) + embedding_parameters(shape) + other_parameters(shape)


def factor_bytes(shape: Shape) -> int:
    """What a graph has more of where every linear layer became two: nodes and, in int8, a scale for each rank."""
    if shape.linear_share == 1:
        return 0
    layers, h, i = shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size
    if shape.weight_bits == 32:
        return FACTOR_BYTES * (6 * layers + 1)
    ranks = shape.linear_share * (layers * (2 * h + 2 * h * i / (h + i)) + h / 2)
    return round((FACTOR_BYTES + QDQ_FACTOR_BYTES) * (6 * layers + 1) + 5 * ranks)
