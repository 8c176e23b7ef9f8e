"""What structured pruning is to leave, and by which ranking: options that are read without torch."""

import math
from dataclasses import dataclass
from typing import Literal

from hfcompress.errors import OptionError, Reason, UserError

Measure = Literal["flops", "parameters", "bytes", "latency"]
Importance = Literal["l1", "taylor", "geometric_median", "reconstruction", "random"]
Ranking = Literal["global", "uniform"]
MEASURES: tuple[Measure, ...] = ("flops", "parameters", "bytes", "latency")


@dataclass(frozen=True)
class Plan:
    """What is to be left of which measure, and how the units that go are chosen."""

    measure: Measure
    keep: float
    importance: Importance = "taylor"
    ranking: Ranking = "global"
    iterations: int = 1
    round_to: int = 1
    seed: int = 42
    roots: tuple[str, ...] | None = None
    reconstruct: bool = False
    """Before a cut, fit what reads the units that go to do without them (`reconstruction`)."""

    def share(self, iteration: int) -> float:
        """What is left after this iteration (from 1): each takes the same share of what it finds."""
        return float(self.keep ** (iteration / self.iterations))


def one_target(keep: dict[Measure, float | None]) -> tuple[Measure, float]:
    """The one target among several.

    Raises:
        UserError: none or more than one is given, or it is no share.
    """
    given = {measure: share for measure, share in keep.items() if share is not None}
    options = ", ".join(f"{{keep_{measure}}}" for measure in keep)
    if len(given) != 1:
        raise UserError(
            Reason(options + ": give exactly one of them ({n} are given; None takes one away)", n=len(given))
        )
    measure, share = next(iter(given.items()))
    if not 0 < share <= 1 or not math.isfinite(share):
        raise OptionError(f"keep_{measure}", "a share above 0 and up to 1", share)
    return measure, share
