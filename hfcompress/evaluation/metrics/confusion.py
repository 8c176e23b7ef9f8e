"""Metrics of class ids: all are read from a confusion matrix, which is what an example adds 1 to."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Additive

Array = np.ndarray[Any, Any]


class OfLabels(Additive):
    """A metric of confusion matrices [..., classes (true), classes (predicted)]."""

    reads: ClassVar[str] = "labels"

    def contributions(self, outputs: Array, truth: Array) -> Array:
        return self.sums(outputs, truth, np.arange(len(truth)), len(truth))

    def sums(self, outputs: Array, truth: Array, groups: Array, count: int) -> Array:
        """Return a confusion matrix for each group; no matrix for each example is made."""
        predicted = predicted_ids(outputs)
        classes = outputs.shape[1] if outputs.ndim > 1 else int(max(predicted.max(), truth.max())) + 1
        return confusions(truth, predicted, groups, count, classes)


def predicted_ids(outputs: Array) -> Array:
    """Return class ids [examples] of logits [examples, classes], or those that were given."""
    return outputs if outputs.ndim == 1 else np.asarray(outputs.argmax(axis=1))


def confusions(truth: Array, predicted: Array, groups: Array, count: int, classes: int) -> Array:
    """Return a confusion matrix for each group, [count, classes (true), classes (predicted)]."""
    found = np.zeros((count, classes, classes))
    np.add.at(found, (groups, truth, predicted), 1)
    return found


def class_f1(confusion: Array) -> Array:
    """Return F1 of each class [..., classes]; 0 where a class is neither true nor predicted."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    total = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return np.divide(2 * hit, total, out=np.zeros(hit.shape), where=total > 0)


def class_recall(confusion: Array) -> Array:
    """Return recall of each class [..., classes]."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    total = confusion.sum(axis=-1)
    return np.divide(hit, total, out=np.zeros(hit.shape), where=total > 0)


class ClassF1(OfLabels):
    """F1 of one class, in report.json `f1:` and its label; made for each, and in no table."""

    name: ClassVar[str] = "f1"
    label: ClassVar[str] = "F1"

    def __init__(self, number: int) -> None:
        self.number = number

    def of(self, sums: Array) -> Array:
        return np.asarray(class_f1(sums)[..., self.number])
