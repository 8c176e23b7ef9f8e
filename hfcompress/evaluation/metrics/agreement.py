"""Agreement: how often the most likely token is the reference's."""

from typing import Any, ClassVar

import numpy as np

from hfcompress.evaluation.metrics.metric import Mean

Array = np.ndarray[Any, Any]


class Agreement(Mean):
    """The share of tokens of which the most likely one is the reference's."""

    name: ClassVar[str] = "agreement"
    label: ClassVar[str] = "top-1"
    reads: ClassVar[str] = "tokens"
    form: ClassVar[str] = ".2%"

    def contributions(self, outputs: Array, truth: Array) -> Array:
        return outputs[:, [2, 3]]
