"""comparison.json: what a run compared with what, under which budget; report.json is made from it and from records.

report.json is for readers. What decides is what the stages wrote: the measure stage's measurements.json, whose hash
its record.json holds, whose hash comparison.json holds in turn, together with the budget. From these `check`, `push`
and `report` compute every verdict again, so that a report that was edited proves nothing.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hfcompress.budget import (
    Budget,
    ClickBudget,
    EmbeddingBudget,
    ImageBudget,
    LanguageBudget,
    verdicts,
)
from hfcompress.errors import UserError
from hfcompress.evaluation.metrics import metric_named
from hfcompress.folders.escaping import one_line
from hfcompress.folders.inside import inside
from hfcompress.folders.record import Record, read_json, sha256, write_json
from hfcompress.report.schema import Environment, Report, VerdictRow
from hfcompress.runs.lock import LOCK
from hfcompress.stage import Artifact
from hfcompress.tasks import measured_task

COMPARISON = "comparison.json"
BUDGETS = {kind.__name__: kind for kind in (Budget, ClickBudget, EmbeddingBudget, ImageBudget, LanguageBudget)}
CLAIM = "a claim, not a proof"


@dataclass(frozen=True)
class Comparison:
    """What `Run.compare` decided about, as it stands in comparison.json."""

    recipe: str
    scale: str
    created: str
    environment: dict[str, Any]
    notes: list[str]
    """Of the recipe; those that follow from the measurements are added in the report."""
    budget_kind: str
    budget: dict[str, Any]
    candidate: str
    reference: str
    latency_reference: str
    measured: str
    """The folder of the measure stage's Artifact."""
    folders: dict[str, str]
    """The folder of each model that a stage of the run made."""
    predictions: dict[str, Any]
    counted: dict[str, Any]
    """What was counted of the candidate beside the measure stage: its SRAM and flash on a microcontroller."""
    records: dict[str, str]
    """SHA-256 of each of these folders' record.json."""

    def write(self, run: Path) -> None:
        """Write comparison.json with the hash of what it says."""
        write_json(run / COMPARISON, dataclasses.asdict(self) | {"sha256": self.digest()})

    def digest(self) -> str:
        """Return the SHA-256 of what is said here."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, run: Path) -> "Comparison":
        """Read comparison.json of a run.

        Raises:
            UserError: there is none, so that its report is a claim; or it was changed.
        """
        if not (run / COMPARISON).is_file():
            raise UserError(f"{run}: {without_records(run)}")
        found = read_json(inside(run, COMPARISON))
        hashed = found.pop("sha256", None)
        try:
            comparison = cls(**found)
            if comparison.digest() != hashed:
                raise ValueError("its hash is that of another content")
        except (TypeError, ValueError) as error:
            again = "run the recipe again, finished stages are kept"
            raise UserError(f"{run / COMPARISON} is not what the run wrote ({error}); {again}") from None
        return comparison

    def artifact(self, run: Path, folder: str) -> Artifact:
        """Return an Artifact that was compared, its record being what it was then.

        Raises:
            UserError: it is gone, or its record was changed.
        """
        place = inside(run, folder, COMPARISON)
        if not place.is_dir():
            raise UserError(f"{place} is gone: run the recipe again, or check another run")
        file = inside(place, "record.json")
        if not file.is_file() or sha256(file) != self.records.get(folder):
            raise UserError(f"{place} is not what was measured: its record.json was changed; run the recipe again")
        return Artifact(place)

    def measurements(self, run: Path) -> dict[str, Any]:
        """Return measurements.json, the bytes being those of its record, with what was counted besides.

        Raises:
            UserError: it is not what the measure stage wrote.
        """
        artifact = self.artifact(run, self.measured)
        if damage := artifact.damage(hashed=True):
            raise UserError(f"{artifact.path} is not what was measured: {damage}; run the recipe again")
        return self.completed(read_json(inside(artifact.path, "measurements.json")))

    def completed(self, details: dict[str, Any]) -> dict[str, Any]:
        """Return measurements with what was counted besides, and how many examples each difference would need."""
        from hfcompress.evaluation.statistics import Difference, n_needed

        allowed = max(self.budget["drop"].values(), default=0.0)
        for row in details["models"]:
            row |= self.counted.get(row["name"], {})
        for found in details["differences"].values():
            for difference in found.values():
                difference["n_needed"] = n_needed(Difference(**difference), allowed)
        return details

    def report(self, details: dict[str, Any], stages: dict[str, str]) -> Report:
        """Return report.json's object: the measured rows, and the verdicts that follow from them.

        Args:
            details: completed measurements; stages: model -> the name of its last stage's class.
        """
        from hfcompress.report.images import static_note

        budget = BUDGETS[self.budget_kind](**self.budget)
        decided = verdicts(
            budget,
            self.candidate,
            self.reference,
            self.latency_reference,
            details["models"],
            details["differences"].get(self.candidate, {}),
            self.predictions.get(self.candidate, {}),
        )
        rows = [
            row
            | {
                "stage": stages.get(row["name"], "Baseline"),
                "path": self.folders.get(row["name"]),
                "predicted": self.predictions.get(row["name"]),
            }
            for row in details["models"]
        ]
        return {
            "schema_version": 1,
            "task": measured_task(details).name,
            "recipe": self.recipe,
            "scale": self.scale,
            "created": self.created,
            "environment": cast(Environment, self.environment),
            "notes": [*self.notes, *baseline_notes(details), *static_note(rows, self.candidate)],
            "models": rows,
            "budget": self.budget,
            "verdicts": [cast(VerdictRow, verdict.as_dict()) for verdict in decided],
            "ok": all(verdict.ok for verdict in decided),
        }


def proven(run: Path) -> Report:
    """Return report.json's object as it follows from the records of a run, whatever its report.json says.

    The bytes of the measurements are compared with their hashes; those of the models are not (see `intact_models`).

    Raises:
        UserError: the folder has no records, or something was changed since.
    """
    comparison = Comparison.read(run)
    try:
        details = comparison.measurements(run)
        stages = {name: comparison.artifact(run, place).record.stage for name, place in comparison.folders.items()}
        found: Report = json.loads(json.dumps(comparison.report(details, stages)))
    except (KeyError, TypeError, AttributeError) as error:  # a file of another version, whole as it is
        raise UserError(
            f"{run}: its records are not of this version ({error!r}); run the recipe again, finished stages are kept"
        ) from None
    for row in found["models"]:
        require_size(run, row)
    return found


def require_size(run: Path, row: Mapping[str, Any]) -> None:
    """Refuse a row whose bytes are not those that its model's stage recorded.

    Raises:
        UserError: they differ.
    """
    record = None if row["path"] is None else Record.read(inside(run, row["path"]))
    if record and record.format != "measurement" and record.bytes != row["bytes"]:
        raise UserError(
            f"{run}: {row['name']} was measured with {row['bytes']:,} bytes, and its record says {record.bytes:,}"
        )


def intact_models(run: Path, report: Mapping[str, Any]) -> None:
    """Compare every file of the models of a report with its hash.

    Raises:
        UserError: a folder is gone, or is not what was measured.
    """
    for row in report["models"]:
        if row["path"] is None:
            continue
        folder = inside(run, row["path"], "report.json")
        if not folder.is_dir():
            raise UserError(f"{folder} is gone: run the recipe again, or check another run")
        if damage := Artifact(folder).damage(hashed=True):
            raise UserError(f"{folder} is not what was measured: {damage}; run the recipe again")


def disagreement(run: Path, claimed: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Return the first thing that report.json or the lock says otherwise than the records; None where nothing.

    Args:
        claimed: report.json's object; found: see `proven`.
    """
    for name in ("verdicts", "budget", "models", "ok", "recipe", "scale"):
        if where := first_difference(claimed.get(name), found[name], name):
            return f"report.json says otherwise than the records of the run: {where}"
    locked = read_json(inside(run, LOCK)) if (run / LOCK).is_file() else {}
    options = locked.get("options")
    budget = options.get("budget") if isinstance(options, dict) else None
    if budget is not None and (where := first_difference(budget, found["budget"], "budget")):
        return f"{LOCK} says otherwise than the records of the run: {where}"
    return None


