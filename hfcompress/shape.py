"""The shape of an encoder as plain numbers: what `plan` predicts from, with no weights and no torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A BERT-shaped sequence classifier.

    `weight_bits` counts the linear layers, `embedding_bits` the embedding tables; everything else (LayerNorm, biases)
    stays in 32 bits. Of layers that are factored `linear_share` says what is left of their weights, and `word_weights`
    how many the word embeddings have as a tensor train (in 32 bits). `format` is report.json's word.
    `tokenizer_bytes` is what the tokenizer's files take on disk; `tokenizer_folder` is where they lie, when they are
    on this machine.
    """

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

    @classmethod
    def from_config(cls, config: dict[str, Any], num_labels: int) -> "Shape":
        """Read the shape from the fields of a BERT config.json."""
        return cls(
            num_hidden_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            num_attention_heads=config["num_attention_heads"],
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_position_embeddings=config.get("max_position_embeddings", 512),
            type_vocab_size=config.get("type_vocab_size", 2),
            num_labels=num_labels,
        )

    def with_(self, **changes: Any) -> "Shape":
        return replace(self, **changes)
