"""What a config.json says of a decoder of the table: read with no weights and no torch.

What a class reads, and what it computes in its own way, comes from the architecture's `Decoder`; nothing here names
one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcompress.architectures import DECODERS
from hfcompress.architectures.decoder import Decoder
from hfcompress.errors import UserError

MULTIPLE = 16  # of GroupQueryAttention, for the part of a head that is turned (matmul_nbits.py: other sizes)
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
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
    """What a decoder with this config.json does in its own way; see `Decoder` for where each stands."""

    fused: bool
    """Phi-3: one matrix for queries, keys and values, one for the MLP's two halves (gate first)."""
    norm_offset: float
    """Gemma: a norm multiplies by 1 + its weight."""
    embedding_scale: float
    """Gemma, Granite: what the rows of the embedding are multiplied by."""
    residual_scale: float
    """Granite: what attention's and the MLP's outputs are multiplied by."""
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
    logit_divisor: float
    """Granite: what the logits are divided by."""
    logit_softcap: float
    """Gemma 2: c * tanh(x / c) of the logits; 0 for none."""
    windows: tuple[int | None, ...]
    """Tokens that each layer looks back at; None for all."""
    rotated: tuple[bool, ...]
    """SmolLM3: which layers rotate queries and keys."""
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


def class_names() -> tuple[str, ...]:
    """Return the classes of the table, in its order."""
    return tuple(decoder.class_name for decoder in DECODERS.values())


def decoder_of(config: dict[str, Any]) -> Decoder:
    """Return the architecture of a config.json.

    Raises:
        UserError: its model_type is none of the table's.
    """
    kind = config.get("model_type")
    if (found := DECODERS.get(str(kind))) is None:
        raise UserError(f"the config's model_type is {kind}; known are {', '.join(DECODERS)}")
    return found


def kind_of(config: dict[str, Any]) -> DecoderKind:
    """From the fields of a config.json.

    Raises:
        UserError: an activation, or attention in both directions, that nothing here computes; heads of which a part is
            turned, in a class of transformers that turns whole ones; or two classes are named.
    """
    decoder, named = decoder_of(config), architecture(config)
    if named in class_names() and named != decoder.class_name:
        raise UserError(
            f"config.json names the class {named}, and transformers loads {decoder.class_name} for its model_type "
            f"{decoder.model_type}; give the config.json that was saved with these weights"
        )
    if not decoder.reads("partial_rotary_factor") and (share := float(config.get("partial_rotary_factor") or 1)) != 1:
        raise UserError(
            f"partial_rotary_factor {share:g}: transformers' {decoder.model_type} turns whole heads, and cannot "
            "compute this; take the field out of config.json if the model was not trained so"
        )
    if config.get("use_bidirectional_attention"):
        raise UserError("use_bidirectional_attention: an encoder; only decoders are known")
    windows, root = decoder.windows(config), float(config["hidden_size"]) ** 0.5
    return DecoderKind(
        fused=decoder.fused,
        norm_offset=decoder.norm_offset,
        embedding_scale=float(decoder.value(config, "embedding_multiplier")) * (root if decoder.embedding_root else 1),
        residual_scale=float(decoder.value(config, "residual_multiplier")),
        activation=decoder.activation(config),
        usual_activation=decoder.usual_activation,
        overflows_float16=decoder.overflows_float16,
        norms_after=decoder.norms_after,
        attention_scale=decoder.attention_scale(config),
        attention_softcap=attention_softcap(config),
        logit_divisor=float(decoder.value(config, "logits_scaling")),
        logit_softcap=float(decoder.value(config, "final_logit_softcapping") or 0.0),
        windows=windows,
        rotated=decoder.rotated(config),
        local_rotary=tuple(decoder.local_rotary and window is not None for window in windows),
    )


def attention_softcap(config: dict[str, Any]) -> float:
    """Return the cap of attention's products, 0 for none; for any config.json.

    transformers computes it with eager attention alone, and leaves it out with others.
    """
    decoder = DECODERS.get(str(config.get("model_type")))
    return float(decoder.value(config, "attn_logit_softcapping") or 0.0) if decoder else 0.0


def architecture(config: dict[str, Any]) -> str:
    """Return the class that a config names, or that transformers takes for its model type where it names none."""
    if named := config.get("architectures"):
        return str(named[0])
    kind = str(config.get("model_type"))
    return DECODERS[kind].class_name if kind in DECODERS else kind


def head_size(config: dict[str, Any]) -> int:
    """Return how many numbers a head has."""
    named = decoder_of(config).value(config, "head_dim")
    return int(named or config["hidden_size"] // config["num_attention_heads"])


def kv_heads(config: dict[str, Any]) -> int:
    """Return how many heads of keys and values there are."""
    return int(decoder_of(config).value(config, "num_key_value_heads") or config["num_attention_heads"])


def norm_epsilon(config: dict[str, Any]) -> float:
    """Return what a norm adds before its root."""
    return float(decoder_of(config).value(config, "rms_norm_eps"))


def rope_base(config: dict[str, Any]) -> float:
    """Return the base of the rotary frequencies (of a normalized config, see config_form.py)."""
    return float(decoder_of(config).value(config, "rope_theta"))


def rotary_share(config: dict[str, Any]) -> float:
    """Return the part of a head that is turned."""
    return float(decoder_of(config).value(config, "partial_rotary_factor") or 1.0)


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
    if named not in class_names():
        raise UserError(
            f"{model} is a {named}; layer by layer 4-bit quantization knows {', '.join(class_names())}; "
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
    if named not in class_names():
        raise UserError(f"the model is a {named}; the ONNX decoder is written for {', '.join(class_names())}")
    turned = int(head_size(config) * rotary_share(config))
    if turned % MULTIPLE:
        raise UserError(
            f"the model turns {turned} numbers of a head, and onnxruntime's attention takes multiples of {MULTIPLE}; "
            "quantize this model for transformers alone: hfcompress run any_causal_lm"
        )
    require_positions(config, context)
    return kind_of(config)
