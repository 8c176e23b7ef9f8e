"""train_clicks: the baseline of a click-through recipe: a DLRM with whole tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures.click_inputs import new_config
from hfcompress.architectures.click_spec import ClickShape
from hfcompress.errors import OptionError, Reason, UserError
from hfcompress.folders.memory import TRAINED_BYTES, require_machine_memory
from hfcompress.stage import TENSORS
from hfcompress.tasks.tabular_classification import Clicks
from hfcompress.training.clicks import ClickTrain, fit, new_click_model


@dataclass(frozen=True)
class TrainClicks(ClickTrain):
    """A table a column of ids, two towers, trained on clicks and conversions."""

    dim: int = 32
    """Numbers an id."""
    bottom: int = 32
    """Width of the dense features' tower."""
    top: tuple[int, ...] = (64, 32)
    """Widths of the tower above the vectors and their products."""
    unknown: str = "row"
    """Ids that training never saw: row (all share one vector) or hash (each takes some known id's)."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unknown not in ("row", "hash"):
            raise OptionError("unknown", "row or hash", self.unknown)
        if min(self.dim, self.bottom, *self.top) < 1:
            raise UserError(Reason("{dim}, {bottom} and {top} must be above 0"))

    def __call__(self, out: Path, *, task: Clicks) -> dict[str, Any]:
        import torch

        from hfcompress.architectures.click_model import save_click_model

        torch.manual_seed(self.seed)
        network = new_click_model(task.data.rows, self.dim, self.bottom, self.top, self.unknown)
        measured = fit(network, task.data.logs["train"], self, out / "work")
        save_click_model(network, out)
        return measured | {"table_bytes": network.table_bytes(), "rows": task.data.rows}

    def predict(self, *, task: Clicks) -> ClickShape:
        """The shape.

        Raises:
            UserError: this machine has not the memory to train it.
        """
        shape = ClickShape(new_config(task.data.rows, self.dim, self.bottom, self.top, self.unknown))
        widest = max(("dim", self.dim), ("bottom", self.bottom), ("top", max(self.top)), key=lambda pair: pair[1])
        require_machine_memory(TRAINED_BYTES * shape.predicted()["parameters"], *widest)
        return shape
