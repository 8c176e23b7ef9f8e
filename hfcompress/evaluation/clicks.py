"""How good a click model is: the metrics of a click log, with intervals and paired differences that count whole users.

Intervals are of the delta method: what each row moves a metric by, to first order, is summed up by user.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from hfcompress.evaluation.metrics import METRICS, metrics_of
from hfcompress.evaluation.metrics.click_ece import bins_of
from hfcompress.evaluation.metrics.ctr import chosen_rows
from hfcompress.evaluation.statistics import Difference, linearized

Array = np.ndarray[Any, Any]
MEASURED = ("auc", "ctr", "log_loss", "click_ece", "conversion_auc")


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

    def contributions(self, name: str) -> Array | None:
        """Return what each row contributes to a metric; None of an AUC of what always or never happened."""
        outputs = np.stack([self.score, self.conversion_score], axis=1)
        truth = np.stack([self.click, self.conversion, self.request], axis=1)
        if name == "conversion_auc" and not 0 < int(self.conversion.sum()) < len(self.conversion):
            return None
        return METRICS[name].contributions(outputs, truth)

    def value(self, name: str) -> float:
        """Return a metric that has contributions."""
        found = self.contributions(name)
        assert found is not None
        return value_of(name, found)


def value_of(name: str, contributions: Array) -> float:
    return float(METRICS[name].combine(contributions, np.ones((1, len(contributions))))[0])


def influence_by_user(name: str, contributions: Array, user: Array) -> Array:
    """Return how far each user moves a metric to first order, [users], sum 0."""
    metric: Any = METRICS[name]
    return by_user(metric.influence(contributions), user)


def by_user(values: Array, user: Array) -> Array:
    """Sums over users, [users]."""
    return np.bincount(np.unique(user, return_inverse=True)[1], values)


def calibration_bins(probability: Array, happened: Array) -> list[dict[str, float]]:
    """Return the bins of the calibration error: predicted, observed, n."""
    return [
        {"predicted": float(probability[part].mean()), "observed": float(happened[part].mean()), "n": float(len(part))}
        for part in bins_of(probability)
    ]


def summary(judged: Judged) -> dict[str, Any]:
    """Every figure of one model; `ci95` has two-sided intervals over users."""
    found: dict[str, Any] = {"ci95": {}}
    z = float(norm.ppf(0.975))
    for said, metric in metrics_of(MEASURED).items():
        contributions = judged.contributions(metric.name)
        found[said] = None
        if contributions is not None:
            found[said] = value_of(metric.name, contributions)
            influence = influence_by_user(metric.name, contributions, judged.user)
            found["ci95"][said] = interval(found[said], influence, z)
    bought = 1 / (1 + np.exp(-judged.conversion_score.astype(np.float64)))
    return found | {
        "predicted_ctr": float(judged.probability.mean()),
        "observed_ctr": float(judged.click.mean()),
        "calibration": calibration_bins(judged.probability, judged.click),
        "predicted_conversion": float(bought.mean()),
        "observed_conversion": float(judged.conversion.mean()),
    }


def interval(value: float, influence: Array, z: float) -> list[float]:
    error = float(np.sqrt((influence**2).sum() * len(influence) / max(len(influence) - 1, 1)))
    return [value - z * error, value + z * error]


def differences(reference: Judged, candidate: Judged, confidence: float) -> dict[str, Difference]:
    """Candidate minus reference: `auc` as it is, `ctr` as a share of the reference's (-0.005: half a percent lost)."""
    return {
        "auc": difference("auc", reference, candidate, confidence, len(reference.click)),
        "ctr": difference("ctr", reference, candidate, confidence, len(reference.chosen)),
    }


def difference(name: str, reference: Judged, candidate: Judged, confidence: float, n: int) -> Difference:
    """Return the paired difference of a metric; of one that is compared as a share, in shares of the reference's."""
    metric = METRICS[name]
    found = [(judged, judged.contributions(name)) for judged in (reference, candidate)]
    values, influences = [], []
    for judged, contributions in found:
        assert contributions is not None
        values.append(value_of(name, contributions))
        influences.append(influence_by_user(name, contributions, judged.user))
    (before, after), (old, new) = values, influences
    moved = (new - after / before * old) / before if metric.share else new - old
    return linearized(float(metric.change(before, after)), moved, n, confidence)
