"""The calls of transformers that read a folder: configs, models, tokenizers and processors, after guard.py's checks.

No other file calls `from_pretrained` (tests/test_house.py looks for it). None of these calls runs code of the folder,
reads a pickle, or fetches a file.
"""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.patches import SURGERY, apply
from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import LARGEST_TOKENIZER, leaves, objects, read_object
from hfcompress.folders.guard import check_foreign, check_type, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

KNOWN_BY_FIELD = {"mistral": ("layer_types", "ministral")}
"""A model_type -> the field by which AutoConfig knows that it is another one's config, and that one."""
CLOSED: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
# What a network returns, whatever the config it was saved with asks for: logits by name, and nothing unasked.
PLAIN_ANSWERS = {"return_dict": True, "torchscript": False, "output_attentions": False, "output_hidden_states": False}
MOST_WEIGHTS_A_BYTE = 4  # of 2 bits each
FREE_WEIGHTS = 64 * 10**6  # a new head, and tables that no file holds
LONGEST_TEXT = 2**20  # tokens to which a tokenizer may pad
PIECES = ("*.model", "*.tiktoken", "tekken.json")  # of sentencepiece, of tiktoken, of Mistral
BACKENDS = ("TokenizersBackend", "PreTrainedTokenizerFast")  # a tokenizer.json without a class: by version 5, by 4


