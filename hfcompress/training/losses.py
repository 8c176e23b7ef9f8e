"""The loss that pruning and quantization-aware training share: the teacher's soft labels and the true ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import OptionError
from hfcompress.ops import losses
from hfcompress.training.teacher_outputs import Wanted, forward

if TYPE_CHECKING:
    from torch import Tensor

    from hfcompress.tasks.task import Task
    from hfcompress.training.teacher_outputs import Teacher
    from hfcompress.training.trainer import Loss


def label_loss(
    teacher: "Teacher",
    *,
    temperature: float,
    logits_weight: float,
    hard_weight: float,
    label_smoothing: float = 0.0,
    states_weight: float = 0.0,
) -> "Loss":
    """The weighted sum of soft cross-entropy with the teacher, cross-entropy with the labels and, of an image
    classifier, the difference of those states that have the teacher's shape.
    """

    def compute(model: Any, batch: dict[str, Any]) -> Any:
        found, wanted = forward(model, batch, Wanted(states=bool(states_weight))), teacher(batch)
        logits = found["logits"]
        total = logits_weight * losses.soft_cross_entropy(logits, wanted["logits"], temperature)
        if hard_weight:
            total = total + hard_weight * losses.labelled_cross_entropy(logits, batch["labels"], label_smoothing)
        if states_weight:
            total = total + states_weight * losses.states_mse(*states_of_one_shape(found, wanted))
        return total

    return compute


def states_of_one_shape(
    found: "dict[str, Tensor]", wanted: "dict[str, Tensor]"
) -> "tuple[list[Tensor], list[Tensor]]":
    """The states that student and teacher have alike: a cut may have left others narrower.

    Raises:
        UserError: there is none.
    """
    names = [n for n in found if n.startswith("state-") and found[n].shape == wanted[n].shape]
    if not names:
        raise OptionError("states_weight", "no state of the teacher has the pruned model's shape; give 0")
    return [found[n].float() for n in names], [wanted[n] for n in names]


def taught_by(
    teacher: Path,
    options: Any,
    work: Path,
    model: Path,
    task: "Task",
    data: Any,
    states_weight: float = 0.0,
) -> "Loss":
    """`label_loss` with a teacher's folder: its outputs are kept on disk, but where examples are varied anew in each
    epoch, which it is to see: there it runs along.

    Args:
        options: the stage: temperature, logits_weight, hard_weight, label_smoothing_factor, cache and bf16 are read.
        work: the stage's folder for what survives a kill.
        model: the folder of what is taught.
        data: the training examples; rows in the order that the batches' `index` counts in.
        states_weight: of the states of a teacher that runs along.

    Raises:
        UserError: the teacher reads or answers something else (see `require_same_task`).
    """
    from hfcompress.training.teacher_outputs import LiveTeacher, require_same_task, teacher_outputs

    require_same_task(model, teacher)
    outputs: Any
    if task.varied:
        outputs = LiveTeacher(teacher, Wanted(states=bool(states_weight)), options.bf16)
    else:
        outputs = teacher_outputs(work, teacher, data, Wanted(), cache=options.cache, bf16=options.bf16)
    return label_loss(
        outputs,
        temperature=options.temperature,
        logits_weight=options.logits_weight,
        hard_weight=options.hard_weight,
        label_smoothing=options.label_smoothing_factor,
        states_weight=states_weight,
    )
