"""Is the small model as good? Paired differences, resampled by whole groups, and a verdict with three answers.

Texts of one group (a contract, a licence) resemble each other, so that n texts are less evidence than n independent
ones. The bootstrap (drawn.py) therefore draws whole groups (Field and Welsh 2007, "Bootstrapping clustered data",
section 3; Davison and Hinkley 1997, section 3.8); intervals are percentile intervals (Efron and Tibshirani 1993,
chapter 13).
A bootstrap knows no loss that the sample does not hold, so no bound lies nearer to the difference than what n texts
can leave unseen.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

Array = np.ndarray[Any, Any]


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
