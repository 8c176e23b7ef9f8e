"""replay: two models on recorded requests: what changed, whether it is better, how fast, what it would have earned."""

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.evaluation import latency
from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.metrics import metrics_of
from hfcompress.rollout import counterfactual
from hfcompress.rollout.sequential import require_numeric
from hfcompress.rollout.traffic import Event

if TYPE_CHECKING:
    from hfcompress.formats.runtimes.predictor import Answers

Array = np.ndarray[Any, Any]
TIMED = 50  # requests
ROUNDS = 3
SHOWN = 10
RESAMPLES = 4000
COMPARED = ("accuracy", "macro_f1")  # of answers whose true labels are known
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Replayed:
    """Answers of both models to the recorded inputs: indices into `labels`, in the order of `events`."""

    events: list[Event]
    labels: list[str]
    old: Array
    new: Array

    def groups(self) -> list[str]:
        return [event.group if event.group is not None else event.unit for event in self.events]


def answered(
    old: "Answers", new: "Answers", events: list[Event], max_length: int, new_max_length: int | None = None
) -> Replayed:
    """Ask both models everything that has an input.

    Args:
        max_length: tokens that the old model reads; new_max_length: the new one, where it is not the same.

    Raises:
        UserError: no event has an input, the models have other labels, or there is one label, or one name for two.
    """
    events = [event for event in events if event.input is not None]
    if not events:
        raise UserError("no event has an input to replay")
    if old.labels != new.labels:
        raise UserError(f"the models answer different labels: {', '.join(old.labels)}; {', '.join(new.labels)}")
    if len(set(old.labels)) < max(2, len(old.labels)):
        raise UserError(
            f"the models answer with {len(old.labels)} numbers under {len(set(old.labels))} name(s) "
            f"({', '.join(old.labels)}): replay compares labels, so give classifiers of two or more"
        )
    texts = [str(event.input) for event in events]
    lengths = (max_length, new_max_length or max_length)
    answers = (m.logits(texts, length).argmax(axis=1) for m, length in zip((old, new), lengths, strict=True))
    return Replayed(events, list(old.labels), *answers)


def changes(replayed: Replayed) -> dict[str, Any]:
    """How many answers changed, from what to what, the most frequent change first, with examples."""
    old, new, labels = replayed.old, replayed.new, replayed.labels
    moved = Counter((labels[a], labels[b]) for a, b in zip(old, new, strict=True) if a != b)
    rows = np.flatnonzero(old != new)[:SHOWN]
    return {
        "n": len(old),
        "changed": int((old != new).sum()),
        "by_label": [{"old": a, "new": b, "count": count} for (a, b), count in moved.most_common()],
        "examples": [
            {
                "id": replayed.events[i].id,
                "input": str(replayed.events[i].input)[:160],
                "old": labels[old[i]],
                "new": labels[new[i]],
            }
            for i in rows
        ],
    }


def against_truth(replayed: Replayed) -> dict[str, Any]:
    """Each metric's paired difference, new minus old, over the events whose true label is known; empty without any."""
    number = {label: i for i, label in enumerate(replayed.labels)}
    known = [i for i, event in enumerate(replayed.events) if event.outcome.get("label") in number]
    if not known:
        return {}
    truth = np.array([number[replayed.events[i].outcome["label"]] for i in known])
    groups = replayed.groups()
    of_known = [groups[i] for i in known]
    before, after = (
        Drawn(answers[known], truth, of_known, resamples=RESAMPLES, seed=0) for answers in (replayed.old, replayed.new)
    )
    return {
        name: {
            "old": before.value(metric),
            "new": after.value(metric),
            **asdict(paired_difference(before, after, metric, CONFIDENCE)),
        }
        for name, metric in metrics_of(COMPARED).items()
    }


def would_have_been(replayed: Replayed, metric: str) -> dict[str, Any]:
    """What the metric would have been under each model, where answers were random and their propensity is recorded.

    Raises:
        UserError: no event has answer, propensity and this metric, or it is not a number.
    """
    number = {label: i for i, label in enumerate(replayed.labels)}
    rows = [
        i
        for i, event in enumerate(replayed.events)
        if event.propensity and event.answer and event.answer["label"] in number and metric in event.outcome
    ]
    if not rows:
        raise UserError(
            f"--metric {metric}: no event has it together with its answer and the propensity of that answer; without "
            "randomised answers nothing can be said of what would have been"
        )
    events = [replayed.events[i] for i in rows]
    require_numeric(metric, events, replayed.events)
    given = np.array([number[event.answer["label"]] for event in events if event.answer])
    propensity = np.array([event.propensity for event in events], dtype=float)
    outcome = np.array([event.outcome[metric] for event in events], dtype=float)
    groups = np.unique([replayed.groups()[i] for i in rows], return_inverse=True)[1]
    expected = counterfactual.expected_by_label(given, propensity, outcome, len(number))
    found: dict[str, Any] = {"n": len(rows), "recorded": float(outcome.mean())}
    for name, answers in (("old", replayed.old[rows]), ("new", replayed.new[rows])):
        match = answers == given
        found[name] = {
            "inverse_propensity": asdict(counterfactual.inverse_propensity(match, propensity, outcome, groups)),
            "doubly_robust": asdict(
                counterfactual.doubly_robust(match, propensity, outcome, groups, expected[answers], expected[given])
            ),
        }
    return found


def timed(
    old: "Answers", new: "Answers", events: list[Event], max_length: int, new_max_length: int | None = None
) -> dict[str, Any]:
    """Milliseconds a recorded request, one at a time and in turn; p50, p95 and p99 of the same requests for both."""
    texts = [str(event.input) for event in events if event.input is not None][:TIMED]
    times: dict[str, list[float]] = {"old": [], "new": []}
    models = (("old", old, max_length), ("new", new, new_max_length or max_length))
    for text in texts:
        calls: dict[str, Any] = {name: partial(model.logits, [text], length) for name, model, length in models}
        for name, found in latency.interleaved(calls, ROUNDS).items():
            times[name] += found
    return {name: latency.percentiles(found) | {"requests": len(texts)} for name, found in times.items()}
