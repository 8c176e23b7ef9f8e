"""AUC: how often what happened is ranked above what did not."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Metric

Array = np.ndarray[Any, Any]


class Auc(Metric):
    """Area under the ROC curve of the click's score: the share of pairs of a click and no click in which the click has
    the higher score; equal scores count half.
    """

    name: ClassVar[str] = "auc"
    label: ClassVar[str] = "AUC"
    hub: ClassVar[str] = "auc"
    reads: ClassVar[str] = "clicks"
    column: ClassVar[int] = 0

    def contributions(self, outputs: Array, truth: Array) -> Array:
        """[rows, 2]: the score, and whether it happened."""
        return np.stack([outputs[:, self.column], truth[:, self.column]], axis=1)

    def combine(self, contributions: Array, weights: Array) -> Array:
        order = np.argsort(contributions[:, 0], kind="stable")
        score, happened = contributions[order].T
        first = np.flatnonzero(np.append(True, score[1:] != score[:-1]))  # of each run of equal scores
        counted = weights[:, order].astype(np.float64)
        hit, missed = (np.add.reduceat(counted * of, first, axis=1) for of in (happened > 0, happened == 0))
        below = np.cumsum(missed, axis=1) - missed / 2
        pairs = hit.sum(axis=1) * missed.sum(axis=1)
        return np.divide((hit * below).sum(axis=1), pairs, out=np.full(len(pairs), 0.5), where=pairs > 0)

    def influence(self, contributions: Array) -> Array:
        """Return how far each row moves the value to first order, [rows], sum 0 (see `placements`)."""
        return placements(contributions[:, 0], contributions[:, 1])[1]

    def nearness(self, claimed: float) -> float:
        return 0.001


def placements(score: Array, happened: Array) -> tuple[float, Array]:
    """AUC, and what each row contributes to it to first order [rows], sum 0 (DeLong et al. 1988, equations 4 to 6).

    A positive's placement is the share of negatives below it, a negative's the share of positives above it.

    Raises:
        ValueError: all or none happened.
    """
    from scipy.stats import rankdata

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
