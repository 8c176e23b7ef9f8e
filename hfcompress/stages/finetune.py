"""finetune: a pretrained encoder becomes a teacher for the task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from hfcompress.shape import Shape
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training import Train


@dataclass(frozen=True)
class Finetune(Train):
    """Fine-tune `model` on `task` with the Trainer; the best checkpoint by the task's metric is kept."""

    pooling: Literal["cls", "mean"] = "cls"
    """What the base was made for: its [CLS] (BERT), or the mean of all tokens (sentence-transformers)."""

    training: ClassVar[bool] = True

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from transformers import set_seed

        from hfcompress import bert
        from hfcompress.evaluation.accuracy import trainer_metrics
        from hfcompress.models import load_classifier, load_tokenizer, save
        from hfcompress.training import train

        set_seed(self.seed)  # the new head
        data = task.data
        tokenizer = load_tokenizer(model)
        network = load_classifier(model, data.labels)
        if self.pooling == "mean":
            bert.require_bert(network)
            bert.start_as_mean(network)
        progress = train(
            network,
            tokenizer,
            out / "work",
            self,
            data.encode(tokenizer, task.max_length, "train"),
            data.encode(tokenizer, task.max_length, "validation"),
            compute_metrics=trainer_metrics,
            best_metric=task.metric,
        )
        save(network, tokenizer, out)
        return progress.as_dict()

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        return model
