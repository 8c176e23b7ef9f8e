"""Metric: what each example contributes to it, how contributions combine, and how its values are written."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, Any]
AT_THE_LIMIT = 0.05  # of what is allowed is all that is left of it


class Metric(ABC):
    """A number that says how good a model's answers are.

    It is defined once, by `contributions` and `combine`. All else follows from these: its value, its interval and its
    paired difference (a bootstrap over groups, which weighs examples), its form in the `evaluate` library, what
    `verify` finds again. Tables, cards, plots and sentences read the attributes.

    - Integer weights are as good as repeated examples: `combine` with the weights [[2, 0, 1]] is the value of the
      first example twice and the third.
    - The order of the examples has no part in it.
    - Every value lies in `bounds`.
    """

    name: ClassVar[str]
    """Its row in METRICS, and its file."""
    key: ClassVar[str] = ""
    """What report.json calls it, where that is not its name (another task has one of that name, otherwise defined)."""
    label: ClassVar[str]
    """What a table's head calls it: "macro-F1"."""
    reads: ClassVar[str]
    """What outputs and truth are.

    - "labels": logits [examples, classes] or class ids [examples], and class ids [examples].
    - "probabilities": probabilities [examples, classes], and class ids [examples].
    - "clicks": logits of click and conversion [rows, 2], and [rows, 3]: click, conversion, number of the request.
    - "tokens": sums over the tokens of a document [documents, 4]: -log p of what stands there, KL to the reference,
      how often the most likely token is the reference's, tokens; there is no truth beside them.
    """
    larger_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    form: ClassVar[str] = ".4f"
    """How a value is written."""
    hub: ClassVar[str] = ""
    """What the Hub calls it in a card's `metrics`; empty where it has no such name."""
    shown: ClassVar[bool] = True
    """Whether pages show it beside the first metric."""
    share: ClassVar[bool] = False
    """Whether a difference is a share of the reference's value (3% more), and not a number of points."""

    @abstractmethod
    def contributions(self, outputs: Array, truth: Array) -> Array:
        """Return what each example contributes, [examples, ...]."""

    @abstractmethod
    def combine(self, contributions: Array, weights: Array) -> Array:
        """Return the metric's values [draws], where each example counts so often.

        Args:
            weights: [draws, examples], whole numbers from 0.
        """

    def value(self, outputs: Array, truth: Array) -> float:
        """Return the metric of these answers."""
        found = self.contributions(outputs, truth)
        return float(self.combine(found, np.ones((1, len(found))))[0])

    def change(self, before: Any, after: Any) -> Any:
        """Return what a verdict calls the difference: below 0 where `after` is worse."""
        difference = after / before - 1 if self.share else after - before
        return difference if self.larger_is_better else -difference

    def nearness(self, claimed: float) -> float:
        """Return how far the value may be from a claimed one, on identical files and data on another processor."""
        return math.inf

    @property
    def said(self) -> str:
        """What report.json calls it."""
        return self.key or self.name

    @property
    def percent(self) -> bool:
        """Whether plots show it as a percentage."""
        return self.larger_is_better and self.bounds == (0.0, 1.0)

    def written(self, value: float | None, decimals: int = 2) -> str:
        """Write a value: a percentage with so many decimals, or in the metric's form; a dash where there is none."""
        if value is None:
            return "–"
        return f"{100 * value:.{decimals}f}" if self.percent else format(value, self.form)

    def between(self, before: float, after: float) -> str:
        """Say what a stage did to it."""
        if self.percent:
            return f"{100 * (after - before):+.2f} points of {self.said}"
        return f"{self.said} {before:{self.form}} to {after:{self.form}}"

    def sentence(self, verdict: dict[str, Any]) -> str:
        """Say what a verdict about a drop of this metric says."""
        what = verdict["limit"].partition(":")[2]
        unit, times = (" points", 100) if self.percent else ("", 1)
        allowed = f"{times * verdict['allowed']:g}{unit} of {'drop' if self.larger_is_better else 'rise'} allowed"
        if verdict["difference"] is None:
            return f"{what}: no difference was measured, {allowed}"
        text = (
            f"{what}: {self.moved(verdict['difference'])} than {verdict['reference']} (at worst "
            f"{self.moved(verdict['lower_bound'])}, {verdict['confidence']:.0%} confidence), {allowed}: "
        )
        if verdict["verdict"] == "cannot be shown":
            wanted = verdict["n_needed"]
            more = f"some {wanted:,} would be needed" if wanted else "no number would be enough at this difference"
            if wanted and verdict["difference"] + verdict["allowed"] < AT_THE_LIMIT * verdict["allowed"]:
                more = "and more would hardly decide: the drop itself lies at the limit"
            return text + f"cannot be shown with {verdict['n']:,} examples, {more}"
        return text + str(verdict["verdict"])

    def moved(self, difference: float) -> str:
        """Say a difference, of which less than 0 is worse, with its direction in words."""
        way = "lower" if (difference < 0) == self.larger_is_better else "higher"
        return f"{abs(100 * difference):.2f} points {way}" if self.percent else f"{abs(difference):{self.form}} {way}"


class Additive(Metric):
    """A metric of sums: what examples contribute is added up before anything else, so that a group is one summand."""

    @abstractmethod
    def of(self, sums: Array) -> Array:
        """Return the metric [...] of contributions that were added up, [..., as one example has them]."""

    def combine(self, contributions: Array, weights: Array) -> Array:
        flat = contributions.reshape(len(contributions), -1)
        return self.of((weights.astype(np.float64) @ flat).reshape(len(weights), *contributions.shape[1:]))

    def sums(self, outputs: Array, truth: Array, groups: Array, count: int) -> Array:
        """Return the contributions of each group, [count, as one example has them].

        Args:
            groups: the number of each example's group, below `count`.
        """
        found = self.contributions(outputs, truth)
        totals = np.zeros((count, *found.shape[1:]))
        np.add.at(totals, groups, found)
        return totals


class Mean(Additive):
    """The mean of something over what is counted: contributions are [examples, 2], the thing and the count."""

    def of(self, sums: Array) -> Array:
        return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)

    def influence(self, contributions: Array) -> Array:
        """Return how far each example moves the value to first order, [examples], sum 0 (the delta method)."""
        total, count = contributions.sum(axis=0)
        return np.asarray((contributions[:, 0] - total / count * contributions[:, 1]) / count)


def counted_once(values: Array) -> Array:
    """Return contributions of a `Mean` over examples: each value, and 1."""
    return np.stack([values.astype(np.float64), np.ones(len(values))], axis=1)


def needed(verdict: dict[str, Any], what: str) -> str:
    """Say of what cannot be shown: with how much, and how much might do."""
    if verdict["verdict"] != "cannot be shown":
        return ""
    more = f", some {verdict['n_needed']:,} would be needed" if verdict["n_needed"] else ""
    return f" with {verdict['n']:,} {what}{more}"
