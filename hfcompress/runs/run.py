"""Run: calls each stage of a recipe once, skips what is done, resumes what was cut off, records everything."""

import dataclasses
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from hfcompress.budget import Budget
from hfcompress.errors import UserError
from hfcompress.folders import fetch
from hfcompress.folders.files import PART, FolderLock, disk_is_full, full_disk, say_left, sweep
from hfcompress.folders.record import cpu_name, environment, read_json, sha256, slow_integers, write_json
from hfcompress.runs.artifact_folder import MADE_AGAIN, as_folders, begin, finish, finish_killed
from hfcompress.runs.comparison import Comparison
from hfcompress.runs.lock import LOCK, lock, plain
from hfcompress.stage import Artifact, Shown, Stage, content_key, parameter_of, require_shown, snake_case
from hfcompress.training.trainer import BARRIER

if TYPE_CHECKING:
    from hfcompress.architectures.decoder_spec import LanguageShape
    from hfcompress.architectures.encoder_spec import Shape
    from hfcompress.tasks.task import Task


class Run:
    """Executes a recipe in one folder.

    Args:
        folder: where the Artifacts, report.json and report.html go.
        recipe: its name, for the report.
        scale: the name of its scale, for the report.
        predictions: what `plan` said of each model (name -> {"disk_mb", "latency_ms", ...}), for the report.
        options: the recipe's, resolved, for the lock.
        held: the folder's lock, where the caller has it already.

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
        held: FolderLock | None = None,
    ) -> None:
        self.folder = folder
        self.recipe, self.scale = recipe, scale
        self.predictions = predictions or {}
        self.options = options or {}
        self.ranks = ranks()
        self.made: list[Artifact] = []
        self.verified: set[Path] = set()
        """Artifacts whose bytes this run has read and compared, or written."""
        self.held = held
        if self.ranks.is_main_process:
            self.held = held or FolderLock(folder)
            sweep(folder, deep=False)
            sweep(folder / "teacher-logits")

    def close(self) -> None:
        """Let go of the folder before the process ends."""
        if self.held is not None:
            self.held.close()

    def base(self, name: str, shape: "Shape | LanguageShape | None" = None) -> Path:
        """The folder of a model by name (see `hub.pull`). `shape` is what a Plan uses in its place."""
        with self.ranks.main_process_first():
            return fetch.pull(name)

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
        part = final.with_name(final.name + PART)
        if self.ranks.is_main_process and not final.exists():
            finish_killed(part)
        self.ranks.wait_for_everyone()
        if (final / "record.json").is_file():
            self._say(f"{name}: done before, kept ({final.name})")
        elif final.exists():
            raise UserError(f"{final}: record.json is missing; {MADE_AGAIN}")
        else:
            self._make(stage, name, key, part, inputs)
        artifact = Artifact(final)
        self._verify(artifact)
        self.made.append(artifact)
        return artifact

    def _verify(self, artifact: Artifact) -> None:
        """Hold an Artifact against its record: its bytes once a run, by the main process.

        Raises:
            UserError: a file is missing, changed or too many.
        """
        hashed = self.ranks.is_main_process and artifact.path not in self.verified
        if damage := artifact.damage(hashed=hashed):
            raise UserError(f"{artifact.path}: {damage}; {MADE_AGAIN}")
        self.verified.add(artifact.path)

    def _make(self, stage: Stage, name: str, key: str, part: Path, inputs: dict[str, Any]) -> None:
        if self.ranks.is_main_process:
            self._say(f"{name}: {'resuming' if part.exists() else 'running'} {type(stage).__name__}")
            begin(part)
        self.ranks.wait_for_everyone()
        begun = time.monotonic()
        try:
            measured = {}
            if stage.training or self.ranks.is_main_process:
                measured = stage(part, **as_folders(inputs))
            self.ranks.wait_for_everyone()
            if self.ranks.is_main_process:
                seconds = time.monotonic() - begun
                final = finish(part, stage, name, key, inputs, measured, seconds)
                self.verified.add(final)
                size = f", {Artifact(final).record.bytes / 1e6:.1f} MB" if (final / "config.json").is_file() else ""
                self._say(f"{name}: done in {seconds:.0f} s{size}")
        except Exception as error:
            if disk_is_full(error):
                raise UserError(
                    f"{name}: {full_disk(error, self.folder)}; make room or give another --run-dir, then run the same "
                    "command again: finished stages are kept"
                ) from error
            if isinstance(error, UserError):
                error.group = error.group or parameter_of(stage, self.options)
            raise
        self.ranks.wait_for_everyone()

    def compare(
        self,
        *models: Artifact,
        reference: Artifact,
        candidate: Artifact,
        budget: Budget,
        task: "Task",
        measure: Stage,
        latency_reference: Artifact | None = None,
        **shown: Unpack[Shown],
    ) -> dict[str, Any]:
        """Measure all models in one go, hold the candidate against the budget, write report.json and report.html.

        Args:
            reference: what a drop is counted from; candidate: what the verdicts are about.
            latency_reference: what `latency_ratio` is counted from (default: the reference).
            shown: `deliver`, `base`, `notes`, `sections`; see `stage.Shown`.

        Returns: report.json's object.
        """
        import json

        require_shown(shown)
        measured = self(
            measure,
            name="measure",
            models={m.name: m for m in models},
            task=task,
            reference=reference.name,
            confidence=budget.confidence,
        )
        details = json.loads((measured.path / "measurements.json").read_text(encoding="utf-8"))
        names = {model.name: model.path.name for model in models}
        comparison = Comparison(
            recipe=self.recipe,
            scale=self.scale,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment(),
            notes=[
                *shown.get("notes", ()),
                *getattr(task.data, "notes", ()),
                *latency_notes(budget),
            ],  # and what was done to the data
            budget_kind=type(budget).__name__,
            budget=plain(budget),
            candidate=candidate.name,
            reference=reference.name,
            latency_reference=(latency_reference or reference).name,
            measured=measured.path.name,
            folders=names,
            predictions=self.predictions,
            counted=counted_on_a_microcontroller(candidate, budget),
            records={a.path.name: sha256(a.path / "record.json") for a in (*models, measured)},
        )
        details = comparison.completed(details)
        report = dict(comparison.report(details, {model.name: model.record.stage for model in models}))
        if self.ranks.is_main_process:
            more = {
                "max_length": task.max_length,
                "data": task.identity.partition("@")[0],
                "datasets": [task.dataset.partition("@")[0]] if task.on_hub else [],
                "base": fetch.origin(shown.get("base") or reference.name),
                "deliver": [model.name for model in shown.get("deliver") or (candidate,)],
                "measured": measured.path.name,
                "sections": {
                    name: read_json(artifact.path / f"{name}.json")
                    for name, artifact in shown.get("sections", {}).items()
                    if artifact is not None
                },
                "records": [dataclasses.asdict(artifact.record) for artifact in self.made if artifact is not measured],
            }
            comparison.write(self.folder)
            self._write(report, details | more, lock(self.recipe, self.scale, self.options, task.identity))
        return report

    def _write(self, report: dict[str, Any], details: dict[str, Any], locked: dict[str, Any]) -> None:
        from hfcompress.report.pages import write_pages

        details = details | {"created": report["created"]}  # says to which report.json it belongs
        write_json(self.folder / LOCK, locked)
        write_json(self.folder / "details.json", details)
        write_pages(self.folder, report, details)
        write_json(self.folder / "report.json", report)  # last: what reads a run begins with it
        say_left(self.folder)
        self._say(f"report: {self.folder / 'report.html'}")

    def _say(self, message: str) -> None:
        if self.ranks.is_main_process:
            print(message, file=sys.stderr, flush=True)


def ranks() -> Any:
    """The processes that run this recipe: one, or those that accelerate launched."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=BARRIER)


def counted_on_a_microcontroller(candidate: Artifact, budget: Budget) -> dict[str, Any]:
    """Model -> what a budget limits and no stage measures: the candidate's SRAM and flash."""
    if (limited := budget.on_chip) is None:
        return {}
    from hfcompress.planning.devices.microcontroller import add_to_rows

    row: dict[str, Any] = {"name": candidate.name}
    add_to_rows([row], candidate.name, candidate.path, limited)
    return {candidate.name: row}


def latency_notes(budget: Budget) -> list[str]:
    """What a reader must know of a latency ratio, where int8 is not fast on this processor."""
    sentence = slow_integers(cpu_name()) if budget.latency_ratio is not None else None
    return [] if sentence is None else [sentence]
