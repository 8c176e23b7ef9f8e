"""Metrics of a model's answers: all that a task names, those that choose a checkpoint, and one for `evaluate`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.evaluation.metrics import METRICS, metrics_of

if TYPE_CHECKING:
    from transformers import EvalPrediction

    from hfcompress.tasks.task import Labelled

Array = np.ndarray[Any, Any]
CLASSIFIED = ("accuracy", "micro_f1", "macro_f1", "recall_at_90_precision", "ece")


def trainer_metrics(task: "Labelled") -> "Callable[[EvalPrediction], dict[str, float]]":
    """Return what the Trainer chooses the best checkpoint by: the metrics that the task's budget may limit."""

    def compute(prediction: "EvalPrediction") -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        outputs, truth = np.asarray(logits), np.asarray(prediction.label_ids)
        return {name: metric.value(outputs, truth) for name, metric in metrics_of(task.drops).items()}

    return compute


def evaluate_logits(
    logits: Array, truth: Array, names: list[str], metrics: tuple[str, ...] = CLASSIFIED
) -> dict[str, Any]:
    """Return the metrics of a classifier, and of each class.

    Args:
        logits: [examples, classes]; truth: class ids [examples]; names: of the classes, or none.

    Returns: each metric, and where there are classes per_class (name -> precision, recall, f1, n).
    """
    from scipy.special import softmax

    probabilities = softmax(logits.astype(np.float64), axis=1)
    found = {
        name: metric.value(probabilities if metric.reads == "probabilities" else logits, truth)
        for name, metric in metrics_of(metrics).items()
    }
    return found | ({"per_class": per_class(logits.argmax(axis=1), truth, names)} if names else {})


def per_class(predicted: Array, truth: Array, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return precision, recall, F1 and number of true examples of each class; 0 where a class is never predicted."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(truth, predicted, labels=np.arange(len(names)), zero_division=0)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
        for name, p, r, f, n in zip(names, *columns, strict=True)
    }


def load_metric(name: str) -> Any:
    """Return a metric of the table as one of the evaluate library: add_batch, compute, combine with others."""
    import evaluate
    from datasets import Features, Sequence, Value

    metric = METRICS[name]
    numbers, ids = Sequence(Value("float64")), Value("int64")
    of_clicks = {"predictions": numbers, "references": numbers}
    features = {
        "labels": {"predictions": ids, "references": ids},
        "probabilities": {"predictions": numbers, "references": ids},
        "clicks": of_clicks,
        "tokens": {"predictions": numbers},
    }

    class Module(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=str(type(metric).__doc__),
                citation="",
                inputs_description=f"predictions and references: {metric.reads}, see hfcompress/evaluation/metrics",
                features=Features(features[metric.reads]),
            )

        def _compute(self, predictions: Any, references: Any = None) -> dict[str, float]:
            return {metric.said: metric.value(np.asarray(predictions), np.asarray(references))}

    return Module()
