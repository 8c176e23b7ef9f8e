"""What of a run goes to the Hub: models where stock tools look for them, and the evidence beside them.

In the repository, the transformers model lies at the root, ONNX under onnx/ as model.onnx (fp32) and
model_quantized.onnx (int8): where `from_pretrained`, Optimum and transformers.js look. What onnxruntime-genai and
llama.cpp load are folders of their own, genai/ and gguf/. Beside them README.md (the model card), report.json,
report.html, its pictures, records/ (one JSON a stage, and what a classifier said of each test text) and
recipe.lock.json.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError, needs
from hfcompress.folders.inside import component, inside
from hfcompress.folders.record import Record, read_json
from hfcompress.formats import FORMATS, format_called
from hfcompress.formats.format import Format
from hfcompress.hub.push import PUSHING, require_repository
from hfcompress.hub.secret_search import first_secret
from hfcompress.report.console import candidate_row
from hfcompress.runs.comparison import disagreement, proven
from hfcompress.runs.lock import LOCK, read_lock
from hfcompress.stage import Artifact

INTEGER = {"int8", "uint8"}
PREDICTIONS = "records/predictions.safetensors"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclasses.dataclass(frozen=True)
class Release:
    """Files by their place in the repository: those that lie on the disk, and those that were rendered for it."""

    models: dict[str, Path]
    rendered: dict[str, bytes]

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its place, models first."""
        return {place: file.stat().st_size for place, file in self.models.items()} | {
            place: len(content) for place, content in self.rendered.items()
        }


def release(run: Path, repository: str, licence: str | None = None, *, allow_failed: bool = False) -> Release:
    """Collect what a finished run delivers.

    Args:
        run: its folder.
        repository: org/name, for the model card's lines of use.
        licence: the licence of the result, where the base model's is not known.

    Raises:
        UserError: the repository's name cannot be one, the run is not finished or was changed since, its verdicts do
            not hold (unless allowed), the base model's licence is unknown or forbids derivatives, or a file names a
            token or a path of this machine.
    """
    from hfcompress.report.pages import card_of, pictures_of

    require_repository(repository)
    for package in PUSHING:
        needs(package)
    report = read_json(inside(run, "report.json"), "recipe", "scale", "models", "verdicts", "notes", "ok")
    details = read_json(inside(run, "details.json"), "records", "reference", "base", "deliver")
    locked = read_lock(inside(run, LOCK))
    report = agreed_report(run, report)
    if not report["ok"] and not allow_failed:
        failed = next((verdict for verdict in report["verdicts"] if verdict["ok"] is not True), None)
        said = f"{failed['limit']}: {failed.get('verdict') or 'exceeded'}" if failed else "report.json says so"
        raise UserError(
            f"{run}: the budget does not hold ({said}); "
            "--allow-failed pushes it all the same, and its card says so first"
        )
    origin = details["base"] | {"licence": agreed_licence(details["base"], licence)}
    places = delivered(run, report, details)
    models_of = {place: name for place, (name, _) in places.items()}
    rendered = {
        "README.md": card_of(report, details | {"base": origin}, repository, models_of).encode(),
        "report.json": as_json(report | {"delivered": models_of}),
        "report.html": page(run),
        **{name: picture.encode() for name, picture in pictures_of(report, details).items()},
        LOCK: as_json(locked),
        **predictions(run, report, details),
    }
    for record in details["records"]:
        require_record(run, record)
        rendered[f"records/{component(record['name'], 'details.json')}.json"] = as_json(record)
    found = Release({place: file for place, (_, file) in places.items()}, rendered)
    refuse_secrets(found, run)
    return found


def agreed_report(run: Path, claimed: dict[str, Any]) -> dict[str, Any]:
    """Return report.json's object as the run's records prove it.

    Args:
        claimed: what report.json says. Where that is less than what is proven (a limit that does not hold, or holds no
            more), it is taken as it is.

    Raises:
        UserError: the run has no records, they were changed, or report.json says more than they do.
    """
    found = proven(run)
    failed = {verdict["limit"] for verdict in claimed["verdicts"] if verdict["ok"] is False}
    weaker = [verdict | {"ok": verdict["ok"] and verdict["limit"] not in failed} for verdict in found["verdicts"]]
    weakest = found | {"verdicts": weaker, "ok": found["ok"] and claimed["ok"] is True and not failed}
    if said := disagreement(run, claimed, weakest):
        raise UserError(f"{run}: {said}; hfcompress report {run} writes report.json from the records again")
    return dict(weakest)


def page(run: Path) -> bytes:
    """report.html as it lies in the run.

    Raises:
        UserError: it is gone, or is a link to somewhere else.
    """
    file = inside(run, "report.html")
    if not file.is_file():
        raise UserError(f"{file} is gone: hfcompress report {run} renders it again")
    return file.read_bytes()


def delivered(run: Path, report: dict[str, Any], details: dict[str, Any]) -> dict[str, tuple[str, Path]]:
    """The models' files by their place in the repository, each with the name of its model.

    Raises:
        UserError: one of them is gone, or is not what was measured.
    """
    rows = {row["name"]: row for row in report["models"]}
    places: dict[str, tuple[str, Path]] = {}
    for name in smallest([rows[name] for name in details["deliver"]], candidate_row(report)["name"]):
        folder = intact(inside(run, rows[name]["path"], "report.json"))
        files = {file: inside(folder, file) for file in Record.read(folder).files}
        if hidden := [file for file in files if any(part.startswith(".") for part in file.split("/"))]:
            raise UserError(f"{folder / hidden[0]} is a hidden file, which no stage writes: take it out, run again")
        # Of what several models have, such as the tokenizer, the first one's stays.
        places = {placed(file, rows[name]): (name, path) for file, path in files.items()} | places
    return places