def first_difference(claimed: Any, found: Any, name: str) -> str | None:
    """Return where two JSON values differ first, with both values; None where they are equal."""
    if isinstance(claimed, dict) and isinstance(found, dict):
        for key in [*found, *(key for key in claimed if key not in found)]:
            if key not in claimed or key not in found:
                return f"{name}.{one_line(str(key), 40)} is {'missing' if key in found else 'added'}"
            if where := first_difference(claimed[key], found[key], f"{name}.{one_line(str(key), 40)}"):
                return where
        return None
    if isinstance(claimed, list) and isinstance(found, list):
        if len(claimed) != len(found):
            return f"{name}: {len(claimed)} where the records give {len(found)}"
        pairs = enumerate(zip(claimed, found, strict=True))
        return next((d for i, (a, b) in pairs if (d := first_difference(a, b, f"{name}[{i}]"))), None)
    if claimed == found and type(claimed) in (type(found), int, float):
        return None
    return f"{name} is {one_line(str(claimed), 40)}, the records say {one_line(str(found), 40)}"


def inconsistency(report: dict[str, Any]) -> str | None:
    """Return what contradicts itself in a report whose records are not at hand; None where nothing does.

    Every limit of its budget must have its verdict, the measured value that of its rows, and `ok` what follows.
    """
    try:
        budget = SimpleNamespace(**report["budget"])
        claimed = {verdict["limit"]: verdict for verdict in report["verdicts"]}
        first = report["verdicts"][0]
        timed = next((v["reference"] for v in report["verdicts"] if v["limit"] == "latency_ratio"), None)
        against = next((v["reference"] for v in report["verdicts"] if v["reference"]), None) or first["candidate"]
        again = verdicts(cast(Budget, budget), first["candidate"], against, timed or against, report["models"], {}, {})
        for verdict in again:
            said = claimed.get(verdict.limit)
            if said is None or said["allowed"] != verdict.allowed:
                return f"its verdicts do not hold the model against the budget's {verdict.limit}"
            if verdict.limit.startswith("drop:"):
                shown = said["lower_bound"] is not None and said["lower_bound"] >= -said["allowed"]
                holds = shown and said["verdict"] == "shown"
            else:
                holds = said["measured"] is not None and said["measured"] <= said["allowed"]
                if where := first_difference(said["measured"], verdict.measured, verdict.limit):
                    return where.replace("the records say", "the model's row")
            if said["ok"] is not holds:
                return f"its verdict on {verdict.limit} does not follow from its figures"
        if len(claimed) != len(again) or report["ok"] is not all(v["ok"] is True for v in claimed.values()):
            return "its verdicts are not those of its budget"
    except (KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError, UserError) as error:
        return f"its verdicts cannot be computed again ({one_line(repr(error), 80)})"
    return None


