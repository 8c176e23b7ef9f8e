"""Reading and writing model folders: safetensors only, one clear line for what is wrong with a folder."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures import ENCODERS
from hfcompress.architectures.heads import put_in_order, row_of_each, side_by_side
from hfcompress.architectures.heads import some as some_labels
from hfcompress.architectures.kinds import is_vision, writes_text
from hfcompress.architectures.loading import empty_model, load_whole, says_what_does_not_fit
from hfcompress.architectures.patches import edits_of, write_edits
from hfcompress.architectures.pretrained import require_room, stock_config, stock_image_processor, stock_tokenizer
from hfcompress.errors import UserError
from hfcompress.folders.guard import read_config
from hfcompress.folders.permissions import as_umask_says
from hfcompress.folders.tokenizer_rules import require_bounded_growth, require_quick_patterns
from hfcompress.folders.weights import require_plain_tensors, require_unquantized, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a model, or whose weights are a pickle or cut short.

    Raises:
        UserError: with the file and what to do about it.
    """
    check_config(folder)
    stored_tensors(folder)


def check_unquantized(folder: Path) -> None:
    """Refuse a folder whose weights were quantized before: they are no longer values to train or to round.

    Raises:
        UserError: naming the method and what to give instead.
    """
    require_unquantized(folder, read_config(folder))
    require_plain_tensors(folder, stored_tensors(folder))


def check_config(folder: Path) -> None:
    """Refuse a folder without a config.json that can be read, whatever its weights are.

    Raises:
        UserError: see `guard.read_config`.
    """
    read_config(folder)


def load_classifier(folder: Path, labels: list[str] | None = None, *, replace_head: bool = False) -> "PreTrainedModel":
    """The sequence or image classifier of a folder, with the edits of its surgery.json, in fp32 and in eval mode.

    With `labels` they are matched by name with the model's: rows of a head that has them in another order are put in
    the order of `labels`.

    Args:
        replace_head: a model without a head for these labels (one label each) gets a new one, random (seeded by the
            caller), as for fine-tuning; not where a surgery.json cut or factored it. Else it is refused.

    Raises:
        UserError: see `check_unquantized` and `load_whole`; the labels differ; surgery.json does not fit the weights.
    """
    import torch

    from hfcompress.architectures.patches import read_edits, rebuild

    check_unquantized(folder)
    with says_what_does_not_fit(folder):
        config, edits = stock_config(folder), read_edits(folder)
    auto = classifier_class(config.model_type)
    rows = None if labels is None else head_rows(folder, config, labels)
    if labels is not None and replace_head and not edits and (rows is None or not has_head(folder, auto)):
        return torch_momentum(with_new_head(folder, auto, labels)).eval()
    if labels is not None and rows is None:
        if not edits and not has_head(folder, auto):
            load_whole(auto, folder)  # which names what is missing
        raise UserError(other_labels(folder, config, labels, replace_head))
    if edits:
        with says_what_does_not_fit(folder):
            require_room(auto, folder, config, edits)
        model = rebuild(folder, auto.from_config(config, torch_dtype=torch.float32), edits)
    else:
        model = load_whole(auto, folder)
    if labels is not None and rows is not None:
        put_in_order(model, rows, labels, folder)
    return torch_momentum(model).eval()


def load(folder: Path) -> "PreTrainedModel":
    """The classifier of a folder with or without surgery.json, in float32 and in eval mode.

    Raises:
        UserError: see `load_classifier`.
    """
    return load_classifier(Path(folder))


def head_rows(folder: Path, config: Any, labels: list[str]) -> list[int] | None:
    """The row of a folder's head for each label; None where its head is for other labels, or not for one label a text.

    config: transformers' of the folder.
    """
    if config.problem_type not in (None, "single_label_classification"):
        return None
    return row_of_each([config.id2label[i] for i in sorted(config.id2label)], labels)


