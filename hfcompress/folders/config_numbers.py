"""Which numbers a config.json may hold: none that is missing, of another type, negative, or beyond all models."""

from pathlib import Path
from typing import Any

from hfcompress.architectures import DECODERS
from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import objects

WIDTH, LAYERS, HEADS, ROWS, POSITIONS = (1, 2**20), (0, 1024), (1, 4096), (1, 10**7), (1, 2**27)
# Sizes by name: the least and the largest whole number.
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "intermediate_size", "ffn_dim",
                     "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_ff", "n_inner", "word_embed_proj_dim",
                     "moe_intermediate_size", "hidden_sizes", "embed_dim"), WIDTH),
    "projection_dim": (0, WIDTH[1]),  # 0: none, in a DPR
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
                     "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "encoder_attention_heads",
                     "decoder_attention_heads", "num_heads"), HEADS),
    **dict.fromkeys(("vocab_size",), ROWS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx",
                     "original_max_position_embeddings"), POSITIONS),
    "sliding_window": (1, 2**31),
    "head_dim": (1, 2**14),
    "type_vocab_size": (0, 10**6),
    "num_channels": (1, 4096),
    "image_size": (1, 2**15),
    "patch_size": (1, 2**15),
    "num_experts": (0, 10**5),
    "num_local_experts": (0, 10**4),
    "num_labels": (1, 10**7),
}  # fmt: skip
# Other numbers: the least and the largest.
RANGES = {
    "rope_theta": (1e-6, 1e15),
    "rope_local_base_freq": (1e-6, 1e15),
    "partial_rotary_factor": (1e-6, 1.0),
    "layer_norm_eps": (0.0, 1.0),
    "layer_norm_epsilon": (0.0, 1.0),
    "rms_norm_eps": (0.0, 1.0),
    "norm_eps": (0.0, 1.0),
    "depth_multiplier": (1e-3, 64.0),
    "query_pre_attn_scalar": (1e-6, 1e9),
    **dict.fromkeys(("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"),
                    (1e-9, 1e9)),
}  # fmt: skip
ROPE_FIELDS = {
    "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",), "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}  # fmt: skip
FLOATS = {"float16", "bfloat16", "float32", "float64", "half", "float", "double", "auto", "float8_e4m3fn",
          "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}  # fmt: skip
PIXELS = ("size", "crop_size", "height", "width", "shortest_edge", "pad_size")
ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "albert", "electra")
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
          "max_position_embeddings")  # fmt: skip
# Where attention cuts hidden_size into its heads.
EVEN_HEADS = (*ENCODERS, "deberta", "deberta-v2", "mpnet", "vit", "deit", "beit", "esm", "modernbert", "roformer")


def check_numbers(config: dict[str, Any], file: Path) -> None:
    """Refuse a config whose sizes no model has.

    Args:
        config: in the form of config_form.py; file: where it lies, for the message.

    Raises:
        UserError: naming the field.
    """
    for path, part in objects(config):
        if path.startswith(("id2label", "label2id")):
            continue
        for key, value in part.items():
            place = f"{path}.{key}" if path else key
            if key in SIZES and value is not None:
                for number in value if isinstance(value, list) else [value]:
                    _check_size(file, place, number, *SIZES[key])
            elif key in RANGES and value is not None:
                _check_range(file, place, value, *RANGES[key])
            elif key.endswith("_token_id"):
                _check_tokens(file, place, value)
            elif key in ("dtype", "torch_dtype") and isinstance(value, str):
                _check_dtype(file, place, value)
            elif key in ("id2label", "label2id") and not isinstance(value, dict | None):
                raise UserError(f"{file}: {place} is {str(value)[:40]}; it must be an object")
            elif key == "model_type" and not isinstance(value, str | None):
                raise UserError(f"{file}: {place} is {str(value)[:40]}; it must be the name of an architecture")
        if "rope_scaling" in part:
            _check_rope(file, f"{path}.rope_scaling" if path else "rope_scaling", part["rope_scaling"])
    kind = config.get("model_type")
    if kind in DECODERS or kind in ENCODERS:
        for key in NEEDED:
            if config.get(key) is None:
                raise UserError(f"{file} has no {key}: a {kind} has one; fetch or make the model again")
        if config["num_hidden_layers"] == 0:  # then no layer's weights would be missed
            raise UserError(f"{file}: num_hidden_layers is 0; it must be at least 1")
        for key in SIZES.keys() & config.keys():  # other kinds have a list, a size per stage
            if isinstance(config[key], list | dict):
                raise UserError(f"{file}: {key} is {str(config[key])[:40]}; it must be a whole number")
    _check_heads(config, file)


def check_pixels(config: dict[str, Any], file: Path) -> None:
    """Refuse a processor's config whose images no memory holds.

    Raises:
        UserError: naming the field.
    """
    for path, part in objects(config):
        for key, value in part.items():
            if key in PIXELS and isinstance(value, int | float):
                _check_size(file, f"{path}.{key}" if path else key, value, 1, 2**15)


def _check_size(file: Path, place: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, dict):
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{file}: {place} is {str(value)[:40]!r}; it must be a whole number")
    if not least <= value <= most:
        raise UserError(f"{file}: {place} is {value:.9g}; it must be from {least} to {most:,}")


def _check_range(file: Path, place: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{file}: {place} is {str(value)[:40]!r}; it must be a number")
    if not least <= value <= most:
        raise UserError(f"{file}: {place} is {value:g}; it must be from {least:g} to {most:g}")


def _check_tokens(file: Path, place: str, value: Any) -> None:
    for number in value if isinstance(value, list) else [value]:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise UserError(f"{file}: {place} is {str(value)[:40]!r}; it must be the number of a token, or several")


def _check_dtype(file: Path, place: str, value: str) -> None:
    if value.removeprefix("torch.") not in FLOATS:
        raise UserError(f"{file}: {place} is {value[:40]!r}; torch has no such type of floats")


def _check_rope(file: Path, place: str, scaling: Any) -> None:
    if scaling is None:
        return
    if not isinstance(scaling, dict):
        raise UserError(f"{file}: {place} is {str(scaling)[:40]!r}; it must be an object")
    kind = scaling.get("rope_type") or scaling.get("type")
    for key in ROPE_FIELDS.get(kind, ()) if isinstance(kind, str) else ():
        if scaling.get(key) is None:
            raise UserError(f"{file}: {place} has no {key}, which rope_type {kind} needs; add it")
    for key, value in scaling.items():
        if key.endswith("factor") and value is not None:
            for number in value if isinstance(value, list) else [value]:
                _check_range(file, f"{place}.{key}", number, 1e-6, 1e6)


def _check_heads(config: dict[str, Any], file: Path) -> None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int):
        if config.get("model_type") in EVEN_HEADS and hidden % heads:
            raise UserError(f"{file}: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
        if config.get("head_dim") is None and hidden < heads:
            raise UserError(f"{file}: hidden_size {hidden} leaves nothing for each of num_attention_heads {heads}")
    groups = config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise UserError(f"{file}: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
