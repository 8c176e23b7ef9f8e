"""Accuracy of a classifier from its logits: totals, classes, recall at a fixed precision, calibration."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import EvalPrediction

Array = np.ndarray[Any, Any]
METRICS = Path(__file__).parent / "metrics"


def trainer_metrics(prediction: "EvalPrediction") -> dict[str, float]:
    """What the Trainer chooses the best checkpoint by: accuracy and macro_f1."""
    from sklearn.metrics import accuracy_score, f1_score

    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    predicted, labels = np.asarray(logits).argmax(axis=1), prediction.label_ids
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def evaluate_logits(logits: Array, labels: Array, names: list[str]) -> dict[str, Any]:
    """Every metric of a classifier.

    Args:
        logits: [n, classes]; labels: [n]; names: of the classes.

    Returns: accuracy, micro_f1, macro_f1 (over the classes that are true or predicted), recall_at_90_precision (mean
        over the classes that occur), ece (expected calibration error), per_class (name -> precision, recall, f1, n).
    """
    from scipy.special import softmax

    predicted = {"predictions": logits.argmax(axis=1), "references": labels}
    probable = {"predictions": softmax(logits.astype(np.float64), axis=1).tolist(), "references": labels}
    return {
        **load_metric("f1_totals").compute(**predicted),
        **load_metric("recall_at_precision").compute(**probable),
        **load_metric("calibration_error").compute(**probable),
        **load_metric("per_class").compute(**predicted, names=names),
    }


def load_metric(name: str) -> Any:
    """One of the metric modules in `metrics/`, through the evaluate library, without network."""
    import evaluate

    return evaluate.load(str(METRICS / f"{name}.py"))
