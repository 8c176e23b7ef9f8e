"""adopt: a model that the user brings (a teacher in hand) becomes the first Artifact of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.shape import Shape
from hfcompress.tasks.text_classification import TextClassification


@dataclass(frozen=True)
class Adopt:
    """Copy a trained classifier into the run, in fp32 (shipped ones are in bf16).

    Raises:
        UserError: it has other labels than the task, no weights, or pickled or damaged ones.
    """

    training: ClassVar[bool] = False

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from hfcompress.models import load_classifier, load_tokenizer, save

        save(load_classifier(model, task.data.labels), load_tokenizer(model), out)
        return {}

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        return model
