"""One form of a config.json, whichever version of transformers saved it: what every reader here is handed.

transformers 5 writes `rope_parameters` (per layer type where these differ) for `rope_theta` and `rope_scaling`,
`dtype` for `torch_dtype`, and {"__float__": "Infinity"} for numbers that JSON does not have. Version 4 leaves what it
does not know unread and takes its defaults: the model then answers wrongly, without an error. The form returned here
is version 4's with `dtype`, which transformers reads alike from 4.56 on; `rope_parameters` stay where they differ by
layer type and version 4 has no field for that (Gemma 4): what reads rotary fields refuses them.
"""

from typing import Any

from hfcompress.errors import UserError

DEFAULT = "default"
# Architectures with two rotary tables: layer type -> the field that says its base.
BASES_BY_LAYER = {
    "gemma3_text": {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"},
    "modernbert": {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"},
    "modernbert-decoder": {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"},
}
BASE_FIELDS = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base"}
GLOBAL_EVERY = ("modernbert", "modernbert-decoder")  # say the distance of layers that attend to all tokens
OLDER_LONGROPE = ("phi3",)  # takes the two factors alone, with the older name of the field that says the kind
SHARE_FIELDS = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config in version 4's form; the one given is left as it is.

    Args:
        config: a config.json, or one nested in it.

    Raises:
        UserError: an architecture of version 4 whose rotary embedding it cannot say, or one that is said twice with
            different numbers.
    """
    found = {key: _value(value) for key, value in config.items()}
    if "torch_dtype" in found:
        stored = found.pop("torch_dtype")
        if found.get("dtype") is None:
            found["dtype"] = stored
    if isinstance(found.get("dtype"), str):
        found["dtype"] = found["dtype"].removeprefix("torch.")
    if isinstance(parameters := found.pop("rope_parameters", None), dict):
        _say_rotary(found, parameters)
    if found.get("sliding_window") == 0 and not found.get("use_sliding_window", True):
        found["sliding_window"] = None  # as version 5 writes an unused one (Qwen2-MoE)
    if found.get("model_type") in GLOBAL_EVERY and "global_attn_every_n_layers" not in found:
        _say_every(found)
    return found


def _say_every(config: dict[str, Any]) -> None:
    """Put ModernBERT's layer types, of version 5, into the number that version 4 reads."""
    if not isinstance(kinds := config.get("layer_types"), list):
        return
    whole = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    every = whole[1] - whole[0] if len(whole) > 1 else max(len(kinds), 1)
    if whole != list(range(0, len(kinds), every)):
        raise UserError("its layer_types attend to all tokens at uneven distances, which transformers 4 cannot say")
    config["global_attn_every_n_layers"] = every


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return normalized(value)
    return [_value(part) for part in value] if isinstance(value, list) else value


def _say_rotary(config: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Put rope_parameters into the fields that version 4 reads."""
    kind = str(config.get("model_type"))
    values = parameters.values()
    if any(isinstance(value, dict) for value in values) and all(isinstance(value, dict | None) for value in values):
        bases = BASES_BY_LAYER.get(kind)
        if bases is None:
            first, *others = values
            if any(other != first for other in others):
                config["rope_parameters"] = parameters
                return
            parameters = first
        else:
            if set(parameters) - set(bases):
                raise UserError(f"rope_parameters of {', '.join(sorted(set(parameters) - set(bases)))}: not known")
            for layer, field in bases.items():
                own = dict(parameters.get(layer) or {})
                if field == "rope_theta":
                    _say_one(config, kind, own)
                    continue
                base, left = own.pop("rope_theta", None), _scaling(own)
                if left:
                    raise UserError(f"rope_parameters of {layer} are scaled, which transformers 4 cannot say")
                _put(config, field, base)
            return
    _say_one(config, kind, dict(parameters))


def _say_one(config: dict[str, Any], kind: str, parameters: dict[str, Any]) -> None:
    _put(config, BASE_FIELDS.get(kind, "rope_theta"), parameters.pop("rope_theta", None))
    _put(config, SHARE_FIELDS.get(kind, "partial_rotary_factor"), parameters.pop("partial_rotary_factor", None))
    scaling = _scaling(parameters)
    if scaling.get("rope_type") == "longrope":
        _put(config, "original_max_position_embeddings", scaling.pop("original_max_position_embeddings", None))
        if kind in OLDER_LONGROPE:
            scaling = {"type": "longrope"} | {k: scaling[k] for k in ("short_factor", "long_factor") if k in scaling}
    _put(config, "rope_scaling", scaling or None)


def _scaling(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return what is left of rope_parameters where it scales; nothing where it is the default."""
    found = dict(parameters)
    kind = found.pop("type", None)
    found.setdefault("rope_type", kind or DEFAULT)
    return {} if found["rope_type"] == DEFAULT and len(found) == 1 else found


def _put(config: dict[str, Any], field: str, value: Any) -> None:
    if value is None:
        return
    if config.get(field) not in (None, value):
        raise UserError(
            f"rope_parameters say {field} {value}, and {field} itself is {config[field]}: keep one of them"
        )
    config[field] = value
