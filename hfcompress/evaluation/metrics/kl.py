"""KL: how far the model's distributions lie from the reference's."""

import math
from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Mean

Array = np.ndarray[Any, Any]


class Kl(Mean):
    """Mean KL(reference || model) over the tokens, in nats."""

    name: ClassVar[str] = "kl"
    label: ClassVar[str] = "KL, nats"
    reads: ClassVar[str] = "tokens"
    larger_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)
    form: ClassVar[str] = ".5f"

    def contributions(self, outputs: Array, truth: Array) -> Array:
        return outputs[:, [1, 3]]
