"""Accuracy: the share of examples that get their true label."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.confusion import OfLabels

Array = np.ndarray[Any, Any]


class Accuracy(OfLabels):
    """Accuracy: the share of examples that get their true label."""

    name: ClassVar[str] = "accuracy"
    label: ClassVar[str] = "accuracy"
    hub: ClassVar[str] = "accuracy"

    def of(self, sums: Array) -> Array:
        total = sums.sum(axis=(-2, -1))
        return np.divide(np.trace(sums, axis1=-2, axis2=-1), total, out=np.zeros(total.shape), where=total > 0)
