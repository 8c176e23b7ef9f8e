"""What `verify` needs of a measurement: one model, measured once more."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Again:
    """What a measure stage's `again` returns."""

    counted: str
    """How many of what were measured: "1,314 texts"."""
    every: dict[str, Any]
    """Metric -> value, and under `ci95` metric -> its 95% interval, as report.json has them."""
    timed: str
    """What was timed: "p50 latency, 128 tokens"."""
    claimed_ms: float
    """What the report says that it takes."""
    found_ms: float
    outputs: "np.ndarray[Any, Any] | None" = None
    """[examples, labels]: the answers, where the run keeps its own beside them."""