def require_record(run: Path, record: dict[str, Any]) -> None:
    """Refuse a record in details.json that says other things of its files than the Artifact's own does.

    Raises:
        UserError: it does; or it is no record.
    """
    try:
        folder = inside(run, f"{component(record['name'], 'details.json')}-{record['key']}", "details.json")
        own = dataclasses.asdict(Record.read(folder)) if folder.is_dir() else record
        differ = [name for name in ("stage", "bytes", "dtypes", "files", "sha256") if own[name] != record[name]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / 'details.json'} is corrupt ({error!r}); run the recipe again") from None
    if differ:
        raise UserError(f"{run / 'details.json'}: its record of {record['name']} is not the one in {folder.name}")


def smallest(rows: list[dict[str, Any]], candidate: str) -> list[str]:
    """Of models that would lie in one place the candidate, or the smallest one; what lies at the root first."""
    kept: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["name"] != candidate, row["bytes"])):
        kept.setdefault(placed(weights_of(row), row), row)
    names = {row["name"] for row in kept.values()}
    ordered = sorted(rows, key=lambda row: placed(weights_of(row), row) != weights_of(row))
    return [row["name"] for row in ordered if row["name"] in names]


def intact(folder: Path) -> Path:
    """A folder of the run, if it holds what its record says.

    Raises:
        UserError: it is gone, or is not what was measured.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is gone: run the recipe again")
    if damage := Artifact(folder).damage(hashed=True):
        raise UserError(f"{folder} is not what was measured: {damage}; run the recipe again")
    return folder


def predictions(run: Path, report: dict[str, Any], details: dict[str, Any]) -> dict[str, bytes]:
    """The candidate's logits [texts, classes] on the test split: what `verify` holds its own against.

    Empty where the measurement keeps none: those of a language model would be larger than the model.
    """
    import numpy as np
    from safetensors.numpy import save

    if "measured" not in details:
        raise UserError(f"{run}: made by an older version; run the recipe again, finished stages are kept")
    file = intact(inside(run, details["measured"], "details.json")) / "predictions.npz"
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as kept:
        logits = np.ascontiguousarray(kept[candidate_row(report)["name"]], dtype=np.float32)
    return {PREDICTIONS: save({"logits": logits})}


def placed(file: str, row: dict[str, Any]) -> str:
    """Where a model's file lies in the repository.

    Raises:
        UserError: the row has a format that this version does not know.
    """
    return form_of(row).place(file, bool(INTEGER & set(row["dtypes"])))


def form_of(row: dict[str, Any]) -> Format:
    """The format of a row of report.json.

    Raises:
        UserError: this version does not know it.
    """
    try:
        return format_called(row["format"])
    except KeyError:
        known = ", ".join(sorted({found.word for found in FORMATS.values()}))
        raise UserError(
            f"report.json: {row['name']} is of the format {row['format']!r}; known are {known}: make the run again"
        ) from None


def weights_of(row: dict[str, Any]) -> str:
    """The name of the file by which two models would lie in one place."""
    return form_of(row).weights.replace("*", "model")


def file_of(place: str) -> str:
    """The file that `placed` put there."""
    for folder in {found.folder for found in FORMATS.values()}:
        place = place.removeprefix(folder)
    return place.removeprefix("onnx/").replace("model_quantized.onnx", "model.onnx")


def agreed_licence(origin: dict[str, Any], stated: str | None) -> str:
    """The base model's licence, or the one that is stated where the base names none.

    Raises:
        UserError: there is neither, they differ, what is stated cannot be the Hub's name of one (whose list only the
            Hub has: it looks there before any file is sent), or it forbids derivatives.
    """
    known = None if origin["licence"] == "unknown" else origin["licence"]
    named = f"{origin['name']} is under {origin.get('licence_name') or known}"
    licence: str | None = known or stated
    if licence is None:
        raise UserError(
            f"{origin['name']} names no licence, so nobody knows what may be done with a model made from it; "
            "state the result's with --license, such as --license apache-2.0"
        )
    if not known and not LICENCE.fullmatch(licence):
        raise UserError(
            f"--license {licence!r}: the Hub writes a licence as a short name, such as apache-2.0, mit or cc-by-4.0; "
            "those it knows: https://huggingface.co/docs/hub/repositories-licenses"
        )
    if known and stated and stated not in (known, origin.get("licence_name")):
        raise UserError(f"--license {stated}: {named}, which holds for what is made from it")
    if re.search(r"(^|-)nd(-|$)|no-?deriv", f"{licence} {origin.get('licence_name') or ''}", re.I):
        raise UserError(f"{named if known else f'--license {stated}'}, which forbids derivatives: it is not pushed")
    return licence


def refuse_secrets(found: Release, run: Path) -> None:
    """Look through every file for tokens, keys, passwords, home paths and the run's own place (see secret_search).

    Raises:
        UserError: with the file and what kind of thing stands there, not the thing itself.
    """
    own = tuple(f"{place}/" for place in (Path.home(), run.resolve()) if place.name)
    contents: dict[str, Path | bytes] = {**found.models, **found.rendered}
    for place, content in contents.items():
        if secret := first_secret(content, own):
            line, kind = secret
            raise UserError(f"{place}, line {line}, holds {kind}: take it out of the run's inputs and run again")


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
