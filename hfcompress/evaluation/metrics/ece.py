"""Expected calibration error: how far confidence and accuracy lie apart."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Metric

Array = np.ndarray[Any, Any]
BINS = 15


class CalibrationError(Metric):
    """Expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2).

    Examples in 15 equal-width bins by the probability of their label; mean |accuracy - confidence| over the bins,
    weighted by their size.
    """

    name: ClassVar[str] = "ece"
    label: ClassVar[str] = "calibration error"
    reads: ClassVar[str] = "probabilities"
    larger_is_better: ClassVar[bool] = False
    form: ClassVar[str] = ".3f"

    def contributions(self, outputs: Array, truth: Array) -> Array:
        """[examples, 2]: the bin, and how much less sure than right the answer is."""
        confidence = outputs.max(axis=1)
        gap = (outputs.argmax(axis=1) == truth) - confidence
        return np.stack([np.minimum((confidence * BINS).astype(int), BINS - 1), gap], axis=1)

    def combine(self, contributions: Array, weights: Array) -> Array:
        bin_of, gap = contributions.T
        sums = np.stack([weights @ np.where(bin_of == b, gap, 0.0) for b in np.unique(bin_of)])
        return np.asarray(np.abs(sums).sum(0) / weights.sum(1))
