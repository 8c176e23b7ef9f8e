"""Where the decoders that are known here differ from Llama: read from a config.json, with no weights and no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Phi3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text")
CLASSES = dict(zip(MODEL_TYPES, ARCHITECTURES, strict=True))
GEMMAS = ("gemma", "gemma2", "gemma3_text")
# What transformers' classes take where a config.json does not say it.
HEAD_SIZES = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3_text": 256}
KEY_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32, "gemma": 16, "gemma2": 4, "gemma3_text": 4}
WINDOWS = {"mistral": 4096, "phi3": None, "qwen2": 4096, "qwen3": 4096, "gemma2": 4096, "gemma3_text": 4096}
BIASES = ("llama", "qwen3", "gemma", "gemma2", "gemma3_text")  # whose classes read attention_bias
ROPE_BASES = {"gemma3_text": 1_000_000.0}
MULTIPLE = 16  # of GroupQueryAttention, for the part of a head that is turned (matmul_nbits.py: other sizes)
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
SILU, GELU, GELU_TANH = "silu", "gelu", "gelu_pytorch_tanh"
# What feeds each linear layer: those of a group read the same input.
INPUT_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
FUSED_GROUPS = (("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",))


@dataclass(frozen=True)
class DecoderKind:
    """What a decoder of Llama's kind does in its own way."""

    fused: bool
    """Phi-3: one matrix for queries, keys and values, one for the MLP's two halves (gate first)."""
    norm_offset: float
    """Gemma: a norm multiplies by 1 + its weight."""
    embedding_scale: float
    """Gemma: what the rows of the embedding are multiplied by."""
    activation: str
    """Of the gate: SILU, GELU or GELU_TANH."""
    usual_activation: str
    """Of its published models, the only one that llama.cpp computes for it."""
    overflows_float16: bool
    """Gemma: what is between the layers leaves float16's range."""
    norms_after: bool
    """Gemma 2 and 3: attention and MLP are normed behind as well, before they join the residual stream."""
    attention_scale: float | None
    """What products of queries and keys are multiplied by; None: 1 / sqrt(head size)."""
    attention_softcap: float
    """Gemma 2: c * tanh(x / c) of these products; 0 for none."""
    logit_softcap: float
    """The same of the logits."""
    windows: tuple[int | None, ...]
    """Tokens that each layer looks back at; None for all."""
    local_rotary: tuple[bool, ...]
    """Gemma 3: which layers turn by frequencies of their own, those with a window."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Linear layers that read the same: of attention, its output, the MLP, its output."""
        return FUSED_GROUPS if self.fused else INPUT_GROUPS

    @property
    def linears(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group)

    @property
    def mlp_norm(self) -> str:
        """The norm before the MLP."""
        return "pre_feedforward_layernorm" if self.norms_after else "post_attention_layernorm"

    @property
    def smallest_window(self) -> int | None:
        return min((window for window in self.windows if window), default=None)


def kind_of(config: dict[str, Any]) -> DecoderKind:
    """From the fields of a config.json.

    Raises:
        UserError: an activation, or attention in both directions, that nothing here computes; heads of which a part is
            turned, in a class of transformers that turns whole ones; or two classes are named.
    """
    model_type = config["model_type"]
    named, loaded = architecture(config), CLASSES.get(model_type)
    if named in ARCHITECTURES and named != loaded:
        raise UserError(
            f"config.json names the class {named}, and transformers loads {loaded} for its model_type {model_type}; "
            "give the config.json that was saved with these weights"
        )
    if model_type != "phi3" and (share := rotary_share(config)) != 1.0:
        raise UserError(
            f"partial_rotary_factor {share:g}: transformers' {model_type} turns whole heads, and cannot compute this; "
            "take the field out of config.json if the model was not trained so"
        )
    gemma, windows = model_type in GEMMAS, layer_windows(config)
    if config.get("use_bidirectional_attention"):
        raise UserError("use_bidirectional_attention: an encoder; only decoders are known")
    scalar = config.get("query_pre_attn_scalar", 256) if model_type in ("gemma2", "gemma3_text") else None
    return DecoderKind(
        fused=model_type == "phi3",
        norm_offset=1.0 if gemma else 0.0,
        embedding_scale=float(config["hidden_size"]) ** 0.5 if gemma else 1.0,
        activation=activation(config),
        usual_activation=GELU_TANH if gemma else SILU,
        overflows_float16=gemma,
        norms_after=model_type in ("gemma2", "gemma3_text"),
        attention_scale=None if scalar is None else float(scalar) ** -0.5,
        attention_softcap=attention_softcap(config),
        logit_softcap=float(config.get("final_logit_softcapping", 30.0 if model_type == "gemma2" else 0.0) or 0.0),
        windows=windows,
        local_rotary=tuple(model_type == "gemma3_text" and window is not None for window in windows),
    )


def attention_softcap(config: dict[str, Any]) -> float:
    """Gemma 2's cap, 50 where its config does not say; 0 for others: Gemma 3's classes read the field and apply none.

    For any config.json: transformers computes it with eager attention alone, and leaves it out with others.
    """
    return float(config.get("attn_logit_softcapping", 50.0) or 0.0) if config.get("model_type") == "gemma2" else 0.0


def activation(config: dict[str, Any]) -> str:
    """SILU, GELU or GELU_TANH, from the field that transformers reads.

    Raises:
        UserError: another one.
    """
    if config["model_type"] in ("gemma2", "gemma3_text"):
        named = config.get("hidden_activation", GELU_TANH)
    else:
        named = config.get("hidden_act", GELU_TANH if config["model_type"] == "gemma" else SILU)
    if named not in (SILU, GELU, GELU_TANH):
        raise UserError(f"the config's activation is {named}; known are {SILU}, {GELU} and {GELU_TANH}")
    return str(named)


