"""What classifiers answer with: the names of their labels, and logits that are as many and are numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.errors import UserError

Array = np.ndarray[Any, Any]
DEFAULT_LABELS = 2  # of a config.json that names none: transformers leaves out its own names for them


def label_names(config: Mapping[str, Any], folder: Path) -> list[str]:
    """What config.json calls the labels, by their numbers: LABEL_0, LABEL_1, ... where it only says how many.

    Raises:
        UserError: its id2label does not number the labels from 0 on.
    """
    names = config.get("id2label")
    if not names:
        return [f"LABEL_{i}" for i in range(config.get("num_labels") or DEFAULT_LABELS)]
    try:
        known = {int(key): name for key, name in names.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{folder / 'config.json'}: its id2label does not give a name to each number") from None
    missing = next((i for i in range(len(known)) if i not in known), None)
    if missing is not None:
        raise UserError(
            f"{folder / 'config.json'}: its id2label has {len(known)} names and none for {missing}; number them from 0"
        )
    return [str(known[i]) for i in range(len(known))]


def require_labels(logits: Array, labels: Sequence[str], folder: Path) -> None:
    """Refuse logits of another count than there are labels.

    Raises:
        UserError: with both counts.
    """
    if logits.shape[1:] != (len(labels),):
        raise UserError(
            f"{folder} answers with {logits.shape[-1]} numbers, and its config.json names {len(labels)} labels; "
            "give id2label a name for each"
        )


def numbers(logits: Array, folder: Path) -> Array:
    """The logits as they are.

    Raises:
        UserError: some are nan.
    """
    if np.isnan(logits).any():
        raise UserError(f"{folder} answers with no numbers (nan): its weights are damaged; fetch or make it again")
    return logits
