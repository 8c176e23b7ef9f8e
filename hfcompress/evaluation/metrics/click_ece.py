"""Expected calibration error of click probabilities, over bins of equally many rows."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Metric

Array = np.ndarray[Any, Any]
BINS = 20


class ClickCalibrationError(Metric):
    """Mean |predicted - observed| click-through rate over 20 bins of equally many rows, by predicted probability.

    Rows of equal probability stand in the order of the log.
    """

    name: ClassVar[str] = "click_ece"
    key: ClassVar[str] = "ece"
    label: ClassVar[str] = "ECE"
    reads: ClassVar[str] = "clicks"
    larger_is_better: ClassVar[bool] = False

    def contributions(self, outputs: Array, truth: Array) -> Array:
        """[rows, 2]: the probability, and whether a click happened."""
        return np.stack([1 / (1 + np.exp(-outputs[:, 0].astype(np.float64))), truth[:, 0]], axis=1)

    def combine(self, contributions: Array, weights: Array) -> Array:
        order = np.argsort(contributions[:, 0], kind="stable")
        gaps = contributions[order, 0] - contributions[order, 1]
        found = []
        for counts in weights[:, order].astype(int):
            parts = np.array_split(np.repeat(gaps, counts), BINS)
            found.append(sum(abs(part.sum()) for part in parts) / max(counts.sum(), 1))
        return np.array(found)

    def influence(self, contributions: Array) -> Array:
        """Return how far each row moves the value to first order, as long as no bin's gap is near 0."""
        gaps = calibration_gaps(contributions[:, 0], contributions[:, 1])
        return np.asarray((gaps - gaps.mean()) / len(gaps))

    def nearness(self, claimed: float) -> float:
        return 0.001


def bins_of(probability: Array, bins: int = BINS) -> list[Array]:
    """Return rows in the order of their probability, in parts of equally many."""
    return [part for part in np.array_split(np.argsort(probability, kind="stable"), bins) if len(part)]


def calibration_gaps(probability: Array, happened: Array, bins: int = BINS) -> Array:
    """Return what each row adds to the calibration error, [rows]; their mean is the error.

    Predicted minus observed, with the sign that its bin has.
    """
    gaps = (probability - happened).astype(np.float64)
    for part in bins_of(probability, bins):
        gaps[part] *= np.sign(gaps[part].mean())
    return gaps
