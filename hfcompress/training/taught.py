"""Taught: the options of stages whose loss is that of a teacher's soft labels and of the hard ones."""

from dataclasses import dataclass
from typing import Any

from hfcompress.errors import Reason
from hfcompress.training.trainer import Train, require_teaching, unused_by_teaching


@dataclass(frozen=True)
class Taught(Train):
    """What QAT of texts and of images shares beside a training's own options."""

    temperature: float = 2.0
    """Of the soft labels: higher is flatter."""
    logits_weight: float = 1.0
    """Of the teacher's soft labels in the loss."""
    hard_weight: float = 0.0
    """Of the data's labels in the loss."""

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        return super().unused(inputs) | unused_by_teaching(self, inputs)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_teaching(self, "logits_weight", "hard_weight")
