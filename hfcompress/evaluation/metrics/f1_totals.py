"""Accuracy, micro-F1 and macro-F1 of class ids."""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score

_DESCRIPTION = """
Accuracy, micro-F1 and macro-F1 (over the classes that are true or predicted at least once).
"""


class F1Totals(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: class ids; references: class ids",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "micro_f1": float(f1_score(references, predictions, average="micro")),
            "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
        }
