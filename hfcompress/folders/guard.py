"""What a folder that others made may hold: checked before transformers, tokenizers or a runtime reads it.

Configs, tokenizer and processor configs are data. Refused is what makes a library run or fetch something (`auto_map`,
`trust_remote_code`, kernels), follow a name to another folder or repository, or reserve memory beyond all reason.
"""

from pathlib import Path
from typing import Any

from hfcompress.errors import UserError
from hfcompress.folders.config_form import normalized
from hfcompress.folders.config_numbers import check_numbers, check_pixels
from hfcompress.folders.foreign_files import LARGEST_INDEX, objects, read_json, read_object, refuse_pointer

CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "genai_config.json",
    "chat_template.json",
)
# Keys by which a library runs or fetches code, refused wherever they hold something.
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "use_kernels", "kernel_config",
             "hub_kernels", "kernels", "gguf_file", "__slow_tokenizer", "tokenizer_object")  # fmt: skip
# Values of *_implementation keys that name no repository; another one is refused.
PLAIN_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "paged|eager",
                         "paged|sdpa", "paged|flash_attention_2", "sdpa_paged", "eager_paged", "flash_paged",
                         "grouped_mm", "batched_mm")  # fmt: skip
# Keys whose truth makes transformers load another repository's weights.
BACKBONE_KEYS = ("use_timm_backbone", "use_pretrained_backbone", "configuration_files")
# Model types whose classes follow a nested name, or another library's.
FOLLOWERS = ("lightglue", "xcodec", "timm_wrapper", "timm_backbone", "rag")
RELATIVE = ("relative_key", "relative_key_query")
OWN_TYPES = ("clicks",)
FAMILIAR = ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "gemma", "gemma2",
            "gemma3_text", "gpt2", "llama", "mistral", "mobilenet_v2", "modernbert", "mpnet", "phi3", "qwen2", "qwen3",
            "resnet", "roberta", "vit", "xlm-roberta")  # fmt: skip  # known without the seconds that asking takes

_checked: dict[Path, tuple[Any, ...]] = {}


def check_foreign(folder: Path) -> None:
    """Check the small files of a folder, before any library reads one; a folder as it was is not checked again.

    Raises:
        UserError: with the file, the key, and what to do.
    """
    signature = _signature(folder)
    if _checked.get(folder) == signature:
        return
    for file in sorted(folder.glob("*")):
        refuse_pointer(file)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder / 'adapter_config.json'}: an adapter (PEFT), whose base model is elsewhere; merge it into its "
            "base (merge_and_unload), save that, and give the folder"
        )
    if (folder / "custom_generate").exists():
        raise UserError(f"{folder / 'custom_generate'}: code of its own, which is not run; remove it")
    for name in CONFIGS:
        if (folder / name).is_file():
            found = read_object(folder / name)
            check_keys(folder / name, found)
            if "processor" in name:
                check_pixels(found, folder / name)
    for file in sorted(folder.glob("*.index.json")):
        check_index(file)
    _checked[folder] = signature


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json, checked, in the one form that every reader here takes (config_form.py).

    Raises:
        UserError: there is none, or it is refused.
    """
    check_foreign(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = normalized(read_object(file))
    except UserError as error:
        raise UserError(f"{file}: {error}" if not str(error).startswith(str(file)) else str(error)) from None
    check_numbers(config, file)
    return config


def check_keys(file: Path, found: dict[str, Any]) -> None:
    """Refuse keys that make a library run code, fetch something, or follow a name elsewhere.

    Raises:
        UserError: naming the key.
    """
    for path, part in objects(found):
        for key, value in part.items():
            place = f"{path}.{key}" if path else key
            if key in CODE_KEYS and value:
                raise UserError(f"{file} asks for code of its own ({place}): only stock classes are read; remove it")
            if key.endswith(("_implementation", "_implementation_internal")):
                _check_implementation(file, place, value)
            if key in BACKBONE_KEYS and value:
                raise UserError(f"{file}: {place} names another model that would be fetched; it is not followed")
            if key.endswith("_file") and isinstance(value, str) and key != "special_tokens_map_file":
                _check_name(file, place, value)
            if key == "fast_tokenizer_files":
                for name in value if isinstance(value, list) else [value]:
                    _check_name(file, place, str(name))


def _check_implementation(file: Path, place: str, value: Any) -> None:
    for named in value.values() if isinstance(value, dict) else [value]:
        if named is not None and not isinstance(named, bool) and named not in PLAIN_IMPLEMENTATIONS:
            raise UserError(f"{file}: {place} {named!r} would be fetched and run; remove it: sdpa or eager is used")


def _check_name(file: Path, place: str, value: str) -> None:
    if value and Path(value).name != value:
        raise UserError(f"{file}: {place} names a file outside of its folder: {value}; remove the key")


def check_type(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a config whose model_type, or that of a nested config, the installed transformers does not have.

    Raises:
        UserError: with the type, and whether a newer transformers saved it; or its positions are of a kind that the
            installed transformers left out of the type.
    """
    file = folder / "config.json"
    if not isinstance(config.get("model_type"), str):
        raise UserError(f'{file} has no model_type: add the one of its architecture, such as "model_type": "bert"')
    for path, part in objects(config):
        kind, place = part.get("model_type"), f"{path}.model_type" if path else "model_type"
        empty = kind is None or (path and kind == "")  # as the attn_config of an MPT has it
        if part.get("position_embedding_type") in RELATIVE and isinstance(kind, str) and is_known(kind):
            check_relative_positions(file, kind, part["position_embedding_type"])
        if empty or kind in FAMILIAR or (not path and kind in OWN_TYPES):
            continue
        if kind in FOLLOWERS:
            raise UserError(f"{file}: {place} {kind} loads another model by its name, which is not followed")
        if not isinstance(kind, str) or not (is_known(kind) or (path and kind in part_types(config["model_type"]))):
            raise UserError(f"{file}: {place} {kind!r} {_newer(config)}")


