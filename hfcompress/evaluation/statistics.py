"""Is the small model as good? Paired differences, resampled by whole groups, and a verdict with three answers.

Texts of one group (a contract, a licence) resemble each other, so that n texts are less evidence than n independent
ones. The bootstrap therefore draws whole groups (Field and Welsh 2007, "Bootstrapping clustered data", section 3;
Davison and Hinkley 1997, section 3.8); intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13).
A bootstrap knows no loss that the sample does not hold, so no bound lies nearer to the difference than what n texts
can leave unseen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

Array = np.ndarray[Any, Any]
Metric = Callable[[Array], Array]


@dataclass(frozen=True)
class Difference:
    """Candidate minus reference on the same examples, with one-sided bounds at `confidence`."""

    difference: float
    lower_bound: float
    upper_bound: float
    standard_error: float
    confidence: float
    n: int
    groups: int


def accuracy(confusion: Array) -> Array:
    """Share on the diagonal of confusion matrices [..., classes (true), classes (predicted)]."""
    total = confusion.sum(axis=(-2, -1))
    return np.divide(np.trace(confusion, axis1=-2, axis2=-1), total, out=np.zeros(total.shape), where=total > 0)


def class_f1(confusion: Array) -> Array:
    """F1 of each class [..., classes]; 0 where a class is neither true nor predicted."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    total = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return np.divide(2 * hit, total, out=np.zeros(hit.shape), where=total > 0)


def class_recall(confusion: Array) -> Array:
    """Recall of each class [..., classes]."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    total = confusion.sum(axis=-1)
    return np.divide(hit, total, out=np.zeros(hit.shape), where=total > 0)


def macro_f1(confusion: Array) -> Array:
    """Mean F1 over the classes that are true or predicted at least once, as scikit-learn's."""
    present = (confusion.sum(axis=-1) + confusion.sum(axis=-2)) > 0
    count = present.sum(axis=-1)
    return np.divide(class_f1(confusion).sum(axis=-1), count, out=np.zeros(count.shape), where=count > 0)


METRICS: dict[str, Metric] = {"accuracy": accuracy, "macro_f1": macro_f1}


def group_confusions(labels: Array, predicted: Array, groups: list[str], classes: int) -> Array:
    """A confusion matrix for each group: [groups, classes (true), classes (predicted)], groups in sorted order."""
    number = {group: i for i, group in enumerate(sorted(set(groups)))}
    counts = np.zeros((len(number), classes, classes))
    np.add.at(counts, (np.array([number[group] for group in groups]), labels, predicted), 1)
    return counts


def resampled(confusions: Array, resamples: int, seed: int) -> Array:
    """Confusion matrices of `resamples` draws of whole groups with replacement: [resamples, classes, classes]."""
    groups, classes, _ = confusions.shape
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return (weights.astype(np.float64) @ confusions.reshape(groups, -1)).reshape(resamples, classes, classes)


def interval(confusions: Array, metric: Metric, resamples: int, seed: int) -> tuple[float, float]:
    """Two-sided 95% percentile interval of a metric."""
    low, high = np.quantile(metric(resampled(confusions, resamples, seed)), [0.025, 0.975])
    return float(low), float(high)


def paired_difference(
    reference: Array, candidate: Array, metric: Metric, *, confidence: float, resamples: int, seed: int
) -> Difference:
    """Bootstrap `metric(candidate) - metric(reference)` over the same draws of groups for both.

    Args:
        reference, candidate: `group_confusions` of the two models on the same examples.
    """
    draws = (resampled(reference, resamples, seed), resampled(candidate, resamples, seed))
    return difference_of_draws(reference, candidate, draws, metric, confidence)


def difference_of_draws(
    reference: Array, candidate: Array, draws: tuple[Array, Array], metric: Metric, confidence: float
) -> Difference:
    """The same from draws that are there already, as they serve many metrics.

    Args:
        draws: `resampled` of reference and candidate with the same seed.
    """
    change = metric(draws[1]) - metric(draws[0])
    lower, upper = np.quantile(change, [1 - confidence, confidence])
    value = float(metric(candidate.sum(axis=0)) - metric(reference.sum(axis=0)))
    n, groups = int(reference.sum()), len(reference)
    least = unseen(n if groups > 1 else 1, confidence)  # one group is one observation: its draws are all the same
    return Difference(
        value,
        max(-1.0, min(float(lower), value - least)),
        min(1.0, max(float(upper), value + least)),
        float(change.std(ddof=1)),
        confidence,
        n,
        groups,
    )


def unseen(n: int, confidence: float) -> float:
    """The largest share of texts of which none may be among n independent ones: 1 - (1 - confidence)^(1/n).

    About 3/n at 95%: the rule of three (Hanley and Lippman-Hand 1983, "If nothing goes wrong, is everything all
    right?"). Texts of one group are fewer than n independent ones, so this is the least that can be left unseen.
    """
    return float(1 - (1 - confidence) ** (1 / n))


def verdict(difference: Difference, allowed: float) -> str:
    """Whether the drop is "shown" to lie within `allowed` (even the lower bound does), "exceeded", or neither."""
    if difference.lower_bound >= -allowed:
        return "shown"
    return "exceeded" if difference.upper_bound < -allowed else "cannot be shown"


def n_needed(difference: Difference, allowed: float) -> int | None:
    """Examples that would show the observed difference to lie within `allowed`; None if it does not lie there.

    None also for a single group: more of its texts would show nothing.

    The bound is value - z * se, and se falls with the square root of n at the same clustering (the design effect is in
    se already), so n grows by (z * se / (value + allowed))^2; and never fewer than leave value + allowed `unseen`.
    """
    slack = difference.difference + allowed
    if slack <= 0 or difference.groups == 1:
        return None
    z = float(norm.ppf(difference.confidence))
    by_spread = difference.n * (z * difference.standard_error / slack) ** 2
    by_unseen = math.log(1 - difference.confidence) / math.log(1 - slack) if slack < 1 else 1.0
    return max(1, math.ceil(by_spread), math.ceil(by_unseen))


def linearized(value: float, influence: Array, n: int, confidence: float) -> Difference:
    """A difference whose standard error comes from what each group contributes to it (the delta method).

    Args:
        value: candidate minus reference; influence: [groups], to first order how far each group moves the value, sum 0
            (Obuchowski 1997 for the AUC of clustered data; Deng et al. 2018, section 3, for a ratio of sums).
        n: examples.
    """
    groups = len(influence)
    error = float(np.sqrt((influence**2).sum() * groups / max(groups - 1, 1)))
    reach = max(float(norm.ppf(confidence)) * error, unseen(n if groups > 1 else 1, confidence))
    return Difference(value, max(-1.0, value - reach), min(1.0, value + reach), error, confidence, n, groups)
