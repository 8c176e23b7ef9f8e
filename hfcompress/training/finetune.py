"""finetune: a pretrained encoder becomes a teacher for the task."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.errors import Reason
from hfcompress.evaluation.accuracy import trainer_metrics
from hfcompress.stage import TRAINING
from hfcompress.tasks.splits import EMBEDDED
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.trainer import TrainTexts, train

if TYPE_CHECKING:
    import torch

    from hfcompress.training.trainer import Loss


@dataclass(frozen=True)
class Finetune(TrainTexts):
    """Fine-tune `model` on `task` with the Trainer; the best checkpoint by the task's metric is kept."""

    pooling: Literal["cls", "mean"] = "cls"
    """What the base was made for: its [CLS] (BERT), or the mean of all tokens (sentence-transformers). Recipes take
    the mean only of a base that says so in a folder 1_Pooling, since it gives up the last layer's weights."""

    group_balance: float = 0.0
    """A text's loss counts (texts of its group)^-this: 0 every text alike, 1 every group alike, 0.5 between them.
    Needs a group column: without one each text is a group, and nothing changes."""

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TRAINING

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        found, task = super().unused(inputs), inputs.get("task")
        if task is not None and task.group_column is None and task.dataset != EMBEDDED:
            found["group_balance"] = Reason("without {task.group_column}")
        return found

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from transformers import set_seed

        from hfcompress.architectures import encoders
        from hfcompress.architectures.models import load_classifier, load_tokenizer, save

        set_seed(self.seed)  # the new head
        data = task.data
        tokenizer = load_tokenizer(model)
        network = load_classifier(model, data.labels, replace_head=True)
        if self.pooling == "mean":
            encoders.require_native(network, "pooling", self.pooling)
            encoders.start_as_mean(network)
        progress = train(
            network,
            tokenizer,
            out / "work",
            self,
            data.encode(tokenizer, task.max_length, "train"),
            data.encode(tokenizer, task.max_length, "validation"),
            compute_metrics=trainer_metrics(task),
            best_metric=task.metric,
            loss=self.loss(data.groups("train")) if self.group_balance else None,
        )
        save(network, tokenizer, out)
        return progress.as_dict()

    def loss(self, groups: list[str]) -> "Loss":
        """Cross-entropy in which a group of many texts does not drown the others; weights are 1 on average."""
        import torch

        from hfcompress.ops.losses import weighted_cross_entropy
        from hfcompress.training.teacher_outputs import INPUTS

        count = Counter(groups)
        weights = torch.tensor([float(count[group]) ** -self.group_balance for group in groups])
        weights /= weights.mean()

        def compute(model: Any, batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
            inputs = {name: batch[name] for name in INPUTS if name in batch}
            of_batch = weights[batch["index"].cpu()].to(batch["labels"].device)
            return weighted_cross_entropy(
                model(**inputs).logits, batch["labels"], of_batch, self.label_smoothing_factor
            )

        return compute

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        return model
