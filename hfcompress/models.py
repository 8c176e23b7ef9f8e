"""Reading and writing model folders: safetensors only, one clear line for what is wrong with a folder."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError
from hfcompress.guard import read_config
from hfcompress.pretrained import stock_config, stock_image_processor, stock_model, stock_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a model, or whose weights are a pickle or cut short.

    Raises:
        UserError: with the file and what to do about it.
    """
    from safetensors import SafetensorError, safe_open

    check_config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = next((name for name in PICKLES if (folder / name).exists()), None)
        if pickled:
            raise UserError(
                f"{folder / pickled} is a pickle, which can run code when read; convert it on a machine you trust: "
                f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained(..., safe_serialization=True)"
            )
        raise UserError(f"{folder} has no weights (*.safetensors)")
    for file in weights:
        try:
            with safe_open(file, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or cut short ({error}); fetch or make it again") from None


def check_config(folder: Path) -> None:
    """Refuse a folder without a config.json that can be read, whatever its weights are.

    Raises:
        UserError: see `guard.read_config`.
    """
    read_config(folder)


def load_classifier(folder: Path, labels: list[str] | None = None, *, replace_head: bool = False) -> "PreTrainedModel":
    """The sequence or image classifier of a folder, with the edits of its surgery.json, in fp32 and in eval mode.

    With `labels`, a model without a classification head gets a new one (seeded by the caller), and a model with
    another set of labels is refused.

    Args:
        replace_head: it gets a new head instead, as for fine-tuning; not where a surgery.json cut or factored it.

    Raises:
        UserError: see `check_folder`; the labels differ from the task's; surgery.json does not fit the weights.
    """
    import torch

    from hfcompress.surgery import read_edits, rebuild

    check_folder(folder)
    changes: dict[str, Any] = {}
    with says_what_does_not_fit(folder):
        config, edits = stock_config(folder), read_edits(folder)
    auto = classifier_class(config.model_type)
    if labels is not None:
        changes = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        heads = [name for name in config.architectures or [] if name.endswith("Classification")]
        made_for = list(config.id2label.values())
        if heads and made_for != labels:
            if replace_head and not edits:
                return torch_momentum(with_new_head(folder, auto, changes)).eval()
            advice = "give a teacher of this task, or none: one is then fine-tuned"
            if replace_head:
                advice = "one that was cut or factored cannot get a new head: give the model that it was made from"
            raise UserError(
                f"{folder} was made for the labels {_some(made_for)}, the task has {_some(labels)}; {advice}"
            )
    if edits:
        return torch_momentum(rebuild(folder, auto.from_config(config, torch_dtype=torch.float32), edits)).eval()
    with quiet_new_head(), says_what_does_not_fit(folder):
        model = stock_model(auto, folder, stock_config(folder, **changes), torch_dtype=torch.float32)
    return torch_momentum(model).eval()


def with_new_head(folder: Path, auto: Any, changes: dict[str, Any]) -> Any:
    """A folder's classifier with a head of random weights (seeded by the caller) for other labels.

    transformers' ignore_mismatched_sizes would keep the old head where there are as many labels as before.

    Args:
        changes: id2label and label2id.
    """
    import torch
    from accelerate import PartialState

    with says_what_does_not_fit(folder):
        trained = stock_model(auto, folder, torch_dtype=torch.float32)
    if PartialState().is_main_process:
        old = _some(list(trained.config.id2label.values()))
        print(f"{folder.name} was made for the labels {old}: it gets a new head", file=sys.stderr)
    model = auto.from_config(stock_config(folder, **changes), torch_dtype=torch.float32)
    model.base_model.load_state_dict(trained.base_model.state_dict())
    return model


@contextmanager
def says_what_does_not_fit(folder: Path) -> Iterator[None]:
    """One line for what transformers and torch raise of a config.json that is wrong, or is not of these weights.

    Raises:
        UserError: something was raised inside.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: its config.json and its weights are no model that transformers loads ({reason}); fetch or "
            "make the model again"
        ) from error


def torch_momentum(model: Any) -> Any:
    """Batch norms that would forget all but the last batch get torch's own momentum.

    transformers' MobileNets pass TensorFlow's 0.997, the share that is kept, where torch means the share that is new.
    """
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None and module.momentum > 0.5:
            module.momentum = 0.1
    return model


def classifier_class(model_type: str) -> Any:
    """The Auto class of a kind of model: of images where transformers knows it as such, else of texts."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    return AutoModelForImageClassification if is_vision(model_type) else AutoModelForSequenceClassification


def is_vision(model_type: str | None) -> bool:
    """Whether transformers knows a kind of model as an image classifier."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


class quiet_new_head:
    """Silence the advice to train a newly made head: training it is what happens next."""

    def __enter__(self) -> None:
        names = ("transformers.modeling_utils", "transformers.integrations.tensor_parallel")
        self.levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
        for logger in self.levels:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        for logger, level in self.levels.items():
            logger.setLevel(level)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer that lies beside a model.

    Raises:
        UserError: there is none that can be read.
    """
    try:
        return stock_tokenizer(folder)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception, transformers five kinds
        raise UserError(f"{folder} has no tokenizer that can be read; save the model's tokenizer there") from error


def load_image_processor(folder: Path) -> "BaseImageProcessor":
    """What turns images into pixel values, by preprocessor_config.json.

    Raises:
        UserError: there is none that can be read.
    """
    try:
        return stock_image_processor(folder)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} has no preprocessor_config.json that can be read; save one there") from error


def save(model: "PreTrainedModel", processor: "PreTrainedTokenizerBase | BaseImageProcessor", out: Path) -> None:
    """Write what `from_pretrained` reads (with edits: `hfcompress.load`); only the main process writes."""
    from accelerate import PartialState

    from hfcompress.surgery import edits_of, write_edits

    if not PartialState().is_main_process:
        return
    model.save_pretrained(out, safe_serialization=True)
    write_edits(out, edits_of(model))
    processor.save_pretrained(out)


def _some(labels: list[str]) -> str:
    return f"{', '.join(labels[:4])}{', ...' if len(labels) > 4 else ''} ({len(labels)})"


def language_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer that lies beside a model.

    Raises:
        UserError: there is none that can be read, or it cannot say where a token lies in the text.
    """
    tokenizer = load_tokenizer(folder)
    if not tokenizer.is_fast:
        raise UserError(f"{folder} has a tokenizer without tokenizer.json; save its fast version there")
    return tokenizer
