"""Precision, recall and F1 of each class."""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import precision_recall_fscore_support

_DESCRIPTION = """
Precision, recall, F1 and number of true examples of each class; 0 where a class is never predicted.
"""


class PerClass(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: class ids; references: class ids; names: of the classes",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, names: list[str]) -> dict[str, Any]:
        columns = precision_recall_fscore_support(
            references, predictions, labels=np.arange(len(names)), zero_division=0
        )
        return {
            "per_class": {
                name: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
                for name, p, r, f, n in zip(names, *columns, strict=True)
            }
        }