def check_relative_positions(file: Path, model_type: str, positions: str) -> None:
    """Refuse tables of relative positions where the installed class has none: it would compute without a word.

    transformers 5 dropped them from BERT, RoBERTa, ELECTRA and others.

    Raises:
        UserError: with the version that has them.
    """
    import inspect

    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = CONFIG_MAPPING[model_type]
    if "position_embedding_type" not in inspect.signature(made.__init__).parameters:
        raise UserError(
            f"{file}: position_embedding_type {positions} of a {model_type} is what transformers 4 computes and the "
            "installed version leaves out; install 'transformers<5'"
        )


def is_known(model_type: str) -> bool:
    """Return whether the installed transformers has a config class of this name."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def part_types(model_type: str) -> set[str]:
    """Return the model types of the configs within a known one's: its class makes them, and no name is looked up."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: set[str] = set()
    left = [CONFIG_MAPPING[model_type]] if model_type in CONFIG_MAPPING else []
    while left:
        parts = [part for part in left.pop().sub_configs.values() if hasattr(part, "sub_configs")]
        left += [part for part in parts if part.model_type not in found]
        found |= {part.model_type for part in parts}
    return found


def _newer(config: dict[str, Any]) -> str:
    from importlib.metadata import version

    from packaging.version import InvalidVersion, Version

    installed = version("transformers")
    try:
        saved = Version(str(config.get("transformers_version")))
    except InvalidVersion:
        return f"is unknown to the installed transformers {installed}"
    if saved > Version(installed):
        return f"needs a newer transformers than the installed {installed} (it was saved by {saved})"
    return f"is unknown to the installed transformers {installed}"


def check_index(file: Path) -> dict[str, str]:
    """Return tensor name -> file of an index; one that names files outside of its folder, or is none, is refused.

    Raises:
        UserError: naming what.
    """
    found = read_json(file, LARGEST_INDEX)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{file} is damaged (no weight_map of names); fetch the model again")
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{file} names a file outside of its folder: {name}")
    return places


def _signature(folder: Path) -> tuple[Any, ...]:
    try:
        found = [(f.name, s.st_size, s.st_mtime_ns) for f in sorted(folder.iterdir()) for s in (f.stat(),)]
    except OSError:
        return (object(),)
    return tuple(found)
