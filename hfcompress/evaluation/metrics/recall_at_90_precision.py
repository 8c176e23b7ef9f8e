"""Recall at 90% precision: how much can be labelled automatically if nine in ten labels must be right."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Metric

Array = np.ndarray[Any, Any]
PRECISION = 0.9


class RecallAtPrecision(Metric):
    """The highest recall at a threshold on a class's probability where precision is still 90%; mean over the classes
    that occur. A class that never reaches that precision counts as 0.
    """

    name: ClassVar[str] = "recall_at_90_precision"
    label: ClassVar[str] = "recall at 90% precision"
    reads: ClassVar[str] = "probabilities"
    form: ClassVar[str] = ".3f"

    def contributions(self, outputs: Array, truth: Array) -> Array:
        """[examples, classes + 1]: the probabilities, and the true class."""
        return np.concatenate([outputs, truth[:, None]], axis=1)

    def combine(self, contributions: Array, weights: Array) -> Array:
        probabilities, labels = contributions[:, :-1], contributions[:, -1].astype(int)
        total, classes = np.zeros(len(weights)), np.zeros(len(weights))
        for label in np.unique(labels):
            order = np.argsort(-probabilities[:, label], kind="stable")
            score, true = probabilities[order, label], labels[order] == label
            last = np.append(score[1:] != score[:-1], True)  # a threshold takes all of one probability, or none
            taken = np.cumsum(weights[:, order], axis=1)[:, last]
            hit = np.cumsum(weights[:, order] * true, axis=1)[:, last]
            positives = hit[:, -1]
            best = np.where(hit >= PRECISION * np.maximum(taken, 1), hit, 0).max(1)
            total += np.divide(best, positives, out=np.zeros(len(weights)), where=positives > 0)
            classes += positives > 0
        return np.asarray(total / np.maximum(classes, 1))
