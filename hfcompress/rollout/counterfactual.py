"""What a metric would have been under another model, from answers that were drawn at random.

Assumptions, printed with every estimate: the recorded propensities are those the answers were drawn with, every answer
that the new model gives had a chance of being given, and the outcome depends on the answer given and not on other
requests.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ASSUMPTIONS = (
    "assumes that the recorded propensities are those the answers were drawn with, that every answer of the model "
    "could have been drawn, and that requests do not influence each other"
)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over groups."""

    value: float
    standard_error: float
    n: int
    effective_n: float
    """How many events that all weigh the same would say as much (Kish): a few heavy ones say little."""


def inverse_propensity(match: Array, propensity: Array, outcome: Array, groups: Array) -> Estimate:
    """Mean of outcome x [the model gives the recorded answer] / propensity (Horvitz and Thompson 1952).

    Args:
        match: [events] bool; propensity, outcome: [events]; groups: [events] int, what is independent.
    """
    weight = match / propensity
    return clustered(weight * outcome, groups, weight)


def doubly_robust(
    match: Array, propensity: Array, outcome: Array, groups: Array, expected_new: Array, expected_given: Array
) -> Estimate:
    """The expected outcome of the model's answers, corrected where its answer was given (Dudik et al. 2011, eq. 2).

    Right when either the propensities or the expectations are.

    Args:
        expected_new, expected_given: [events] outcome expected of the model's answer, and of the one that was given.
    """
    weight = match / propensity
    return clustered(expected_new + weight * (outcome - expected_given), groups, weight)


def expected_by_label(given: Array, propensity: Array, outcome: Array, labels: int) -> Array:
    """Expected outcome of each label [labels]: mean outcome where it was given, weighted by 1 / propensity.

    A label that was never given is expected to do as well as all together.
    """
    weight = 1 / propensity
    total, weights = np.bincount(given, weight * outcome, labels), np.bincount(given, weight, labels)
    everywhere = float((weight * outcome).sum() / weight.sum())
    return np.divide(total, weights, out=np.full(labels, everywhere), where=weights > 0)


def clustered(values: Array, groups: Array, weight: Array) -> Estimate:
    """The mean of values, its standard error counting groups and not events."""
    mean = float(values.mean())
    residuals = np.bincount(groups, values - mean)
    count = len(residuals)
    error = float(np.sqrt((residuals**2).sum() * count / max(count - 1, 1)) / len(values))
    squares = float((weight**2).sum())
    return Estimate(mean, error, len(values), float(weight.sum() ** 2 / squares) if squares else 0.0)
