"""Intervals of the metrics that read probabilities and not only labels, resampled by whole groups.

As in statistics.py; a draw gives each text the weight of its group, and the metric is computed from weighted texts,
for many draws at once.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
DRAWS_AT_ONCE = 256


def text_weights(groups: list[str], resamples: int, seed: int) -> Array:
    """How often each text is drawn, [resamples, texts]: the draws that statistics.resampled makes."""
    names, number = np.unique(np.array(groups), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return np.asarray(drawn[:, number])


def scored(
    logits: Array, labels: Array, names: list[str], groups: list[str], *, resamples: int, seed: int
) -> dict[str, Any]:
    """`evaluate_logits` and, as `ci95`, a 95% interval of each of its totals; of each class's F1 as its `f1_ci95`.

    Args:
        logits: [texts, classes]; labels: [texts]; names: of the classes; groups: of each text.
    """
    from scipy.special import softmax

    from hfcompress.evaluation.accuracy import evaluate_logits
    from hfcompress.evaluation.statistics import METRICS, class_f1, group_confusions, interval, resampled

    confusions = group_confusions(labels, logits.argmax(axis=1), groups, len(names))
    intervals = {name: list(interval(confusions, compute, resamples, seed)) for name, compute in METRICS.items()}
    intervals["micro_f1"] = intervals["accuracy"]  # with one label an example they are one
    probabilities = softmax(logits.astype(np.float64), axis=1)
    intervals |= probability_intervals(probabilities, labels, groups, resamples=resamples, seed=seed)
    every, of_classes = evaluate_logits(logits, labels, names), class_f1(resampled(confusions, resamples, seed))
    for i, name in enumerate(names):
        every["per_class"][name]["f1_ci95"] = percentiles(of_classes[:, i])
    return every | {"ci95": intervals}


def percentiles(drawn: Array) -> list[float]:
    """The 95% percentile interval of a metric's values in all draws, [draws]."""
    return [float(value) for value in np.quantile(drawn, [0.025, 0.975])]


def probability_intervals(
    probabilities: Array, labels: Array, groups: list[str], *, resamples: int, seed: int
) -> dict[str, list[float]]:
    """95% percentile intervals of `recall_at_90_precision` and `ece`, as metrics/ defines them.

    Args:
        probabilities: [texts, classes]; labels: [texts]; groups: of each text.
    """
    weights = text_weights(groups, resamples, seed)
    parts = [weights[start : start + DRAWS_AT_ONCE] for start in range(0, resamples, DRAWS_AT_ONCE)]
    drawn = {
        "recall_at_90_precision": [drawn_recall(probabilities, labels, part, 0.9) for part in parts],
        "ece": [drawn_calibration_error(probabilities, labels, part) for part in parts],
    }
    return {name: percentiles(np.concatenate(values)) for name, values in drawn.items()}


def drawn_recall(probabilities: Array, labels: Array, weights: Array, precision: float) -> Array:
    """Mean over the classes that a draw holds of the highest recall at which precision is reached, [draws]."""
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for label in np.unique(labels):
        order = np.argsort(-probabilities[:, label], kind="stable")
        score, true = probabilities[order, label], labels[order] == label
        last = np.append(score[1:] != score[:-1], True)  # a threshold takes all texts of one probability, or none
        taken = np.cumsum(weights[:, order], axis=1)[:, last]
        hit = np.cumsum(weights[:, order] * true, axis=1)[:, last]
        positives = hit[:, -1]
        reached = hit >= precision * np.maximum(taken, 1)
        best = np.where(reached, hit, 0).max(1)
        total += np.divide(best, positives, out=np.zeros(len(weights)), where=positives > 0)
        classes += positives > 0
    return np.asarray(total / np.maximum(classes, 1))


def drawn_calibration_error(probabilities: Array, labels: Array, weights: Array, bins: int = 15) -> Array:
    """Expected calibration error of each draw, [draws]."""
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = np.stack([weights @ np.where(bin_of == b, gap, 0.0) for b in np.unique(bin_of)])
    return np.asarray(np.abs(sums).sum(0) / weights.sum(1))