def without_records(run: Path) -> str:
    """Say what a folder without comparison.json is."""
    report = read_json(inside(run, "report.json"), "models", "verdicts")
    if "delivered" in report:
        return f"is a repository that `push` made: hfcompress verify {run} measures its claims again"
    if any(
        isinstance(row, dict) and row.get("path") and (run / str(row["path"])).is_dir() for row in report["models"]
    ):
        return f"made by an older version, without {COMPARISON}: run the recipe again, finished stages are kept"
    return f"holds a report without the records of its run: {CLAIM}; check the run's own folder"


def baseline_notes(details: dict[str, Any]) -> list[str]:
    """The sentence a reader must see first when a linear model does as well as the teacher."""
    values = {row["name"]: row["accuracy"]["value"] for row in details["models"]}
    formats = {row["name"]: row["format"] for row in details["models"]}
    baseline = next((name for name, kind in formats.items() if kind == "baseline"), None)
    reference = details.get("reference")
    metric = metric_named(details["models"][0]["accuracy"]["metric"])
    if baseline is None or reference not in values or metric.change(values[reference], values[baseline]) < 0:
        return []
    word = "as good as" if values[baseline] == values[reference] else "better than"
    sentence = measured_task(details).baseline_note
    return [
        sentence.format(
            name=baseline,
            value=values[baseline],
            word=word,
            reference=reference,
            of_reference=values[reference],
        )
    ]
