"""SIGKILL at random file events of every recipe's smoke run: each end is byte for byte that of a run left alone.

Compared are the records' hashes of every file of every Artifact that computes weights, graphs or bit widths, and the
predictions on the test split. Not compared is what a clock or the machine's memory says: the measurements, the report,
the rollout, and in a record `seconds`, `peak_rss_mb` and `measured`.
"""

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fork_server import ForkServer
from tests.kill_start import events_of

KILLS = int(os.environ.get("HFCOMPRESS_KILLS", "100"))  # of all recipes together
TIMEOUT = 600.0
MEASURED = ("measure-", "rollout-")
LEFT = (".part", ".lock", ".scratch")


def short(stage: str, *more: str) -> list[str]:
    """A training of one epoch, with two checkpoints."""
    return [f"--{stage}.num-train-epochs", "1", *more]


RECIPES = {
    "legal_bert": [*short("finetune"), *short("distill"), *short("prune"), *short("qat")],
    "legal_bert_structured": [
        *short("finetune"), *short("distill"), *short("prune"), *short("structured"), *short("low-rank"),
        *short("factorize"), *short("qat"),
    ],
    "multilingual": [*short("finetune"), *short("factorize"), *short("qat")],
    "summarize_7b": ["--pretrain.max-steps", "6"],
    "any_causal_lm": [],
    "ctr_embeddings": [*short("train"), "--curve", "rows-4-6"],
    "resnet_prune": [*short("train"), *short("prune")],
    "iot_camera": [],
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A run's result: artifact -> file -> hash; and how many file events it had."""

    files: dict[str, dict[str, str]]
    events: int


def started(fork_server: ForkServer, recipe: str, folder: Path, at: int | None) -> int | None:
    """Start a smoke run; how many file events it had, or None where it was killed at the event `at`."""
    words = ["run", recipe, "--smoke", "--run-dir", str(folder), *RECIPES[recipe]]
    done = fork_server.call("tests.kill_start:start", str(folder), at, *words, timeout=TIMEOUT, most_mb=4000)
    assert "Traceback" not in done.err, done.err[-3000:]
    if done.code == -9 and not done.timed_out:
        nobody_left(int(folder.with_suffix(".pid").read_text()))
        return None
    assert done.code == 0, done.err[-3000:]
    found = events_of(done.out)
    assert found["code"] in (0, 1), done.err[-3000:]  # a smoke run's budget may not hold
    return int(found["events"])


def nobody_left(group: int) -> None:
    """Wait until no process is left of those that a killed one had started."""
    deadline = time.monotonic() + 30
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "a process outlives the killed one that had started it"
        time.sleep(0.05)


def ended(folder: Path, events: int) -> Ended:
    """What a run has made; nothing that is not whole lies in its folder."""
    for path in folder.rglob("*"):
        assert not path.name.endswith(LEFT), path
        assert not path.name.startswith(".tmp"), path
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/record.json")}
    files = {name: record["sha256"] for name, record in records.items() if not name.startswith(MEASURED)}
    for name, record in records.items():
        if name.startswith(MEASURED) and "predictions.npz" in record["sha256"]:
            files[name] = {"predictions.npz": record["sha256"]["predictions.npz"]}
    for made in ("report.json", "report.html", "model_card.md", "details.json", "recipe.lock.json"):
        assert (folder / made).is_file()
    return Ended(files, events)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_is_killed_at_random_file_events_ends_as_if_it_never_was(
    fork_server: ForkServer, recipe: str, tmp_path: Path
) -> None:
    events = started(fork_server, recipe, tmp_path / "alone", None)
    assert events is not None
    alone = ended(tmp_path / "alone", events)
    kills = KILLS // len(RECIPES) + (list(RECIPES).index(recipe) < KILLS % len(RECIPES))
    draw, folder, killed = random.Random(recipe), tmp_path / "killed", 0
    while killed < kills:
        # Many short steps, so that all of the run is met; a stage that begins anew each time needs longer ones.
        events = started(fork_server, recipe, folder, draw.randint(1, max(2, 3 * alone.events // kills)))
        if events is not None:  # it ended: begin another one
            assert ended(folder, events).files == alone.files
            folder = tmp_path / f"killed-{killed}"
        else:
            killed += 1
    events = started(fork_server, recipe, folder, None)
    assert events is not None
    assert ended(folder, events).files == alone.files
