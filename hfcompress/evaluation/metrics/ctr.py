"""CTR: the click-through rate of what the model would choose."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Mean, needed

Array = np.ndarray[Any, Any]


class Ctr(Mean):
    """The click-through rate of what the model would choose: in every request the item with the highest score."""

    name: ClassVar[str] = "ctr"
    label: ClassVar[str] = "CTR"
    reads: ClassVar[str] = "clicks"
    form: ClassVar[str] = ".4%"
    share: ClassVar[bool] = True

    def contributions(self, outputs: Array, truth: Array) -> Array:
        """[rows, 2]: of the chosen row of each request its click and 1, of all others nothing."""
        found = np.zeros((len(truth), 2))
        rows = chosen_rows(truth[:, 2], outputs[:, 0])
        found[rows, 0], found[rows, 1] = truth[rows, 0], 1
        return found

    def nearness(self, claimed: float) -> float:
        return 0.001

    def sentence(self, verdict: dict[str, Any]) -> str:
        allowed = f"{100 * verdict['allowed']:g}% of loss allowed"
        if verdict["difference"] is None:
            return f"ctr: no difference was measured, {allowed}"
        text = (
            f"ctr: {verdict['difference']:+.2%} of {verdict['reference']}'s clicks (at worst "
            f"{verdict['lower_bound']:+.2%}, {verdict['confidence']:.0%} confidence), {allowed}: {verdict['verdict']}"
        )
        return text + needed(verdict, "requests")


def chosen_rows(request: Array, score: Array) -> Array:
    """Return the row of each request with the highest score (the first of equal ones), in the order of the log.

    Args:
        request: [rows]; rows of one request lie together.
    """
    start = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
    number = np.repeat(np.arange(len(start)), np.diff(np.r_[start, len(request)]))
    order = np.lexsort((np.arange(len(request)), -score, number))
    return np.asarray(order[start])
