"""rollout: the small click model before users: shadow, replay and an A/B test, on the days after the test split.

The A/B test is itself a replay: every slate of the log was shown whole, so that what either model's choice earned is
known. Users are assigned by a salted hash; only the choice of a user's own arm counts.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.errors import Reason, UserError
from hfcompress.evaluation.metrics.ctr import chosen_rows
from hfcompress.folders.record import write_json
from hfcompress.formats.runtimes.click_predictor import ClickPredictor
from hfcompress.rollout import sequential, serving
from hfcompress.rollout.sequential import Tolerance
from hfcompress.rollout.traffic import Event, Writer, assigned
from hfcompress.stage import GRAPHS
from hfcompress.tasks.tabular_classification import Clicks

if TYPE_CHECKING:
    from hfcompress.architectures.click_spec import ClickShape
    from hfcompress.tasks.click_log import ClickLog

SHOWN_LOOKS = 300


@dataclass(frozen=True)
class Rollout:
    """What would be agreed on before an A/B test."""

    tolerance: str = "2%"
    """Of the old model's click-through rate that the new one may lose."""
    confidence: float = 0.95
    salt: str = "ctr-embeddings"
    """Of the hash that assigns users: another test, another salt."""
    shadowed: int = 400
    """Requests of the shadow test, one at a time."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "scikit-learn", "scipy")

    def __post_init__(self) -> None:
        Tolerance.parse(self.tolerance)
        if not 0.5 < self.confidence < 1 or self.shadowed < 1:
            raise UserError(Reason("{confidence} lies between 0.5 and 1, {shadowed} is at least 1"))

    def __call__(self, out: Path, *, old: Path, new: Path, task: Clicks) -> dict[str, Any]:
        """Write rollout.json, the A/B test's traffic (ab.jsonl) and the shadow test's (shadow.jsonl) into `out`."""
        log = task.data.logs.get("live", task.data.logs["test"])
        shadow = self._shadow(out / "shadow.jsonl", old, new, log)
        found: dict[str, Any] = {
            "days": [float(log.time.min()), float(log.time.max())],
            "shadow": shadow,
            "replay": self._replay(out / "shadow.jsonl", old, new),
            "ab": self._ab(out / "ab.jsonl", old, new, log),
            "tolerance": self.tolerance,
            "confidence": self.confidence,
        }
        write_json(out / "rollout.json", found)
        return {"ab": found["ab"]["verdict"], "agreement": shadow["agreement"]}

    def predict(self, **inputs: Any) -> "ClickShape":
        """Nothing is made; the new model's shape stands for it."""
        shape: ClickShape = inputs["new"]
        return shape

    def _shadow(self, file: Path, old: Path, new: Path, log: "ClickLog") -> dict[str, Any]:
        """Some rows as requests, answered by the old model, the new one beside it."""
        file.unlink(missing_ok=True)  # of a run that was killed here
        state, writer, other = serving.Shadowed(), Writer(file), serving.Shadow(new, 1)
        try:
            lines = request_lines(log.rows(slice(0, self.shadowed)))
            for _ in serving.shadow(ClickPredictor(old, 1), other, lines, writer, 1, state):
                pass
        finally:
            other.close()
            writer.close()
        return state.as_dict()

    def _replay(self, file: Path, old: Path, new: Path) -> dict[str, Any]:
        """Both models on what the shadow test recorded."""
        from hfcompress.rollout import replay, traffic

        events = [event for event in traffic.read(file).events if event.arm == "old"]
        models = ClickPredictor(old, 1), ClickPredictor(new, 1)
        replayed = replay.answered(*models, events, 1)
        return {
            "changes": replay.changes(replayed),
            "against_truth": replay.against_truth(replayed),
            "latency_ms": replay.timed(*models, events, 1),
        }

    def _ab(self, file: Path, old: Path, new: Path, log: "ClickLog") -> dict[str, Any]:
        """The sequential test, and its traffic for `hfcompress ab`."""
        judged = {arm: ClickPredictor(folder).judge(log) for arm, folder in (("old", old), ("new", new))}
        events = ab_events(log, judged, self.salt)
        file.unlink(missing_ok=True)
        writer = Writer(file)
        for event in events:
            writer.write(event)
        writer.close()
        outcome = sequential.ab(
            events,
            "ctr",
            sequential.Tolerance.parse(self.tolerance),
            alpha=1 - self.confidence,
            planned=max(1, len({event.user for event in events}) // 2),
        )
        thinned = replace(outcome, looks=sequential.thinned(outcome.looks, SHOWN_LOOKS))
        return thinned.as_dict() | {"text": outcome.as_text("ctr"), "events": len(events)}


def request_lines(log: "ClickLog") -> list[bytes]:
    """Each row as a request of `record` and `shadow`, what came of it as its outcome."""
    lines = []
    for i in range(len(log)):
        asked = {name: int(getattr(log, name)[i]) for name in ("user", "item", "category", "context")}
        asked_text = json.dumps(asked | {"price": float(log.price[i]), "time": float(log.time[i])})
        label = "click" if log.click[i] else "no click"
        request = {"id": f"{int(log.request[i])}-{i}", "input": asked_text, "user": str(int(log.user[i]))}
        lines.append(json.dumps(request | {"outcome": {"ctr": int(log.click[i]), "label": label}}).encode())
    return lines


def ab_events(log: "ClickLog", logits: dict[str, Any], salt: str) -> list[Event]:
    """An event a request: the item that the user's arm would have chosen, and whether it was clicked.

    Args:
        logits: [rows, 2] by arm, "old" and "new".
    """
    import numpy as np

    users, place = np.unique(log.user, return_inverse=True)
    is_new = np.array([assigned(str(user), salt, 0.5) == "new" for user in users.tolist()])[place]
    chosen = {arm: chosen_rows(log.request, scores[:, 0]) for arm, scores in logits.items()}
    events = []
    for one, other in zip(chosen["old"].tolist(), chosen["new"].tolist(), strict=True):
        arm, row = ("new", other) if is_new[one] else ("old", one)
        events.append(
            Event(
                id=str(int(log.request[row])),
                arm=arm,
                time=round(float(log.time[row]) * 86_400, 1),
                user=str(int(log.user[row])),
                answer={"label": str(int(log.item[row])), "score": round(float(logits[arm][row, 0]), 4)},
                outcome={"ctr": int(log.click[row]), "conversion": int(log.conversion[row])},
            )
        )
    return events
