"""How good a click model is: ranking (AUC), probabilities (log-loss, calibration), and the clicks that it earns.

`ctr` is the click-through rate of what the model would choose: in every request the item with the highest score, whose
click the log has, since all items of a slate were shown. A difference is paired, and counts whole users.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from hfcompress.evaluation.statistics import Difference, linearized

Array = np.ndarray[Any, Any]
BINS = 20


@dataclass(frozen=True)
class Judged:
    """A model's scores on a log: click and conversion logits [rows], and what happened."""

    score: Array
    conversion_score: Array
    click: Array
    conversion: Array
    request: Array
    """[rows]; rows of one request lie together."""
    user: Array

    @property
    def probability(self) -> Array:
        return np.asarray(1 / (1 + np.exp(-self.score.astype(np.float64))))

    @property
    def chosen(self) -> Array:
        """Of each request the row with the highest score (the first of equal ones), [requests]."""
        return chosen_rows(self.request, self.score)


def chosen_rows(request: Array, score: Array) -> Array:
    """The row of each request with the highest score, in the order of the log."""
    start = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
    number = np.repeat(np.arange(len(start)), np.diff(np.r_[start, len(request)]))
    order = np.lexsort((np.arange(len(request)), -score, number))
    return np.asarray(order[start])


def placements(score: Array, happened: Array) -> tuple[float, Array]:
    """AUC, and what each row contributes to it to first order [rows], sum 0 (DeLong et al. 1988, equations 4 to 6).

    A positive's placement is the share of negatives below it, a negative's the share of positives above it.

    Raises:
        ValueError: all or none happened.
    """
    positive = happened.astype(bool)
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        raise ValueError("an AUC needs both outcomes")
    ranks = rankdata(score)
    placed = np.empty(len(score))
    placed[positive] = (ranks[positive] - rankdata(score[positive])) / others
    placed[~positive] = 1 - (ranks[~positive] - rankdata(score[~positive])) / count
    auc = float(placed[positive].mean())
    return auc, (placed - auc) / np.where(positive, count, others)


def by_user(values: Array, user: Array) -> Array:
    """Sums over users, [users]."""
    return np.bincount(np.unique(user, return_inverse=True)[1], values)


def losses(score: Array, happened: Array) -> Array:
    """-log p of what happened, in nats, [rows]."""
    return np.logaddexp(0.0, np.where(happened > 0, -score, score).astype(np.float64))


def log_loss(score: Array, happened: Array) -> float:
    """Their mean."""
    return float(losses(score, happened).mean())


def bins_of(probability: Array, bins: int) -> list[Array]:
    """Rows in the order of their probability, in parts of equally many."""
    return [part for part in np.array_split(np.argsort(probability, kind="stable"), bins) if len(part)]


def calibration_gaps(probability: Array, happened: Array, bins: int = BINS) -> Array:
    """What each row adds to the calibration error, [rows]; their mean is the error.

    Predicted minus observed, with the sign that its bin has: to first order, as long as no bin's gap is near 0.
    """
    gaps = (probability - happened).astype(np.float64)
    for part in bins_of(probability, bins):
        gaps[part] *= np.sign(gaps[part].mean())
    return gaps


def calibration_error(probability: Array, happened: Array, bins: int = BINS) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error over bins of equally many rows, and these: predicted, observed, n."""
    found = [
        {"predicted": float(probability[part].mean()), "observed": float(happened[part].mean()), "n": float(len(part))}
        for part in bins_of(probability, bins)
    ]
    error = sum(one["n"] * abs(one["predicted"] - one["observed"]) for one in found) / len(probability)
    return float(error), found


def summary(judged: Judged) -> dict[str, Any]:
    """Every figure of one model; `ci95` has two-sided intervals over users, by the delta method."""
    auc, influence = placements(judged.score, judged.click)
    ctr, earned = earned_by_user(judged)
    error, bins = calibration_error(judged.probability, judged.click)
    bought = 1 / (1 + np.exp(-judged.conversion_score.astype(np.float64)))
    bought_auc, user = conversions(judged), judged.user
    z = float(norm.ppf(0.975))
    return {
        "auc": auc,
        "ctr": ctr,
        "log_loss": log_loss(judged.score, judged.click),
        "predicted_ctr": float(judged.probability.mean()),
        "observed_ctr": float(judged.click.mean()),
        "ece": error,
        "calibration": bins,
        "conversion_auc": bought_auc[0] if bought_auc else None,
        "predicted_conversion": float(bought.mean()),
        "observed_conversion": float(judged.conversion.mean()),
        "ci95": {
            "auc": interval(auc, by_user(influence, user), z),
            "ctr": interval(ctr, earned[0] - ctr * earned[1], z, earned[1].sum()),
            "log_loss": mean_interval(losses(judged.score, judged.click), user, z),
            "ece": mean_interval(calibration_gaps(judged.probability, judged.click), user, z),
            **({"conversion_auc": interval(bought_auc[0], by_user(bought_auc[1], user), z)} if bought_auc else {}),
        },
    }


def conversions(judged: Judged) -> tuple[float, Array] | None:
    """`placements` of the conversions; None where nothing, or everything, converted."""
    if not 0 < int(judged.conversion.sum()) < len(judged.conversion):
        return None
    return placements(judged.conversion_score, judged.conversion)


def mean_interval(values: Array, user: Array, z: float) -> list[float]:
    """Of a mean over rows [rows], whose users are drawn."""
    mean = float(values.mean())
    return interval(mean, by_user((values - mean) / len(values), user), z)


def interval(value: float, influence: Array, z: float, total: float = 1.0) -> list[float]:
    error = float(np.sqrt((influence**2).sum() * len(influence) / max(len(influence) - 1, 1))) / total
    return [value - z * error, value + z * error]


def earned_by_user(judged: Judged) -> tuple[float, Array]:
    """The click-through rate of the chosen rows; clicks and requests of each user, [2, users]."""
    rows = judged.chosen
    number = np.unique(judged.user, return_inverse=True)[1][rows]
    users = len(np.unique(judged.user))
    clicks, requests = np.bincount(number, judged.click[rows], users), np.bincount(number, minlength=users)
    return float(clicks.sum() / requests.sum()), np.stack([clicks, requests.astype(float)])


def differences(reference: Judged, candidate: Judged, confidence: float) -> dict[str, Difference]:
    """Candidate minus reference: `auc` as it is, `ctr` as a share of the reference's (-0.005: half a percent lost)."""
    (old_auc, old), (new_auc, new) = (placements(judged.score, judged.click) for judged in (reference, candidate))
    (old_ctr, before), (new_ctr, after) = (earned_by_user(judged) for judged in (reference, candidate))
    ratio = new_ctr / old_ctr
    lost = (after[0] - ratio * before[0]) / before[0].sum()
    return {
        "auc": linearized(new_auc - old_auc, by_user(new - old, reference.user), len(old), confidence),
        "ctr": linearized(ratio - 1, lost, len(reference.chosen), confidence),
    }
