"""adopt: a model that the user brings (a teacher in hand) becomes the first Artifact of a run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.errors import UserError
from hfcompress.tasks.text_classification import TextClassification


@dataclass(frozen=True)
class Adopt:
    """Copy a trained classifier into the run, in fp32 (shipped ones are in bf16).

    Raises:
        UserError: it has other labels than the task, no weights, or pickled or damaged ones; or its record says that
            it was trained on another version of the task's data.
    """

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from hfcompress.architectures.models import load_classifier, load_tokenizer, save

        require_same_split(model, task)
        save(load_classifier(model, task.data.labels), load_tokenizer(model), out)
        return {}

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        return model


def require_same_split(model: Path, task: TextClassification) -> None:
    """Refuse a model of this project that was trained on other texts of the task's name: some may be test texts now.

    A model from elsewhere has no such record and is taken as it is; so is any when the task is cut short for a try.
    """
    try:
        record = json.loads((model / "record.json").read_text(encoding="utf-8"))
        trained_on = str(record["inputs"]["task"])
    except (OSError, ValueError, LookupError, TypeError):
        return
    same_name = trained_on.partition("@")[0] == task.identity.partition("@")[0]
    if same_name and trained_on != task.identity and task.max_train_examples is None:
        raise UserError(
            f"{model} was trained on {trained_on}, and the data is {task.identity}: what it has seen may be in test "
            "now; --teacher none trains a new one"
        )