def stock_config(folder: Path, **changes: Any) -> Any:
    """Return transformers' config of a folder, made from the checked and normalized config.json.

    Args:
        changes: fields with other values; `attn_implementation` as for `from_pretrained`.

    Raises:
        UserError: see `guard.read_config` and `guard.check_type`; the config's own class refuses its fields.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read_config(folder)
    check_type(folder, config)
    kind = config["model_type"]
    field, other = KNOWN_BY_FIELD.get(kind, ("", ""))
    if field in config and other in CONFIG_MAPPING:
        kind = config["model_type"] = other
    plain = {key: value for key, value in config.items() if not key.endswith(("_implementation", "_internal"))}
    if not plain.get("quantization_config"):  # null or {} is none; transformers takes it for one
        plain.pop("quantization_config", None)
    made = CONFIG_MAPPING[kind]
    _require_fields(made, folder, config)
    try:
        found = made.from_dict(plain, **changes)
    except Exception as error:  # each class has checks of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        file = folder / "config.json"
        raise UserError(f"{file} is no {kind} that transformers reads ({reason}); mend it") from error
    found._name_or_path = str(folder)
    for name, value in PLAIN_ANSWERS.items():
        setattr(found, name, value)
    return found


def _require_fields(made: Any, folder: Path, config: dict[str, Any]) -> None:
    """Refuse rope_parameters of transformers 5 that the installed class would not read from version 4's fields.

    Raises:
        UserError: naming the field.
    """
    written = read_object(folder / "config.json")
    if hasattr(made, "default_theta"):  # version 5's own classes read them all
        return
    if any("rope_parameters" in part for _, part in objects(config)):  # those that config_form.py leaves
        raise UserError(
            f"{folder / 'config.json'}: rope_parameters differ by layer type, which the installed transformers' "
            f"{made.__name__} does not read; install a newer transformers"
        )
    if "rope_parameters" not in written:
        return
    known = set(inspect.signature(made.__init__).parameters) | set(made.attribute_map)
    for name in sorted(set(config) - set(written) - known):
        if config[name] not in (None, 1.0, 10_000.0) and name != "dtype":
            raise UserError(
                f"{folder / 'config.json'}: rope_parameters say {name} {config[name]}, which the installed "
                f"transformers' {made.__name__} does not read; install a newer transformers"
            )


def stock_model(auto: Any, folder: Path, config: Any = None, **options: Any) -> Any:
    """Return a folder's model, of one of transformers' classes, from safetensors alone.

    Args:
        auto: an Auto class, or a model class; config: another one than `stock_config`'s; options: as for
            `from_pretrained`.

    Raises:
        UserError: see `stock_config`.
        Exception: what transformers raises of weights and a config that do not fit.
    """
    config = stock_config(folder) if config is None else config
    require_room(auto, folder, config)
    made: PreTrainedModel = auto.from_pretrained(folder, config=config, use_safetensors=True, **CLOSED, **options)
    return made


def stock_class(config: Any) -> Any:
    """Return the model class that a config names as its architecture; AutoModel where that is not its own."""
    import transformers

    found = getattr(transformers, (config.architectures or [""])[0], None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        return transformers.AutoModel
    return found if getattr(found, "config_class", None) is type(config) else transformers.AutoModel


def require_room(auto: Any, folder: Path, config: Any, edits: list[dict[str, Any]] | None = None) -> None:
    """Refuse a config whose model is far larger than the folder's weights, before memory is taken for it.

    Args:
        auto: an Auto class or a model class; config: transformers' own.
        edits: of surgery.json, whose sizes count, too.

    Raises:
        UserError: with both sizes.
        Exception: what the model's class raises of the config.
    """
    empty = meta_model(auto, config)
    refuse_more_than_stored(empty, folder, folder / "config.json")
    if edits:
        for edit in edits:  # on the meta device no memory is taken; what a later edit makes small again counts, too
            apply(empty, [edit])
            refuse_more_than_stored(empty, folder, folder / SURGERY)


def refuse_more_than_stored(empty: Any, folder: Path, file: Path) -> None:
    """Refuse a model that is far larger than a folder's weights.

    Args:
        empty: the model on the meta device; file: what describes it.

    Raises:
        UserError: with both sizes.
    """
    wanted = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    stored = sum(weights.stat().st_size for weights in folder.glob("*.safetensors"))
    if wanted > MOST_WEIGHTS_A_BYTE * stored + FREE_WEIGHTS:
        raise UserError(
            f"{file} describes a model of {wanted / 1e6:,.0f} million weights, and its files hold "
            f"{stored / 1e6:,.1f} MB; fetch or make the model again"
        )


def stock_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return a folder's tokenizer, also one that transformers 5 saved.

    Raises:
        UserError: see `guard.check_foreign`.
        Exception: what transformers and tokenizers raise of files that they cannot read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_foreign(folder)
    settings = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    options: dict[str, Any] = dict(CLOSED)
    if isinstance(extra := settings.get("extra_special_tokens"), list):  # version 5's form; 4 wants names
        options |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
    if (folder / "tokenizer.json").is_file():
        _check_padding(folder / "tokenizer.json")
    tokenizer: PreTrainedTokenizerBase
    if settings.get("tokenizer_class") in BACKENDS:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **options)
    elif settings.get("tokenizer_class") is None and (folder / "config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, config=stock_config(folder), **options)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    require_vocabulary(folder, tokenizer.vocab_files_names)
    return tokenizer


def require_vocabulary(folder: Path, names: dict[str, str]) -> None:
    """Refuse a folder without its tokenizer's pieces: transformers 5 makes one that knows its special tokens alone.

    Args:
        names: role -> file, as a tokenizer class has them; a class of bytes or characters has none.

    Raises:
        UserError: naming a file that is missing.
    """
    if (folder / "tokenizer.json").is_file() or any(any(folder.glob(form)) for form in PIECES):
        return
    wanted = [names[role] for role in ("vocab_file", "merges_file") if role in names] or list(names.values())
    if absent := [name for name in wanted if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} has no tokenizer: neither tokenizer.json nor {absent[0]}; save the model's tokenizer there"
        )


def _check_padding(file: Path) -> None:
    """Refuse a tokenizer.json that makes every text as long as no memory holds.

    Raises:
        UserError: naming the number; or see `read_object`.
    """
    padding = read_object(file, LARGEST_TOKENIZER).get("padding")
    for place, number in leaves(padding if isinstance(padding, dict) else {}):
        if place in ("strategy.Fixed", "pad_to_multiple_of") and isinstance(number, int) and number > LONGEST_TEXT:
            raise UserError(f"{file}: padding.{place} is {number:.9g}; it must be at most {LONGEST_TEXT:,}")


def stock_image_processor(folder: Path) -> "BaseImageProcessor":
    """Return what turns a folder's images into pixel values.

    Raises:
        UserError: see `guard.check_foreign`.
        Exception: what transformers raises of a preprocessor_config.json that it cannot read.
    """
    import transformers

    check_foreign(folder)
    without_torchvision = {"backend": "pil"} if hasattr(transformers, "ViTImageProcessorPil") else {"use_fast": False}
    processor: BaseImageProcessor
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **without_torchvision, **CLOSED)
    return processor


def image_processor_class(name: str) -> Any:
    """Return transformers' class of an image processor that needs no torchvision: version 5 calls it ...Pil."""
    import transformers

    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
