"""Encoder: where things are in a text classifier of transformers, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hfcompress.errors import UserError

EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")
"""Tables below the body's `embeddings`; an architecture may have fewer. Beside them lies `LayerNorm`."""


@dataclass(frozen=True)
class Encoder:
    """An encoder of post-norm layers with a sequence classification head that reads the first token.

    A layer computes norm(x + context_output(attention(query(x), key(x), value(x)))) and then
    norm(x + neurons_output(activation(neurons_input(x)))). The head computes classifier(activation(pooler(x[0]))).
    All names are attribute paths, as `get_submodule` takes them.
    """

    model_types: tuple[str, ...]
    """config.model_type of its classes."""
    body: str
    """Of the classifier: holds `embeddings` and the layers; `base_model_prefix` in transformers."""
    pooler: str
    """Of the classifier: the Linear that reads the first token's last state, [hidden size, hidden size]."""
    classifier: str
    """Of the classifier: the Linear that gives the logits."""
    layers: str = "encoder.layer"
    """Of the body: the list of layers."""
    query: str = "attention.self.query"
    """Of a layer, as all that follows."""
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    context_output: str = "attention.output.dense"
    context_norm: str = "attention.output.LayerNorm"
    neurons_input: str = "intermediate.dense"
    neurons_output: str = "output.dense"
    neurons_norm: str = "output.LayerNorm"
    fields: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the name in config.json, where it is not BERT's (num_hidden_layers, hidden_size, ...)."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Our name -> the value where config.json has no such field."""
    as_hidden_size: tuple[str, ...] = ()
    """Sizes in config.json that must be the hidden size, and shrink with it; a model where one differs is refused."""
    starts_as_mean: bool = True
    """Whether the head can begin as the mean over tokens: its activation must pass negative numbers."""
    heads_cut_in_place: bool = True
    """Whether attention reads `num_attention_heads` and `all_head_size` when it is called."""

    def name(self, ours: str) -> str:
        """Return the config.json's name of a size."""
        return self.fields.get(ours, ours)

    def size(self, config: Mapping[str, Any], ours: str) -> int:
        """Return a size by our name.

        Raises:
            KeyError: config.json does not say it, and no default is known.
        """
        name = self.name(ours)
        return int(config[name] if name in config or ours not in self.defaults else self.defaults[ours])

    def require_sizes(self, config: Mapping[str, Any]) -> None:
        """Refuse a config of which another size than the hidden one would have to be cut by other numbers.

        Raises:
            UserError: one of `as_hidden_size` is not the hidden size.
        """
        hidden = self.name("hidden_size")
        for name in self.as_hidden_size:
            size, width = config.get(name, self.defaults.get(name)), self.size(config, "hidden_size")
            if size != width:
                raise UserError(
                    f"{name} {size} is not {hidden} {width}: such a model of type {config['model_type']} "
                    "cannot be made smaller here; give one in which both are the same"
                )
