"""Macro-F1: the mean F1 over the classes that are true or predicted at least once, as scikit-learn's."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.confusion import OfLabels, class_f1

Array = np.ndarray[Any, Any]


class MacroF1(OfLabels):
    """Macro-F1: the mean F1 over the classes that are true or predicted at least once."""

    name: ClassVar[str] = "macro_f1"
    label: ClassVar[str] = "macro-F1"
    hub: ClassVar[str] = "f1"

    def of(self, sums: Array) -> Array:
        present = (sums.sum(axis=-1) + sums.sum(axis=-2)) > 0
        count = present.sum(axis=-1)
        return np.divide(class_f1(sums).sum(axis=-1), count, out=np.zeros(count.shape), where=count > 0)
