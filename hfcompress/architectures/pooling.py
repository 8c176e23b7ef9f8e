"""What a sentence-transformers folder says of its pooling: the vector that its base was trained to make."""

import sys
from functools import lru_cache
from pathlib import Path
from typing import Literal

from hfcompress.architectures import ENCODERS
from hfcompress.folders.foreign_files import read_object
from hfcompress.folders.guard import read_config

Pooling = Literal["cls", "mean"]
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def pooling_of(folder: Path) -> str | None:
    """Return a folder's pooling mode (cls, mean, max, ...; several joined by +), None where it says none.

    Raises:
        UserError: 1_Pooling/config.json is damaged.
    """
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    found = read_object(file)
    if named := found.get("pooling_mode"):  # one name, or several
        return "+".join(str(mode) for mode in (named if isinstance(named, list) else [named]))
    return "+".join(name for field, name in MODES.items() if found.get(field) is True) or None


def started_as(folder: Path, wanted: Pooling) -> Pooling:
    """Return cls or mean: what fine-tuning a base starts from where its recipe wants `wanted`.

    The mean is for a base that says that it was made for the mean; for another one the last layer would be given up
    for nothing. One line on stderr says so where the recipe wants the mean, and which other mode a folder names.
    """
    said = pooling_of(folder)
    if wanted == "mean" and said == "mean":
        kind = read_config(folder).get("model_type", "")
        if kind not in ENCODERS or ENCODERS[kind].starts_as_mean:
            return "mean"
        tell(f"{folder.name} pools by mean, which the head of a {kind} cannot pass on: its [CLS] is used")
        return "cls"
    if said not in (None, "cls", "mean") or (wanted == "mean" and said == "cls"):
        why = "it was trained" if said == "cls" else "fine-tuning starts from [CLS] or from the mean alone"
        tell(f"{folder.name} pools by {said} (1_Pooling): its [CLS] is used, {why}")
    elif wanted == "mean" and said is None:
        tell(f"{folder.name} has no 1_Pooling that says mean: fine-tuning starts from its [CLS]")
    return "cls"


@lru_cache
def tell(line: str) -> None:
    """Print a line on standard error, once: a recipe is walked several times before it runs."""
    print(line, file=sys.stderr)