def layer_windows(config: dict[str, Any]) -> tuple[int | None, ...]:
    """Tokens that each layer looks back at; None for all. Qwen2 names a window that it uses only where it says so."""
    layers, model_type = int(config["num_hidden_layers"]), config["model_type"]
    window = config.get("sliding_window", WINDOWS.get(model_type))
    used = config.get("use_sliding_window", False) if model_type in ("qwen2", "qwen3") else model_type in WINDOWS
    if window is None or not used:
        return (None,) * layers
    if (kinds := config.get("layer_types")) and model_type != "phi3":  # whose class reads none
        return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    if model_type in ("gemma2", "gemma3_text"):
        every = 2 if model_type == "gemma2" else int(config.get("sliding_window_pattern", 6))
        return tuple(int(window) if (i + 1) % every else None for i in range(layers))
    first = int(config.get("max_window_layers", 28)) if model_type in ("qwen2", "qwen3") else 0
    return tuple(int(window) if i >= first else None for i in range(layers))


def architecture(config: dict[str, Any]) -> str:
    """Return the class that a config names, or that transformers takes for its model type where it names none."""
    if named := config.get("architectures"):
        return str(named[0])
    kind = str(config.get("model_type"))
    return CLASSES.get(kind, kind)


def head_size(config: dict[str, Any]) -> int:
    """Return how many numbers a head has."""
    default = HEAD_SIZES.get(config.get("model_type", "")) if "head_dim" not in config else None
    return int(config.get("head_dim") or default or config["hidden_size"] // config["num_attention_heads"])


def kv_heads(config: dict[str, Any]) -> int:
    """Return how many heads of keys and values there are."""
    default = KEY_HEADS.get(config.get("model_type", "")) if "num_key_value_heads" not in config else None
    return int(config.get("num_key_value_heads") or default or config["num_attention_heads"])


def norm_epsilon(config: dict[str, Any]) -> float:
    """Return what a norm adds before its root."""
    return float(config.get("rms_norm_eps", 1e-5 if config.get("model_type", "") == "phi3" else 1e-6))


def rope_base(config: dict[str, Any]) -> float:
    """Return the base of the rotary frequencies (of a normalized config, see config_form.py)."""
    return float(config.get("rope_theta", ROPE_BASES.get(config.get("model_type", ""), 10_000.0)))


def rotary_share(config: dict[str, Any]) -> float:
    """Return the part of a head that is turned."""
    return float(config.get("partial_rotary_factor") or 1.0)


def rope_type(config: dict[str, Any]) -> str:
    """Return how rotary frequencies are scaled, by transformers' name; `type` is the field's older name.

    Raises:
        UserError: none that transformers computes.
    """
    if "rope_parameters" in config:  # config_form.py leaves none else
        raise UserError("the config's rope_parameters differ by layer type, which is not known here")
    scaling = config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise UserError(f"the config's rope_scaling is {str(scaling)[:40]!r}; it must be an object")
    found = scaling.get("rope_type") or scaling.get("type") or "default"
    if found not in ROPE_TYPES:
        raise UserError(f"the config's rope_type is {found}; known are {', '.join(ROPE_TYPES)}")
    return str(found)


def rope_positions(config: dict[str, Any]) -> int | None:
    """Return up to which length one table of rotary angles holds for texts of any length; None for any.

    Dynamic NTK turns longer texts by other frequencies for each length, longrope by a second set.
    """
    kind, longest = rope_type(config), int(config["max_position_embeddings"])
    if kind == "longrope":
        return int(config.get("original_max_position_embeddings") or longest)
    return longest if kind == "dynamic" else None


def require_positions(config: dict[str, Any], context: int) -> None:
    """Refuse a context for which one table of rotary angles does not hold.

    Raises:
        UserError: with the longest that can be given.
    """
    longest = rope_positions(config)
    if longest is not None and context > longest:
        raise UserError(
            f"a context of {context}: the model ({rope_type(config)}) turns texts beyond {longest} tokens by other "
            f"frequencies, and a written graph has one table of them; give --budget.context {longest} or less"
        )


def require_supported(model: Path | str, config: dict[str, Any]) -> None:
    """Refuse another architecture, or rotary frequencies that are not known.

    Args:
        model: its folder, or other words for it in the message.

    Raises:
        UserError: naming those that are supported.
    """
    named = architecture(config)
    if named not in ARCHITECTURES:
        raise UserError(
            f"{model} is a {named}; layer by layer 4-bit quantization knows {', '.join(ARCHITECTURES)}; "
            "`hfcompress run any_causal_lm` rounds the linear layers of others"
        )
    kind_of(config)
    rope_type(config)


def require_graph(config: dict[str, Any], context: int) -> DecoderKind:
    """Return what a config says of the decoder.

    Raises:
        UserError: what the graph does not compute.
    """
    named = architecture(config)
    if named not in ARCHITECTURES:
        raise UserError(f"the model is a {named}; the ONNX decoder is written for {', '.join(ARCHITECTURES)}")
    turned = int(head_size(config) * rotary_share(config))
    if turned % MULTIPLE:
        raise UserError(
            f"the model turns {turned} numbers of a head, and onnxruntime's attention takes multiples of {MULTIPLE}; "
            "quantize this model for transformers alone: hfcompress run any_causal_lm"
        )
    require_positions(config, context)
    return kind_of(config)
