"""Decoder: a causal LM of transformers, as data: which fields of config.json its class reads, and what it computes.

Everything here is read by `plan` too: no weights, no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hfcompress.errors import UserError

SILU, GELU, GELU_TANH = "silu", "gelu", "gelu_pytorch_tanh"
ACTIVATIONS = (SILU, GELU, GELU_TANH)

READ_BY_ALL: dict[str, Any] = {
    "head_dim": None,  # hidden_size / num_attention_heads
    "num_key_value_heads": None,  # as many as num_attention_heads
    "hidden_act": SILU,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
"""Fields that every class reads beside the sizes -> what it takes where config.json lacks them."""

READ_BY_SOME: dict[str, Any] = {
    "hidden_activation": None,  # the activation, where hidden_act is not read
    "attention_bias": False,  # of queries, keys, values and attention's output
    "mlp_bias": False,
    "sliding_window": None,  # tokens that a layer looks back at
    "use_sliding_window": True,
    "max_window_layers": 0,  # the first layer with a window
    "layer_types": None,  # "sliding_attention" or "full_attention" for each layer
    "sliding_window_pattern": 0,  # where there are no layer_types: every layer of this count has no window
    "partial_rotary_factor": 1.0,  # the part of a head that is rotated
    "no_rope_layers": None,  # for each layer 1 where it rotates, 0 where it does not
    "no_rope_layer_interval": 0,  # where there is no such list: every layer of this count does not
    "query_pre_attn_scalar": None,  # attention's products are divided by its root
    "attention_multiplier": None,  # or multiplied by this
    "attn_logit_softcapping": None,  # c: c * tanh(x / c) of these products
    "final_logit_softcapping": None,  # the same of the logits
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,  # of what attention and MLP add
    "logits_scaling": 1.0,  # that the logits are divided by
}
"""Fields that only some classes read -> what all others do."""


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's graph of a decoder: what it computes, so that a GGUF file says no more and no less."""

    graph: str
    """Its name, `general.architecture` of the file (src/models/NAME.cpp)."""
    rotates_neighbors: bool = False
    """Whether it rotates neighbors of a head (LLAMA_ROPE_TYPE_NORM) where transformers rotates halves (NEOX)."""
    rope_types: tuple[str, ...] = ("default",)
    """Scaled frequencies that it reads from `rope_freqs`; none that depend on the text's length."""
    unrotated_every: int = 0
    """Layers n, 2n, 3n ... (counted from 1) are not rotated; 0: all are."""
    unwindowed_every: int = 0
    """Layers n, 2n, ... look back at all tokens, the others at the window; 0: all at all, and the file's context is
    no longer than the model's window."""
    output_bias: bool = False
    """Whether it adds a bias to attention's output (`wo_b`)."""
    mlp_bias: bool = False
    own_head: bool = True
    """Whether it has a tensor for a head that is not the embedding."""
    even_heads: bool = False
    """Whether a head must be hidden_size / num_attention_heads."""
    scalar_of_even_heads_at: int = 0
    """With so many layers it divides attention by the root of hidden_size / heads, with others by that of head_dim."""
    softcaps: bool = False
    """Whether it reads both caps."""
    multipliers: bool = False
    """Whether it reads the scales of embedding, attention, residual stream and logits."""


