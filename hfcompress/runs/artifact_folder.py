"""The folder of a stage: clean when it begins, its record last, then its name; a kill at any moment loses nothing.

KEY.part holds what a stage writes and, in work/, what survives a kill. When the stage has ended, its files are flushed
to the disk, record.json is written with their hashes, work/ is removed, and the folder is renamed to KEY.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError
from hfcompress.folders.files import PART, clear, flush, flush_folder, is_left_over, sweep
from hfcompress.folders.guard import read_config
from hfcompress.folders.permissions import as_umask_says
from hfcompress.folders.record import Record, environment, peak_rss_mb, sha256
from hfcompress.formats import format_of
from hfcompress.runs.lock import plain
from hfcompress.stage import Artifact, Stage

WORK = "work"
MADE_AGAIN = "delete this folder to have the stage made again"
DIFFERENCE_INPUTS = 64


def begin(part: Path) -> None:
    """Leave a stage nothing but work/ of what a killed call wrote, and there only what is whole."""
    (part / WORK).mkdir(parents=True, exist_ok=True)
    clear(part, keep=WORK)
    sweep(part / WORK)


def finish(
    part: Path, stage: Stage, name: str, key: str, inputs: dict[str, Any], measured: dict[str, Any], seconds: float
) -> Path:
    """Measure what was written, write the record last, and give the folder its final name, which is returned."""
    has_model = (part / "config.json").is_file()
    found: dict[str, Any] = format_of(part).size(part) if has_model else {"parameters": 0, "bytes": 0, "dtypes": {}}
    if has_model:
        measured = measured | {"difference_from_parent": parent_difference(part, as_folders(inputs))}
    work = part / WORK
    paths = [file for file in sorted(part.rglob("*")) if file.is_file() and work not in file.parents]
    files = {file.relative_to(part).as_posix(): file for file in paths}
    if left := next(filter(is_left_over, paths), None):
        raise RuntimeError(f"{type(stage).__name__} left {left.name}, which is no finished file")
    for file in paths:
        as_umask_says(file)
    flush(paths)
    Record(
        name=name,
        stage=type(stage).__name__,
        key=key,
        options=plain(stage),
        inputs={k: describe(v) for k, v in inputs.items()},
        seconds=round(seconds, 2),
        peak_rss_mb=round(peak_rss_mb(), 1),
        format=format_of(part).word if has_model else "measurement",
        parameters=found["parameters"],
        bytes=found["bytes"],
        dtypes=found["dtypes"],
        files={place: file.stat().st_size for place, file in files.items()},
        sha256={place: sha256(file) for place, file in files.items()},
        measured=measured,
        environment=environment(),
    ).write(part)
    return rename(part)


def finish_killed(part: Path) -> None:
    """Give a folder its final name that had its record when its process was killed.

    One that is not what its record says is removed: its stage is made from the beginning.
    """
    if not (part / "record.json").is_file():
        return
    shutil.rmtree(part / WORK, ignore_errors=True)
    try:
        damage = Artifact(part).damage(hashed=True)
    except UserError as error:
        damage = str(error)
    if damage:
        print(f"{part.name} is damaged ({damage}): made again", file=sys.stderr, flush=True)
        shutil.rmtree(part)
    else:
        rename(part)


def rename(part: Path) -> Path:
    """KEY.part to KEY, without work/; it then stays so whatever happens to the machine."""
    final = part.with_name(part.name.removesuffix(PART))
    shutil.rmtree(part / WORK, ignore_errors=True)
    flush_folder(part)
    part.rename(final)
    flush_folder(final.parent)
    return final


def parent_difference(child: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """How far the outputs moved from the parent's on the same validation inputs; None without a comparable parent."""
    from hfcompress.evaluation.difference import difference

    parent, task = inputs.get("model"), inputs.get("task")
    if not isinstance(parent, Path) or task is None:
        return None
    labels = [read_config(folder).get("id2label") for folder in (parent, child)]
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
