"""Perplexity: between how many tokens, equally likely, the model hesitates."""

import math
from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Mean, needed

Array = np.ndarray[Any, Any]


class Perplexity(Mean):
    """exp of the mean -log p of the tokens that stand there."""

    name: ClassVar[str] = "perplexity"
    label: ClassVar[str] = "perplexity"
    hub: ClassVar[str] = "perplexity"
    reads: ClassVar[str] = "tokens"
    larger_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (1.0, math.inf)
    form: ClassVar[str] = ".3f"
    share: ClassVar[bool] = True

    def contributions(self, outputs: Array, truth: Array) -> Array:
        return outputs[:, [0, 3]]

    def of(self, sums: Array) -> Array:
        return np.asarray(np.exp(super().of(sums)))

    def nearness(self, claimed: float) -> float:
        return 0.005 * claimed  # 0.005 nats a token

    def sentence(self, verdict: dict[str, Any]) -> str:
        """A rise is a share of the reference's, and is written as a drop: with a minus."""
        allowed = f"{100 * verdict['allowed']:g}% more allowed"
        if verdict["difference"] is None:
            return f"perplexity: no difference was measured, {allowed}"
        change, worst = -100 * verdict["difference"], -100 * verdict["lower_bound"]
        text = (
            f"perplexity: {abs(change):.2f}% {'more' if change > 0 else 'less'} than {verdict['reference']} "
            f"(at worst {worst:+.2f}%, {verdict['confidence']:.0%} confidence), {allowed}: {verdict['verdict']}"
        )
        return text + needed(verdict, "tokens")
