"""finetune_images: an image classifier, with whatever head or weights it has, is trained for the task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.evaluation.accuracy import trainer_metrics
from hfcompress.stage import TRAINING
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.image_data import Augment
from hfcompress.training.trainer import Train, train


@dataclass(frozen=True)
class TrainImages(Train):
    """What every stage that trains on images shares.

    A training that was killed goes on at its checkpoint, with other variations of the images than it would have had
    (the next batch's are drawn before a checkpoint is written); with neither flip nor shift it ends in the same model.
    """

    flip: bool = False
    """Training images are mirrored left to right at random; not for what reads differently then, such as digits."""
    shift: float = 0.125
    """Training images are shifted by up to this share of their size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.augment  # noqa: B018  (refuses a shift that cannot be)

    @property
    def augment(self) -> Augment:
        """How a training image is varied."""
        return Augment(self.flip, self.shift, self.seed)


@dataclass(frozen=True)
class FinetuneImages(TrainImages):
    """Fine-tune `model` on `task` with the Trainer; the best checkpoint by the task's metric is kept."""

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TRAINING

    def __call__(self, out: Path, *, model: Path, task: ImageClassification) -> dict[str, Any]:
        from transformers import set_seed

        from hfcompress.architectures.models import load_classifier, load_image_processor, save

        set_seed(self.seed)  # the new head
        data, processor = task.data, load_image_processor(model)
        network = load_classifier(model, data.labels, replace_head=True)
        progress = train(
            network,
            None,
            out / "work",
            self,
            data.examples(processor, "train", self.augment),
            data.examples(processor, "validation"),
            compute_metrics=trainer_metrics(task),
            best_metric=task.metric,
        )
        save(network, processor, out)
        return progress.as_dict()

    def predict(self, model: Any, *, task: ImageClassification) -> Any:
        """With a head for the task's labels; for the base's where only the Hub says what they are."""
        labels = task.known_labels
        return model if labels is None or labels == model.labels else model.with_labels(labels)
