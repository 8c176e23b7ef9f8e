"""verify: hold a fetched repository's files against its records, and measure again what its report claims."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError
from hfcompress.evaluation.accuracy import evaluate_logits
from hfcompress.evaluation.again import Again
from hfcompress.evaluation.metrics import metrics_of
from hfcompress.folders.inside import component, inside
from hfcompress.folders.record import environment, read_json, sha256
from hfcompress.formats.size import quantization_parameters
from hfcompress.hub.release import PREDICTIONS, file_of, form_of, placed, weights_of
from hfcompress.report.console import candidate_row
from hfcompress.runs.comparison import inconsistency

if TYPE_CHECKING:
    from hfcompress.tasks.task import Task

RUNS = 30
RESAMPLES = 1000
# What identical files may change on identical data, since another processor adds in another order. Integer sums are
# exact on every one (saturation.py), but a float beside them may fall to either side of a level.
SAME_LABELS = 0.995
"""Share of texts that must get the label that the run gave them."""


@dataclass(frozen=True)
class Claim:
    """One thing the report says, what was found here, and whether they agree; None where nothing is decided."""

    what: str
    claimed: str
    found: str
    ok: bool | None

    def __str__(self) -> str:
        word = {True: "holds", False: "DIFFERS", None: "to compare"}[self.ok]
        return f"{word:11} {self.what}: claimed {self.claimed}, found {self.found}"


def verify(folder: Path, task: "Task", data: str) -> list[Claim]:
    """Check every claim that can be checked here.

    On the data that the report is about, the same files must give the same answers, but for what another processor
    rounds otherwise (see SAME_LABELS and `Metric.nearness`). On other data each metric gets an interval of its own,
    which must have a part in common with the claimed one.

    Args:
        folder: a repository as it was fetched; task: the data that accuracy is measured on; data: the identity of the
            data that it was measured on.

    Raises:
        UserError: it is not a repository that `push` made, or the data has other labels.
    """
    report = read_json(folder / "report.json", "models", "verdicts")
    if "delivered" not in report:
        raise UserError(f"{folder}: its report.json names no delivered files; is it a repository that `push` made?")
    hashes = [hash_claim(folder, place, name) for place, name in report["delivered"].items()]
    wrong = inconsistency(report)
    hashes.append(Claim("verdicts", "follow from the figures", wrong or "follow from the figures", wrong is None))
    if not all(claim.ok for claim in hashes):
        return hashes  # what was changed is not run
    row = candidate_row(report)
    with tempfile.TemporaryDirectory() as work:
        model = laid_out(folder, row, Path(work))
        same = task.identity.rpartition("@")[2] == data.rpartition("@")[2]
        measured_on = Claim("data", data, task.identity, True if same else None)
        again = resolve_name(task.measure).again(model, row, task, runs=RUNS, resamples=RESAMPLES)
        kept = inside(folder, PREDICTIONS) if same and again.outputs is not None else None
        return [
            *hashes,
            measured_on,
            *processor_claims(model),
            *(same_answers(kept, row, again.outputs, task) if kept is not None else []),
            *figures(row, again, task, same),
            time_claim(again.timed, again.claimed_ms, again.found_ms),
        ]


def figures(row: dict[str, Any], again: Again, task: "Task", same: bool) -> list[Claim]:
    """Return each metric that was claimed with an interval and measured here."""
    names = [name for name in row["accuracy"]["all"]["ci95"] if name in again.every["ci95"]]
    metrics = metrics_of(task.metrics)
    nearness = {name: metrics[name].nearness(row["accuracy"]["all"][name]) for name in names}
    return [figure(again.counted, name, row, again.every, same, nearness[name]) for name in names]


def hash_claim(folder: Path, place: str, name: str) -> Claim:
    """Whether a file has the bytes that the record of its model says."""
    records, where = inside(folder, "records"), str(folder / "report.json")
    record = read_json(records / f"{component(name, where)}.json", "sha256")
    claimed = str(record["sha256"].get(file_of(place), "nothing"))
    file = inside(folder, place, where)
    found = sha256(file) if file.is_file() else "no file"
    return Claim(f"sha256 of {place}", claimed[:12], found[:12], claimed == found)


def processor_claims(model: Path) -> list[Claim]:
    """Whether an int8 graph's products are the same on every x86 processor; nothing of a graph in float.

    A graph for TensorRT has signed weights, which it says of itself: nothing is decided then. The products of a
    decoder's weights (MatMulNBits) are no such ones; these lie in a file beside, which is a link in the Hub's cache.
    """
    import onnx

    from hfcompress.formats.saturation import saturating_layers

    file = model / "model.onnx"
    if not file.is_file():
        return []
    graph = onnx.load(str(file), load_external_data=False)
    if not quantization_parameters(graph) or any(node.op_type == "MatMulNBits" for node in graph.graph.node):
        return []
    found = saturating_layers(graph)
    said = f"{len(found)} can overflow, such as {found[0]}: other answers there" if found else "the same on all"
    return [Claim("8-bit products on x86 with and without VNNI", "the same on all", said, None if found else True)]


def laid_out(folder: Path, row: dict[str, Any], work: Path) -> Path:
    """The candidate as one folder, as the run had it."""
    if place := form_of(row).folder:
        return inside(folder, place.rstrip("/"))
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt", ".model"):
            (work / file.name).symlink_to(inside(folder, file.name).resolve())
    weights = weights_of(row)
    (work / weights).symlink_to(inside(folder, placed(weights, row)).resolve())
    return work


def figure(
    what: str, name: str, row: dict[str, Any], every: dict[str, Any], same: bool, most: float = math.inf
) -> Claim:
    """A metric beside what was claimed: the intervals must overlap, and on the same data the values be near.

    Args:
        every: the metrics found here and, as `ci95`, their intervals; most: how far the value may be from the claimed
            one on the same data, beside lying in its interval.
    """
    claimed, found = row["accuracy"]["all"][name], every[name]
    (low, high), (least, largest) = row["accuracy"]["all"]["ci95"][name], every["ci95"][name]
    # A percentile interval need not hold its own estimate: what is equal is near.
    near = abs(found - claimed) <= 1e-6 or (low <= found <= high and abs(found - claimed) <= most)
    return Claim(
        f"{name} on {what}",
        f"{claimed:.4f} (95%: {low:.4f} to {high:.4f})",
        f"{found:.4f} (95%: {least:.4f} to {largest:.4f})",
        least <= high and low <= largest and (near or not same),
    )


def same_answers(kept: Path, row: dict[str, Any], logits: Any, task: Any) -> list[Claim]:
    """The run's own logits: the claimed metrics follow from them, and the model gives their labels again.

    Args:
        kept: where they lie; logits: the model's here; task: a `Labelled` one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    claimed = {name: row["accuracy"]["all"][name] for name in row["accuracy"]["all"]["ci95"]}
    try:
        theirs = load_file(kept)["logits"]
    except (OSError, SafetensorError, KeyError):
        theirs = logits[:0]
    if theirs.shape != logits.shape:
        what = f"the run's answers in {kept.name}"
        return [Claim(what, f"{len(logits):,} examples", f"{len(theirs):,} examples", False)]
    again = evaluate_logits(theirs, task.truth("test"), [], task.metrics)
    equal = int((theirs.argmax(axis=1) == logits.argmax(axis=1)).sum())
    return [
        Claim(
            "metrics of the run's answers",
            ", ".join(f"{name} {value:.4f}" for name, value in claimed.items()),
            ", ".join(f"{again[name]:.4f}" for name in claimed),
            all(abs(again[name] - value) <= 1e-6 for name, value in claimed.items()),
        ),
        Claim(
            "labels as the run gave them",
            f"at least {SAME_LABELS:.1%} (another processor rounds otherwise)",
            f"{equal:,} of {len(logits):,}",
            equal >= SAME_LABELS * len(logits),
        ),
    ]


def time_claim(what: str, claimed: float, found: float) -> Claim:
    """Milliseconds here, beside what was claimed for another machine: nothing is decided."""
    return Claim(what, f"{claimed:.3g} ms", f"{found:.3g} ms ({environment()['cpu']})", None)
