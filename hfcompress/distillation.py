"""The loss that pruning and quantization-aware training share: the teacher's soft labels and the true ones."""

from typing import TYPE_CHECKING, Any

from hfcompress.ops import losses
from hfcompress.teacher_outputs import Wanted, forward

if TYPE_CHECKING:
    from hfcompress.teacher_outputs import Teacher
    from hfcompress.training import Loss


def label_loss(
    teacher: "Teacher", *, temperature: float, logits_weight: float, hard_weight: float, label_smoothing: float = 0.0
) -> "Loss":
    """The weighted sum of soft cross-entropy with the teacher and cross-entropy with the labels."""

    def compute(model: Any, batch: dict[str, Any]) -> Any:
        logits = forward(model, batch, Wanted())["logits"]
        total = logits_weight * losses.soft_cross_entropy(logits, teacher(batch)["logits"], temperature)
        if hard_weight:
            total = total + hard_weight * losses.labelled_cross_entropy(logits, batch["labels"], label_smoothing)
        return total

    return compute
