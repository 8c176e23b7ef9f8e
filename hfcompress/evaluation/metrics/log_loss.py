"""Log-loss: how unlikely the model found what happened."""

import math
from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Mean, counted_once

Array = np.ndarray[Any, Any]


class LogLoss(Mean):
    """Mean -log p of click or no click, in nats."""

    name: ClassVar[str] = "log_loss"
    label: ClassVar[str] = "log-loss"
    reads: ClassVar[str] = "clicks"
    larger_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def contributions(self, outputs: Array, truth: Array) -> Array:
        score = outputs[:, 0]
        return counted_once(np.logaddexp(0.0, np.where(truth[:, 0] > 0, -score, score).astype(np.float64)))

    def nearness(self, claimed: float) -> float:
        return 0.001
