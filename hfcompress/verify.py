"""verify: hold a fetched repository's files against its records, and measure again what its report claims."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hfcompress.errors import UserError
from hfcompress.record import environment, read_json, sha256
from hfcompress.release import FOLDERS, file_of, placed
from hfcompress.report.console import candidate_row

if TYPE_CHECKING:
    from hfcompress.tasks.causal_lm import CausalLM
    from hfcompress.tasks.text_classification import TextClassification

RUNS = 30


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


def verify(folder: Path, task: "TextClassification | CausalLM", data: str) -> list[Claim]:
    """Check every claim that can be checked here.

    Args:
        folder: a repository as it was fetched; task: the data that accuracy is measured on; data: the identity of the
            data that it was measured on. On other data the accuracy is shown, and nothing is decided.

    Raises:
        UserError: it is not a repository that `push` made, or the data has other labels.
    """
    report = read_json(folder / "report.json")
    if "delivered" not in report:
        raise UserError(f"{folder}: its report.json names no delivered files; is it a repository that `push` made?")
    hashes = [hash_claim(folder, place, name) for place, name in report["delivered"].items()]
    if not all(claim.ok for claim in hashes):
        return hashes  # what was changed is not run
    row = candidate_row(report)
    with tempfile.TemporaryDirectory() as work:
        model = laid_out(folder, row, Path(work))
        same = task.identity.rpartition("@")[2] == data.rpartition("@")[2]
        measured_on = Claim("data", data, task.identity, True if same else None)
        if is_language(row):
            return [*hashes, measured_on, *language_claims(model, row, cast("CausalLM", task), same)]
        classified = cast("TextClassification", task)
        return [*hashes, measured_on, *accuracy_claims(model, row, classified, same), latency_claim(model, row)]


def is_language(row: dict[str, Any]) -> bool:
    """Whether a report's model is a causal LM."""
    return row["accuracy"]["metric"] == "perplexity"


def hash_claim(folder: Path, place: str, name: str) -> Claim:
    """Whether a file has the bytes that the record of its model says."""
    claimed = read_json(folder / "records" / f"{name}.json")["sha256"][file_of(place)]
    found = sha256(folder / place) if (folder / place).is_file() else "no file"
    return Claim(f"sha256 of {place}", claimed[:12], found[:12], claimed == found)


def laid_out(folder: Path, row: dict[str, Any], work: Path) -> Path:
    """The candidate as one folder, as the run had it."""
    if row["format"] in FOLDERS:
        return folder / FOLDERS[row["format"]]
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt", ".model"):
            (work / file.name).symlink_to(file.resolve())
    weights = "model.onnx" if row["format"] == "onnx" else "model.safetensors"
    (work / weights).symlink_to((folder / placed(weights, row)).resolve())
    return work


def accuracy_claims(model: Path, row: dict[str, Any], task: "TextClassification", same: bool) -> list[Claim]:
    """Each metric that was claimed with an interval: measured here, on the same data, it must lie in it."""
    import numpy as np

    from hfcompress.evaluation.accuracy import evaluate_logits
    from hfcompress.evaluation.predictor import Predictor

    predictor, data = Predictor(model), task.data
    if predictor.labels != data.labels:
        raise UserError(f"the model answers {', '.join(predictor.labels)}; the data has {', '.join(data.labels)}")
    logits = predictor.logits(data.texts("test"), task.max_length)
    found = evaluate_logits(logits, np.array(data.label_ids("test")), data.labels)
    claimed = row["accuracy"]["all"]
    return [
        Claim(
            f"{name} on {len(logits):,} texts",
            f"{claimed[name]:.4f} (95%: {low:.4f} to {high:.4f})",
            f"{found[name]:.4f}",
            low <= found[name] <= high if same else None,
        )
        for name, (low, high) in claimed["ci95"].items()
    ]


def language_claims(model: Path, row: dict[str, Any], task: "CausalLM", same: bool) -> list[Claim]:
    """Perplexity, measured here in the model's own runtime, must lie in the claimed interval; times are shown."""
    import time

    from hfcompress.evaluation.decoder import open_decoder
    from hfcompress.evaluation.language import log_probabilities, scores
    from hfcompress.models import language_tokenizer

    claimed, timed = row["accuracy"]["all"], row["latency_ms"]
    windows = task.test_windows(language_tokenizer(model))
    decoder = open_decoder(model, timed["threads"])
    found = scores((log_probabilities(decoder, window) for window in windows), windows)
    low, high = claimed["ci95"]["perplexity"]
    decoder.rewind(0)
    logits = decoder.append([3] * min(timed["sequence_length"] // 2, decoder.context // 2))
    begun = time.perf_counter()
    for _ in range(RUNS):
        logits = decoder.append([int(logits[-1].argmax())])
        decoder.rewind(decoder.length - 1)
    each = 1e3 * (time.perf_counter() - begun) / RUNS
    return [
        Claim(
            f"perplexity on {int(found.tokens.sum()):,} tokens",
            f"{claimed['perplexity']:.4f} (95%: {low:.4f} to {high:.4f})",
            f"{found.perplexity:.4f}",
            low <= found.perplexity <= high if same else None,
        ),
        Claim("ms a token", f"{timed['per_token']:.2f}", f"{each:.2f} ({environment()['cpu']})", None),
    ]


def latency_claim(model: Path, row: dict[str, Any]) -> Claim:
    """Latency here, beside what was claimed for another machine: nothing is decided."""
    from hfcompress.evaluation.latency import interleaved, percentiles
    from hfcompress.evaluation.predictor import Predictor

    claimed = row["latency_ms"]
    predictor = Predictor(model, claimed["threads"])
    request = predictor.request(claimed["sequence_length"], claimed["batch"])
    times = interleaved({"candidate": partial(predictor.run, request)}, RUNS)["candidate"]
    return Claim(
        f"p50 latency, {claimed['sequence_length']} tokens",
        f"{claimed['p50']:.2f} ms",
        f"{percentiles(times)['p50']:.2f} ms ({environment()['cpu']})",
        None,
    )