@dataclass(frozen=True)
class Decoder:
    """A decoder of Llama's kind: RMSNorm, rotary grouped-query attention, a gated MLP.

    hidden = embed_tokens(ids) * embedding_multiplier; then for each layer, with r the residual_multiplier:

        hidden += r * self_attn(input_layernorm(hidden))
        hidden += r * mlp(post_attention_layernorm(hidden)),  mlp(x) = down_proj(act(gate_proj(x)) * up_proj(x))

    logits = lm_head(norm(hidden)) / logits_scaling. Modules have Llama's names (`model.layers.0.self_attn.q_proj`).
    What is not given below is Llama's. config.json holds the sizes (hidden_size, num_hidden_layers, ...) by Llama's
    names, too.
    """

    name: str
    """As people write it, and the README's support matrix."""
    model_type: str
    """config.json's."""
    class_name: str
    """The class that AutoModelForCausalLM makes of it."""
    llama_cpp: LlamaCpp | None = None
    """None: no GGUF file is written."""
    genai: str = ""
    """onnxruntime-genai's `model.type`; "": the model_type."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the class reads -> what it takes where config.json lacks them: those of READ_BY_SOME that it reads
    at all, and those of READ_BY_ALL with another default."""
    query_biases: bool = False
    """Whether queries, keys and values have biases, whatever config.json says."""
    fused: bool = False
    """One matrix for queries, keys and values (qkv_proj), one for the MLP's two halves (gate_up_proj, gate first)."""
    head_norms: bool = False
    """Whether each head of queries and keys is normed before it is rotated (q_norm, k_norm)."""
    norms_after: bool = False
    """Whether attention and MLP are normed behind as well, before they join the residual stream: the norms are
    input_layernorm, post_attention_layernorm, pre_feedforward_layernorm, post_feedforward_layernorm."""
    norm_offset: float = 0.0
    """What is added to a norm's weight before it multiplies."""
    embedding_root: bool = False
    """Whether the embedding is multiplied by the root of hidden_size."""
    unwindowed_every: int = 0
    """Where config.json has no layer_types: layers n, 2n, ... (counted from 1) look back at all tokens."""
    local_rotary: bool = False
    """Whether layers with a window rotate by frequencies of their own (`rotary_emb_local`, rope_local_base_freq)."""
    usual_activation: str = SILU
    """Of its published models, the only one that llama.cpp computes for it."""
    overflows_float16: bool = False
    """Whether what is between the layers leaves float16's range."""

    def reads(self, name: str) -> bool:
        """Return whether the class reads a field of config.json."""
        return name in self.fields or name in READ_BY_ALL

    def value(self, config: Mapping[str, Any], name: str) -> Any:
        """Return what a field of config.json is for this class."""
        if not self.reads(name):
            return READ_BY_SOME[name]
        return config[name] if name in config else self.fields.get(name, READ_BY_ALL.get(name))

    def activation(self, config: Mapping[str, Any]) -> str:
        """Return the gate's activation, one of ACTIVATIONS.

        Raises:
            UserError: another one.
        """
        named = self.value(config, "hidden_activation" if self.reads("hidden_activation") else "hidden_act")
        if named not in ACTIVATIONS:
            raise UserError(f"the config's activation is {named}; known are {SILU}, {GELU} and {GELU_TANH}")
        return str(named)

    def attention_scale(self, config: Mapping[str, Any]) -> float | None:
        """Return what products of queries and keys are multiplied by; None: 1 / sqrt(head size)."""
        if (scale := self.value(config, "attention_multiplier")) is not None:
            return float(scale)
        scalar = self.value(config, "query_pre_attn_scalar")
        return None if scalar is None else float(scalar) ** -0.5

    def rotated(self, config: Mapping[str, Any]) -> tuple[bool, ...]:
        """Return for each layer whether its queries and keys are rotated.

        Raises:
            UserError: no_rope_layers does not say it for every layer.
        """
        layers, every = int(config["num_hidden_layers"]), self.value(config, "no_rope_layer_interval")
        if (listed := self.value(config, "no_rope_layers")) is not None:
            if not isinstance(listed, list) or len(listed) < layers:
                raise UserError(
                    f"the config's no_rope_layers is {str(listed)[:40]}; it must be a list, one for a layer"
                )
            return tuple(bool(each) for each in listed[:layers])
        return tuple(not every or bool((i + 1) % int(every)) for i in range(layers))

    def windows(self, config: Mapping[str, Any]) -> tuple[int | None, ...]:
        """Return how many tokens each layer looks back at; None for all."""
        layers, window = int(config["num_hidden_layers"]), self.value(config, "sliding_window")
        if window is None or not self.value(config, "use_sliding_window"):
            return (None,) * layers
        if kinds := self.value(config, "layer_types"):
            return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
        if self.reads("no_rope_layers"):  # a layer that is rotated looks back at all
            return tuple(None if turned else int(window) for turned in self.rotated(config))
        first = int(self.value(config, "max_window_layers"))
        every = int(self.value(config, "sliding_window_pattern")) or self.unwindowed_every
        return tuple(int(window) if i >= first and (not every or (i + 1) % every) else None for i in range(layers))
