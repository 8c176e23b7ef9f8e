"""The calls of transformers that read a folder: configs, models, tokenizers and processors, after guard.py's checks.

No other file calls `from_pretrained` (tests/test_house.py looks for it). None of these calls runs code of the folder,
reads a pickle, or fetches a file.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.foreign_files import LARGEST_TOKENIZER, read_object
from hfcompress.guard import check_foreign, check_type, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

CLOSED: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
BACKENDS = ("TokenizersBackend", "PreTrainedTokenizerFast")  # a tokenizer.json without a class: by version 5, by 4


def stock_config(folder: Path, **changes: Any) -> Any:
    """Return transformers' config of a folder, made from the checked and normalized config.json.

    Args:
        changes: fields with other values; `attn_implementation` as for `from_pretrained`.

    Raises:
        UserError: see `guard.read_config` and `guard.check_type`.
        Exception: what the config's own class raises of its fields.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read_config(folder)
    check_type(folder, config)
    kind = config["model_type"]
    if kind == "mistral" and "layer_types" in config and "ministral" in CONFIG_MAPPING:
        kind = config["model_type"] = "ministral"  # as AutoConfig has it
    plain = {key: value for key, value in config.items() if not key.endswith(("_implementation", "_internal"))}
    found = CONFIG_MAPPING[kind].from_dict(plain, **changes)
    found._name_or_path = str(folder)
    return found


def stock_model(auto: Any, folder: Path, config: Any = None, **options: Any) -> Any:
    """Return a folder's model, of one of transformers' classes, from safetensors alone.

    Args:
        auto: an Auto class, or a model class; config: another one than `stock_config`'s; options: as for
            `from_pretrained`.

    Raises:
        UserError: see `stock_config`.
        Exception: what transformers raises of weights and a config that do not fit.
    """
    made: PreTrainedModel
    made = auto.from_pretrained(
        folder, config=stock_config(folder) if config is None else config, use_safetensors=True, **CLOSED, **options
    )
    return made


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
        read_object(folder / "tokenizer.json", LARGEST_TOKENIZER)
    tokenizer: PreTrainedTokenizerBase
    if settings.get("tokenizer_class") in BACKENDS:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **options)
    elif settings.get("tokenizer_class") is None and (folder / "config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, config=stock_config(folder), **options)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    return tokenizer


def stock_image_processor(folder: Path) -> "BaseImageProcessor":
    """Return what turns a folder's images into pixel values.

    Raises:
        UserError: see `guard.check_foreign`.
        Exception: what transformers raises of a preprocessor_config.json that it cannot read.
    """
    from transformers import AutoImageProcessor

    check_foreign(folder)
    processor: BaseImageProcessor
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False, **CLOSED)  # the fast ones need torchvision
    return processor
