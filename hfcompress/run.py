"""Run: calls each stage of a recipe once, skips what is done, resumes what was cut off, records everything."""

import dataclasses
import errno
import fcntl
import re
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress import hub
from hfcompress.budget import Budget, ImageBudget, Verdict, verdicts
from hfcompress.errors import UserError
from hfcompress.lock import LOCK, lock, plain
from hfcompress.record import Record, environment, peak_rss_mb, read_json, sha256, write_json
from hfcompress.stage import Artifact, Stage, content_key, model_format, with_option

if TYPE_CHECKING:
    from hfcompress.language_shape import LanguageShape
    from hfcompress.shape import Shape
    from hfcompress.tasks.causal_lm import CausalLM
    from hfcompress.tasks.clicks import Clicks
    from hfcompress.tasks.image_classification import ImageClassification
    from hfcompress.tasks.text_classification import TextClassification

DIFFERENCE_INPUTS = 64


class Run:
    """Executes a recipe in one folder.

    Args:
        folder: where the Artifacts, report.json and report.html go.
        recipe, scale: their names, for the report.
        predictions: what `plan` said of each model (name -> {"disk_mb", "latency_ms", ...}), for the report.
        options: the recipe's, resolved, for the lock.

    Raises:
        UserError: another process runs in the same folder.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str,
        scale: str,
        predictions: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        import torch
        from accelerate import PartialState

        from hfcompress.training import BARRIER

        self.folder = folder
        self.recipe, self.scale = recipe, scale
        self.predictions = predictions or {}
        self.options = options or {}
        self.ranks = PartialState(cpu=not torch.cuda.is_available(), timeout=BARRIER)
        self.made: list[Artifact] = []
        folder.mkdir(parents=True, exist_ok=True)
        if self.ranks.is_main_process:
            self._lock()

    def _lock(self) -> None:
        """Hold the folder until this process ends, however it ends: the kernel drops the lock."""
        self._lock_file = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another run works in {self.folder}; wait for it to end, or give this one its own --run-dir"
            ) from None

    def close(self) -> None:
        """Let go of the folder before the process ends."""
        if self.ranks.is_main_process:
            self._lock_file.close()

    def base(self, name: str, shape: "Shape | LanguageShape | None" = None) -> Path:
        """The folder of a model by name (see `hub.pull`). `shape` is what a Plan uses in its place."""
        with self.ranks.main_process_first():
            return hub.pull(name)

    def __call__(self, stage: Stage, *, name: str | None = None, **inputs: Any) -> Artifact:
        """Run `stage` unless its Artifact is there already; a cut-off one is resumed where it stopped.

        Args:
            name: the model's name in the report; the stage's own name when not given.
            inputs: Artifacts, folders and tasks, handed to the stage by keyword (Artifacts as their folders).

        Raises:
            UserError: a finished Artifact is damaged, the disk is full, or what the stage itself raises.
        """
        name = name or snake_case(type(stage).__name__)
        key = content_key(stage, inputs)
        final = self.folder / f"{name}-{key}"
        if (final / "record.json").is_file():
            self._say(f"{name}: done before, kept ({final.name})")
        else:
            self._make(stage, name, key, final, inputs)
        artifact = Artifact(final)
        if damage := artifact.damage():
            raise UserError(f"{final}: {damage}; delete this folder to have the stage made again")
        self.made.append(artifact)
        return artifact

    def _make(self, stage: Stage, name: str, key: str, final: Path, inputs: dict[str, Any]) -> None:
        part = final.with_name(final.name + ".part")
        if self.ranks.is_main_process:
            self._say(f"{name}: {'resuming' if part.exists() else 'running'} {type(stage).__name__}")
            (part / "work").mkdir(parents=True, exist_ok=True)
        self.ranks.wait_for_everyone()
        begun = time.monotonic()
        try:
            measured = {}
            if stage.training or self.ranks.is_main_process:
                measured = stage(part, **as_folders(inputs))
            self.ranks.wait_for_everyone()
            if self.ranks.is_main_process:
                self._finish(stage, name, key, part, final, inputs, measured, time.monotonic() - begun)
        except Exception as error:
            if disk_is_full(error):
                free = shutil.disk_usage(self.folder).free / 1e6
                raise UserError(
                    f"{name}: the disk that holds {self.folder} is full ({free:.0f} MB free); make room or give "
                    "another --run-dir, then run the same command again: finished stages are kept"
                ) from error
            if isinstance(error, UserError) and "--*." in str(error):
                raise type(error)(with_option(str(error), stage, self.options)) from error
            raise
        self.ranks.wait_for_everyone()

    def _finish(
        self,
        stage: Stage,
        name: str,
        key: str,
        part: Path,
        final: Path,
        inputs: dict[str, Any],
        measured: dict[str, Any],
        seconds: float,
    ) -> None:
        """Measure what was written, write the record last, and give the folder its final name."""
        from hfcompress.evaluation.size import sizes

        shutil.rmtree(part / "work", ignore_errors=True)
        has_model = (part / "config.json").is_file()
        found: dict[str, Any] = sizes(part) if has_model else {"parameters": 0, "bytes": 0, "dtypes": {}}
        if has_model:
            measured = measured | {"difference_from_parent": parent_difference(part, as_folders(inputs))}
        files = {f.relative_to(part).as_posix(): f for f in sorted(part.rglob("*")) if f.is_file()}
        Record(
            name=name,
            stage=type(stage).__name__,
            key=key,
            options=plain(stage),
            inputs={k: describe(v) for k, v in inputs.items()},
            seconds=round(seconds, 2),
            peak_rss_mb=round(peak_rss_mb(), 1),
            format=model_format(part) if has_model else "measurement",
            parameters=found["parameters"],
            bytes=found["bytes"],
            dtypes=found["dtypes"],
            files={place: file.stat().st_size for place, file in files.items()},
            sha256={place: sha256(file) for place, file in files.items()},
            measured=measured,
            environment=environment(),
        ).write(part)
        part.rename(final)
        self._say(f"{name}: done in {seconds:.0f} s" + (f", {found['bytes'] / 1e6:.1f} MB" if has_model else ""))

    def compare(
        self,
        *models: Artifact,
        reference: Artifact,
        candidate: Artifact,
        budget: Budget,
        task: "TextClassification | ImageClassification | CausalLM | Clicks",
        measure: Stage,
        latency_reference: Artifact | None = None,
        deliver: tuple[Artifact, ...] = (),
        base: str | None = None,
        notes: tuple[str, ...] = (),
        allotment: Artifact | None = None,
        summaries: Artifact | None = None,
        rollout: Artifact | None = None,
    ) -> dict[str, Any]:
        """Measure all models in one go, hold the candidate against the budget, write report.json and report.html.

        Args:
            reference: what a drop is counted from; candidate: what the verdicts are about.
            latency_reference: what `latency_ratio` is counted from (default: the reference).
            deliver: what `push` uploads (default: the candidate).
            base: the name of the model that all began with, for the card.
            notes: sentences that a reader must see first.
            allotment: where the bits of each matrix were chosen, for the report's picture.
            summaries: what the models made of a data set's documents.
            rollout: what replay, shadow and A/B test said of reference and candidate, for the report.

        Returns: report.json's object.
        """
        import json

        from hfcompress.evaluation.statistics import Difference, n_needed

        measured = self(
            measure,
            name="measure",
            models={m.name: m for m in models},
            task=task,
            reference=reference.name,
            confidence=budget.confidence,
        )
        details = json.loads((measured.path / "measurements.json").read_text(encoding="utf-8"))
        if isinstance(budget, ImageBudget):
            from hfcompress.microcontroller import add_to_rows

            add_to_rows(details["models"], candidate.name, candidate.path, budget)
        allowed = max(budget.drop.values(), default=0.0)
        for found in details["differences"].values():
            for difference in found.values():
                difference["n_needed"] = n_needed(Difference(**difference), allowed)
        decided = verdicts(
            budget,
            candidate.name,
            reference.name,
            (latency_reference or reference).name,
            details["models"],
            details["differences"].get(candidate.name, {}),
            self.predictions.get(candidate.name, {}),
        )
        report = self._report(details, decided, budget, models, candidate.name, notes)
        if self.ranks.is_main_process:
            more = {
                "max_length": task.max_length,
                "data": task.identity.partition("@")[0],
                "datasets": [task.dataset.partition("@")[0]] if task.on_hub else [],
                "base": hub.origin(base or reference.name),
                "deliver": [model.name for model in deliver or (candidate,)],
                "measured": measured.path.name,
                **({"allotment": read_json(allotment.path / "allotment.json")} if allotment else {}),
                **({"summaries": read_json(summaries.path / "summaries.json")} if summaries else {}),
                **({"rollout": read_json(rollout.path / "rollout.json")} if rollout else {}),
                "records": [dataclasses.asdict(artifact.record) for artifact in self.made if artifact is not measured],
            }
            self._write(report, details | more, lock(self.recipe, self.scale, self.options, task.identity))
        return report

    def _report(
        self,
        details: dict[str, Any],
        decided: list[Verdict],
        budget: Budget,
        models: tuple[Artifact, ...],
        candidate: str,
        notes: tuple[str, ...],
    ) -> dict[str, Any]:
        from hfcompress.report.images import static_note

        made = {model.name: model for model in models}
        rows = [
            row
            | {
                "stage": made[row["name"]].record.stage if row["name"] in made else "Baseline",
                "path": made[row["name"]].path.name if row["name"] in made else None,
                "predicted": self.predictions.get(row["name"]),
            }
            for row in details["models"]
        ]
        return {
            "schema_version": 1,
            "recipe": self.recipe,
            "scale": self.scale,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(),
            "notes": [*notes, *baseline_notes(details), *static_note(rows, candidate)],
            "models": rows,
            "budget": dataclasses.asdict(budget),
            "verdicts": [verdict.as_dict() for verdict in decided],
            "ok": all(verdict.ok for verdict in decided),
        }

    def _write(self, report: dict[str, Any], details: dict[str, Any], locked: dict[str, Any]) -> None:
        from hfcompress.report.console import table
        from hfcompress.report.pages import write_pages

        write_json(self.folder / "report.json", report)
        write_json(self.folder / "details.json", details)
        write_json(self.folder / LOCK, locked)
        write_pages(self.folder, report, details)
        print(table(report))
        self._say(f"report: {self.folder / 'report.html'}")

    def _say(self, message: str) -> None:
        if self.ranks.is_main_process:
            print(message, file=sys.stderr, flush=True)


def baseline_notes(details: dict[str, Any]) -> list[str]:
    """The sentence a reader must see first when a linear model does as well as the teacher."""
    values = {row["name"]: row["accuracy"]["value"] for row in details["models"]}
    formats = {row["name"]: row["format"] for row in details["models"]}
    baseline = next((name for name, kind in formats.items() if kind == "baseline"), None)
    reference = details.get("reference")
    if baseline is None or reference not in values or values[baseline] < values[reference]:
        return []
    word = "as good as" if values[baseline] == values[reference] else "better than"
    if details.get("kind") == "clicks":
        return [
            f"The baseline {baseline} (a number an item, AUC {values[baseline]:.4f}) is {word} the {reference} "
            f"({values[reference]:.4f}): no embeddings may be needed at all."
        ]
    return [
        f"On this data the linear baseline ({baseline}, {values[baseline]:.3f}) is {word} the {reference} "
        f"({values[reference]:.3f}): a TF-IDF model may be all you need."
    ]


def parent_difference(child: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """How far the outputs moved from the parent's on the same validation inputs; None without a comparable parent."""
    import json

    from hfcompress.evaluation.difference import difference

    parent, task = inputs.get("model"), inputs.get("task")
    if not isinstance(parent, Path) or task is None:
        return None
    labels = [
        json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") for folder in (parent, child)
    ]
    if labels[0] is None or labels[0] != labels[1]:
        return None
    return difference(parent, child, task.data.inputs("validation", DIFFERENCE_INPUTS), task.max_length)


def as_folders(inputs: dict[str, Any]) -> dict[str, Any]:
    """Artifacts as their folders, also inside a dict."""
    return {
        name: value.path if isinstance(value, Artifact) else as_folders(value) if isinstance(value, dict) else value
        for name, value in inputs.items()
    }


def describe(value: Any) -> str:
    """An input as the record names it: never a path of this machine."""
    if isinstance(value, Artifact):
        return value.path.name
    if isinstance(value, Path):
        return value.name
    if isinstance(value, dict):
        return ", ".join(describe(item) for item in value.values())
    if hasattr(value, "identity"):  # a task
        return str(value.identity)
    return str(value)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether ENOSPC is the cause: as an OSError, or as the text that safetensors and onnx make of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(r"no space left on device|os error 28|file write failed|unexpected pos", str(error), re.I):
            return True
        error = error.__cause__ or error.__context__
    return False


def snake_case(name: str) -> str:
    """MovementPrune -> movement_prune, QAT -> qat."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
