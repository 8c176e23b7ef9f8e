"""Micro-F1: F1 of all decisions together; with one label an example it is the accuracy."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.confusion import OfLabels

Array = np.ndarray[Any, Any]


class MicroF1(OfLabels):
    """Micro-F1: F1 of all decisions together; with one label an example it is the accuracy."""

    name: ClassVar[str] = "micro_f1"
    label: ClassVar[str] = "micro-F1"
    shown: ClassVar[bool] = False  # it says no more than the accuracy
    hub: ClassVar[str] = "f1"

    def of(self, sums: Array) -> Array:
        hit, decided = np.trace(sums, axis1=-2, axis2=-1), 2 * sums.sum(axis=(-2, -1))
        return np.divide(2 * hit, decided, out=np.zeros(decided.shape), where=decided > 0)
