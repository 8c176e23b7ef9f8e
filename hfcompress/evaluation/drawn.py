"""Answers on a test split, drawn again by whole groups: every interval and every paired difference of a metric.

Texts of one group (a contract, a licence) resemble each other: see statistics.py.
"""

import math
from functools import cached_property
from typing import Any

import numpy as np

from hfcompress.evaluation.metrics.metric import Additive, Metric
from hfcompress.evaluation.statistics import Difference, unseen

Array = np.ndarray[Any, Any]
DRAWS_AT_ONCE = 256


class Drawn:
    """A model's answers, and draws of them: the same for all models of a split, with one seed.

    Args:
        outputs: logits [examples, labels], or what else the metrics read.
        truth: [examples, ...]; groups: of each example.
        probabilities: [examples, labels], for the metrics that read them; the softmax of the outputs unless given.
    """

    def __init__(
        self,
        outputs: Array,
        truth: Array,
        groups: list[str],
        *,
        resamples: int,
        seed: int,
        probabilities: Array | None = None,
    ) -> None:
        self.outputs, self.truth, self.resamples, self.seed = outputs, truth, resamples, seed
        names, self.number = np.unique(np.array(groups), return_inverse=True)
        self.groups = len(names)
        self.given = probabilities
        self.summed: dict[Any, Array] = {}
        self.kept: dict[Any, Array] = {}

    @cached_property
    def weights(self) -> Array:
        """How often each group is drawn, [resamples, groups]."""
        return group_weights(self.groups, self.resamples, self.seed)

    @cached_property
    def probabilities(self) -> Array:
        from scipy.special import softmax

        return np.asarray(softmax(self.outputs.astype(np.float64), axis=1)) if self.given is None else self.given

    def read(self, metric: Metric) -> Array:
        """Return the outputs as a metric reads them."""
        return self.probabilities if metric.reads == "probabilities" else self.outputs

    def sums(self, metric: Additive) -> Array:
        """Return the contributions of each group, which metrics that add the same share."""
        kind = type(metric).sums, type(metric).contributions
        if kind not in self.summed:
            self.summed[kind] = metric.sums(self.read(metric), self.truth, self.number, self.groups)
        return self.summed[kind]

    def value(self, metric: Metric) -> float:
        """Return the metric of the answers themselves."""
        if isinstance(metric, Additive):
            return float(metric.of(self.sums(metric).sum(axis=0)))
        return metric.value(self.read(metric), self.truth)

    def values(self, metric: Metric) -> Array:
        """Return the metric of every draw, [resamples]."""
        if isinstance(metric, Additive):
            sums = self.sums(metric)
            kind = type(metric).sums, type(metric).contributions
            if kind not in self.kept:
                flat = self.weights.astype(np.float64) @ sums.reshape(self.groups, -1)
                self.kept[kind] = flat.reshape(self.resamples, *sums.shape[1:])
            return metric.of(self.kept[kind])
        found = metric.contributions(self.read(metric), self.truth)
        parts = [self.weights[start : start + DRAWS_AT_ONCE] for start in range(0, self.resamples, DRAWS_AT_ONCE)]
        return np.concatenate([metric.combine(found, part[:, self.number]) for part in parts])

    def interval(self, metric: Metric) -> list[float]:
        """Return the two-sided 95% percentile interval of a metric."""
        return percentiles(self.values(metric))


def group_weights(groups: int, resamples: int, seed: int) -> Array:
    """Return how often each group is drawn, [resamples, groups]: the same draws for every model."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)


def percentiles(drawn: Array) -> list[float]:
    """Return the 95% percentile interval of a metric's values in all draws, [draws]."""
    return [float(value) for value in np.quantile(drawn, [0.025, 0.975])]


def paired_difference(
    reference: Drawn, candidate: Drawn, metric: Metric, confidence: float, n: int | None = None
) -> Difference:
    """Return the change of a metric from one model's answers to another's, on the same draws; below 0 is worse.

    Args:
        n: what the examples stand for, where that is another number: the tokens of documents.
    """
    change = metric.change(reference.values(metric), candidate.values(metric))
    lower, upper = (float(bound) for bound in np.quantile(change, [1 - confidence, confidence]))
    value = float(metric.change(reference.value(metric), candidate.value(metric)))
    n = len(reference.truth) if n is None else n
    if not metric.share and math.isfinite(metric.bounds[1]):
        # One group is one observation: its draws are all the same.
        least = unseen(n if reference.groups > 1 else 1, confidence)
        lower, upper = max(-1.0, min(lower, value - least)), min(1.0, max(upper, value + least))
    return Difference(value, lower, upper, float(change.std(ddof=1)), confidence, n, reference.groups)