def other_labels(folder: Path, config: Any, labels: list[str], replace_head: bool) -> str:
    """The line for a classifier of other labels, or of another kind of answer."""
    made_for = [config.id2label[i] for i in sorted(config.id2label)]
    if config.problem_type not in (None, "single_label_classification"):
        kind = f"its head is for {config.problem_type.replace('_', ' ')}, and the task has one label for each example"
        return f"{folder}: {kind}; give a teacher of this task, or none: one is then fine-tuned"
    advice = "give a teacher of this task, or none: one is then fine-tuned"
    if len(made_for) == len(labels) and made_for == [f"LABEL_{i}" for i in range(len(made_for))]:
        advice = "write the names of its labels into id2label in its config.json, in the order of its rows"
    if replace_head:
        advice = "one that was cut or factored cannot get a new head: give the model that it was made from"
    return f"{folder} {side_by_side(made_for, labels)}; {advice}"


def has_head(folder: Path, auto: Any) -> bool:
    """Whether a folder's files hold every weight of its classification head."""
    model = empty_model(folder, auto)
    stored = stored_tensors(folder)
    prefix = f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters() if not name.startswith(prefix)]
    return all(name in stored for name in names)


def with_new_head(folder: Path, auto: Any, labels: list[str]) -> Any:
    """A folder's classifier with a head of random weights (seeded by the caller) for `labels`, one of them a text.

    transformers' ignore_mismatched_sizes would keep the old head where there are as many labels as before, and the old
    head's problem_type would make another loss of the new one's.
    """
    import torch
    from accelerate import PartialState

    changes: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
        "problem_type": None,
    }
    if not has_head(folder, auto):
        return load_whole(auto, folder, new_head=True, **changes)
    trained = load_whole(auto, folder)
    if PartialState().is_main_process:
        old = some_labels(list(trained.config.id2label.values()))
        print(f"{folder.name} was made for the labels {old}: it gets a new head", file=sys.stderr)
    model = auto.from_config(stock_config(folder, **changes), torch_dtype=torch.float32)
    model.base_model.load_state_dict(trained.base_model.state_dict())
    return model


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


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer that lies beside a model.

    Raises:
        UserError: there is none that can be read.
    """
    try:
        tokenizer = stock_tokenizer(folder)
        require_bounded_growth(tokenizer, folder)
        require_quick_patterns(tokenizer, folder)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception, transformers five kinds
        raise UserError(f"{folder} has no tokenizer that can be read; save the model's tokenizer there") from error
    pad_where_positions_count(tokenizer, folder)
    leave_out_token_types(tokenizer, folder)
    return tokenizer


def pad_where_positions_count(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Make an encoder's tokenizer pad on the right: padding on the left would move a text to other positions.

    A decoder's is left as it is (it writes on at the right end), and so is that of a model whose positions are
    relative, which may read the class at the last token.
    """
    from hfcompress.architectures.text_inputs import usable_positions

    config = read_config(folder) if (folder / "config.json").is_file() else {}
    if config and not writes_text(config) and usable_positions(config) is not None:
        tokenizer.padding_side = "right"


def leave_out_token_types(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Make the tokenizer of an encoder that has no token types give none, as a BERT's beside a DistilBERT would."""
    encoder = ENCODERS.get(read_config(folder).get("model_type", "")) if (folder / "config.json").is_file() else None
    if encoder is not None and encoder.defaults.get("type_vocab_size") == 0:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]


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
    """Write what `from_pretrained` reads (with edits: `hfcompress.load`); only the main process writes.

    A classifier's kind of answer is written down: transformers adds it to the config when it computes a loss, which a
    run that goes on after a kill may not do again.
    """
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    config = model.config
    if type(model).__name__.endswith("Classification") and config.problem_type is None and config.num_labels > 1:
        config.problem_type = "single_label_classification"
    model.save_pretrained(out, safe_serialization=True)
    write_edits(out, edits_of(model))
    processor.save_pretrained(out)
    as_umask_says(out)


def language_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer that lies beside a model.

    Raises:
        UserError: there is none that can be read, or it cannot say where a token lies in the text.
    """
    tokenizer = load_tokenizer(folder)
    if not tokenizer.is_fast:
        raise UserError(f"{folder} has a tokenizer without tokenizer.json; save its fast version there")
    return tokenizer
