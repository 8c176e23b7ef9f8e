"""Non-inferiority of a new model in an A/B test that may be looked at any time.

The statistic is theta = mean(new) - (1 - r) mean(old) + a, with a relative tolerance r or an absolute one a: the new
model is good enough when theta > 0. Estimate and variance count whole users (delta method for a ratio of sums; Deng,
Knoblich and Lu 2018, section 3). The bounds hold at all times at once: an asymptotic confidence sequence in its
one-sided form (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024), whose boundary is Robbins' normal mixture
(Howard, Ramdas, McAuliffe and Sekhon 2021, section 3.2). So stopping at the first decision costs nothing of the stated
error.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.rollout.traffic import Event

Array = np.ndarray[Any, Any]
ARMS = ("old", "new")
MIN_USERS = 100  # an arm; below, the normal approximation says nothing
RATIO_ALPHA = 0.001  # of the sample-ratio test: it says "the assignment is broken", so it must hardly ever be wrong


@dataclass(frozen=True)
class Tolerance:
    """How much lower than the old model's the new one's mean may be."""

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> "Tolerance":
        """ "0.5%" is relative to the old model's mean, "0.005" absolute.

        Raises:
            UserError: neither.
        """
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            value = -1.0
        if not 0 <= value < (1 if text.endswith("%") else math.inf):
            raise UserError(f"--tolerance {text}: a share of the old model's mean (0.5%) or a difference (0.005)")
        return cls(value, text.endswith("%"))


@dataclass(frozen=True)
class Look:
    """What can be said after so many events."""

    events: int
    users: int
    old: float
    new: float
    theta: float
    lower: float
    upper: float

    @property
    def verdict(self) -> str:
        """ "accept", "roll back" or "keep going"."""
        return "accept" if self.lower > 0 else "roll back" if self.upper < 0 else "keep going"


@dataclass(frozen=True)
class Outcome:
    """The end of an A/B test, or its state."""

    looks: list[Look]
    decided: Look | None
    """The first look at which it was decided; it stays decided."""
    users: dict[str, int]
    switched: int
    """Users that were seen in both arms: left out."""
    ratio_p: float
    more_events: int | None
    """How many events more would decide it if the means stay as they are; None when decided."""

    @property
    def verdict(self) -> str:
        """ "accept", "roll back" or "keep going"."""
        return self.decided.verdict if self.decided else "keep going"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}

    def as_text(self, metric: str) -> str:
        """What was decided, when, and from what."""
        if not self.looks:
            users = f"{self.users['old']} and {self.users['new']} users"
            return f"keep going: {users}; a look needs {MIN_USERS} of each arm before it, not all alike"
        look = self.decided or self.looks[-1]
        lines = [
            f"{self.verdict} after {look.events:,} events of {look.users:,} users",
            f"{metric}: old {look.old:.5g}, new {look.new:.5g} ({relative(look.new, look.old)})",
            f"above the tolerance by {look.theta:+.3g}, at all looks together between {look.lower:+.3g} "
            f"and {look.upper:+.3g}",
        ]
        if self.more_events is not None:
            lines.append(f"some {self.more_events:,} events more would decide it if the means stay as they are")
        if self.switched:
            lines.append(f"{self.switched:,} users were seen in both arms and are left out")
        return "\n".join(lines)


def relative(new: float, old: float) -> str:
    return f"{100 * (new / old - 1):+.2f}%" if old else "old is 0"


def boundary(n: float, alpha: float, planned: float) -> float:
    """Half-width of the mean of n independent values, in their standard deviations: at all n at once.

    One side, with error alpha; tuned to be narrow at n = `planned`.
    """
    rho = (-2 * math.log(2 * alpha) + math.log(-2 * math.log(2 * alpha) + 1)) / planned
    scale = n * rho + 1
    return math.sqrt(2 * scale / (n * n * rho) * math.log(1 + math.sqrt(scale) / (2 * alpha)))


def ab(
    events: list[Event],
    metric: str,
    tolerance: Tolerance,
    *,
    alpha: float = 0.05,
    planned: int = 10_000,
    share: float = 0.5,
    every: int = 100,
) -> Outcome:
    """Look after every so many events, and stop at the first decision.

    Args:
        events: in the order they came; those of other arms or without this metric are left out.
        planned: users at which the bounds are narrowest; fixed before the test.
        share: of users assigned to the new model, for the sample-ratio test.

    Raises:
        UserError: no event has the metric, it is not a number, or an arm is missing.
    """
    rows = [event for event in events if event.arm in ARMS and metric in event.outcome]
    require_numeric(metric, rows, events)
    arms: dict[str, set[str]] = {}
    for event in rows:
        arms.setdefault(event.unit, set()).add(event.arm)
    switched = {user for user, seen in arms.items() if len(seen) > 1}
    rows = [event for event in rows if event.unit not in switched]
    users = {arm: sum(1 for user, seen in arms.items() if seen == {arm}) for arm in ARMS}
    if not all(users.values()):
        raise UserError(
            f"the arm {next(arm for arm in ARMS if not users[arm])!r} has no users with the metric {metric}"
        )
    numbers = {user: i for i, user in enumerate(dict.fromkeys(event.unit for event in rows))}
    looks = looked(
        np.array([event.arm == "new" for event in rows]),
        np.array([numbers[event.unit] for event in rows]),
        np.array([event.outcome[metric] for event in rows], dtype=float),
        tolerance,
        alpha,
        planned,
        every,
    )
    decided = next((look for look in looks if look.verdict != "keep going"), None)
    return Outcome(
        looks=looks,
        decided=decided,
        users=users,
        switched=len(switched),
        ratio_p=ratio_p(users, share),
        more_events=None if decided or not looks else more_events(looks[-1], alpha, planned),
    )


def require_numeric(metric: str, rows: list[Event], events: list[Event]) -> None:
    """Refuse a metric that cannot be averaged; the message names those of `events` that can.

    Args:
        rows: the events that have the metric.

    Raises:
        UserError: there are none, or an outcome of that name is a text, such as the true `label`.
    """
    known = sorted({name for e in events for name, value in e.outcome.items() if not isinstance(value, str)})
    there_are = f"there are: {', '.join(known[:20])}" if known else "no outcome of the file is a number"
    if not rows:
        raise UserError(f"--metric {metric}: no event of the arms old and new has it; {there_are}")
    texts = [event.outcome[metric] for event in rows if isinstance(event.outcome[metric], str)]
    if texts:
        raise UserError(f"--metric {metric}: it is a text ({texts[0][:40]!r}), not a number; {there_are}")


def looked(
    new: Array, user: Array, value: Array, tolerance: Tolerance, alpha: float, planned: float, every: int
) -> list[Look]:
    """A look after every so many events, from the first at which both arms have enough users.

    Args:
        new: [events] bool, the arm; user: [events] int; value: [events] float, the outcome.
    """
    arms = [running_means(new == arm, user, value) for arm in (False, True)]
    stops = np.arange(every, len(value) + every, every).clip(max=len(value)) - 1
    factor = 1 - tolerance.value if tolerance.relative else 1.0
    margin = 0.0 if tolerance.relative else tolerance.value
    found = []
    for stop in np.unique(stops):
        (old_mean, old_variance, old_users), (new_mean, new_variance, new_users) = (
            tuple(float(column[stop]) for column in arm) for arm in arms
        )
        if min(old_users, new_users) < MIN_USERS or not min(old_variance, new_variance) > 0:
            continue
        users = old_users + new_users
        theta = new_mean - factor * old_mean + margin
        deviation = math.sqrt(users * (new_variance + factor**2 * old_variance))
        width = deviation * boundary(users, alpha, planned)
        found.append(
            Look(int(stop) + 1, int(users), old_mean, new_mean, theta, lower=theta - width, upper=theta + width)
        )
    return found


def thinned(looks: list[Look], most: int) -> list[Look]:
    """At most so many looks, evenly spread, the last one among them: for a picture."""
    if len(looks) <= most:
        return looks
    return [looks[round(i * (len(looks) - 1) / (most - 1))] for i in range(most)]


def running_means(mine: Array, user: Array, value: Array) -> tuple[Array, Array, Array]:
    """Mean of one arm's events, the variance of this mean over users, and its users, each [events]: so far.

    The mean is a ratio of sums over users, (sum of outcomes) / (sum of events), its variance by the delta method.
    """
    order = np.argsort(user, kind="stable")
    first = np.r_[True, np.diff(user[order]) != 0]
    start = np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))
    total = np.cumsum(value[order])
    before = total - value[order]  # of all users so far
    y, n = np.empty(len(user)), np.empty(len(user))  # outcome and events of this user before this event
    y[order], n[order] = before - before[start], np.arange(len(user)) - start
    x = np.where(mine, value, 0.0)
    yy, yn, nn = (np.cumsum(np.where(mine, change, 0.0)) for change in (2 * y * x + x * x, y + x * (n + 1), 2 * n + 1))
    outcomes, events, users = np.cumsum(x), np.cumsum(mine), np.cumsum(mine & (n == 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = outcomes / events
        spread = (yy - 2 * mean * yn + mean**2 * nn).clip(min=0.0)
        return mean, spread / events**2 * users / (users - 1), users


def more_events(look: Look, alpha: float, planned: float) -> int | None:
    """How many events more would decide, if estimate and deviation stay; None when that is beyond a thousand times."""
    deviation = (look.upper - look.theta) / boundary(look.users, alpha, planned)
    for factor in np.geomspace(1, 1000, 400):
        if abs(look.theta) > deviation * boundary(factor * look.users, alpha, planned):
            return math.ceil((factor - 1) * look.events)
    return None


def ratio_p(users: dict[str, int], share: float) -> float:
    """p-value of the users' numbers if `share` of them were assigned to the new model (exact binomial test)."""
    from scipy.stats import binomtest

    return float(binomtest(users["new"], users["old"] + users["new"], share).pvalue)
