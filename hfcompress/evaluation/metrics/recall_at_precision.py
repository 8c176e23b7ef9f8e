"""Recall at 90% precision: how much can be labelled automatically if nine in ten labels must be right."""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import precision_recall_curve

_DESCRIPTION = """
The highest recall at a threshold on a class's probability where precision is still 90%; mean over the classes
that occur. A class that never reaches that precision counts as 0.
"""


class RecallAtPrecision(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: probabilities [n, classes]; references: class ids; precision: 0.9",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, precision: float = 0.9) -> dict[str, Any]:
        probabilities, labels = np.asarray(predictions), np.asarray(references)
        recalls = []
        for label in np.unique(labels):
            reached, recall, _ = precision_recall_curve(labels == label, probabilities[:, label])
            recalls.append(float(recall[reached >= precision].max()))
        return {f"recall_at_{round(100 * precision)}_precision": float(np.mean(recalls))}
