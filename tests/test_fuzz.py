"""Damaged files of every kind: one line or the right answer; no traceback, no hang, no foreign code, no growth."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hfcompress.recipes import tiny
from tests import fuzz
from tests.fork_server import Finished, ForkServer
from tests.image_models import write_mobilenet
from tests.language_models import write_llama

pytestmark = pytest.mark.slow
INPUTS = 50  # of each of the ten kinds
TEXT = "the river shall be iron"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that foreign code writes if it is run."""
    return tmp_path / "foreign code ran"


class Faults:
    """Collects what was wrong with each input, so that one run tells of all."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def of(self, seed: object) -> Iterator[None]:
        """Keep an assertion that fails inside, with the input's name."""
        try:
            yield
        except AssertionError as error:
            self.found.append(f"input {seed}: {str(error)[:2500]}")

    def none(self) -> None:
        assert not self.found, f"{len(self.found)} inputs:\n\n" + "\n\n".join(self.found[:12])


def judged(done: Finished, codes: tuple[int, ...] = (0, 2)) -> bool:
    """Return whether an input was accepted; fail on what must not happen with any."""
    said = f"exit {done.code}\n{done.out[-300:]}\n{done.err[-1500:]}"
    assert not done.timed_out, f"hangs; {said}"
    assert done.grown_mb < 2000, f"takes {done.grown_mb} MB; {said}"
    assert "Traceback" not in done.err, said
    assert done.code in codes, said
    if done.code == 2:
        lines = done.err.strip().splitlines()
        assert lines, f"refused without a word; {said}"
        assert lines[-1].startswith("hfcompress: "), said
    return done.code in (0, 1)


def copied(model: Path, tmp_path: Path, marker: Path) -> Path:
    """A model's folder to damage, with a module beside the weights that must not be run."""
    folder = tmp_path / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    fuzz.with_evil_code(folder, marker)
    return folder


def right_label(fork_server: ForkServer, folder: Path, done: Finished) -> None:
    """An accepted folder answers as transformers' own pipeline does."""
    alone = fork_server.call("tests.fuzz:classified", str(folder), TEXT)
    assert alone.code == 0, f"accepted ({done.out.strip()}), and transformers alone refuses it: {alone.err[-900:]}"
    answer, (label, score) = json.loads(done.out), json.loads(alone.out)
    assert (answer["label"], answer["score"]) == (label, pytest.approx(score, abs=2e-3))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_files_of_a_text_classifier(
    name: str, tiny_teacher: Path, tmp_path: Path, marker: Path, fork_server: ForkServer
) -> None:
    accepted, faults = 0, Faults()
    for seed in range(INPUTS):
        rng = random.Random(f"{name}-{seed}")
        folder = copied(tiny_teacher, tmp_path, marker)
        file = "tokenizer_config.json" if name == "tokenizer.json" and rng.random() < 0.4 else name
        change = fuzz.damage_safetensors if name.endswith("safetensors") else fuzz.as_text(fuzz.damage_json)
        fuzz.damage_file(folder / file, rng, change)
        done = fork_server.run("predict", str(folder), "--text", TEXT, "--format", "json")
        with faults.of(f"{seed} of {file}"):
            assert not marker.exists(), "runs foreign code"
            if judged(done):
                accepted += 1
                right_label(fork_server, folder, done)
    faults.none()
    assert accepted < INPUTS, "no damage was refused: the damage is none"


def test_configs_of_a_causal_lm(tmp_path: Path, marker: Path, fork_server: ForkServer) -> None:
    base, faults = write_llama(tmp_path / "base", tied=False), Faults()
    for seed in range(INPUTS):
        rng = random.Random(f"llama-{seed}")
        folder = copied(base, tmp_path, marker)
        fuzz.damage_file(folder / "config.json", rng, fuzz.as_text(fuzz.damage_json))
        done = fork_server.run("plan", "summarize_7b", "--base", str(folder), "--format", "json")
        with faults.of(seed):
            assert not marker.exists(), "runs foreign code"
            if judged(done, (0, 1, 2)):
                alone = fork_server.call("tests.fuzz:parameters", str(folder))
                assert alone.code == 0, f"planned, and transformers alone refuses it: {alone.err[-900:]}"
                planned = next(row for row in json.loads(done.out)["models"] if row["stage"] == "AdoptLanguage")
                assert planned["parameters"] == int(alone.out)
    faults.none()


def test_tables_of_texts(tmp_path: Path, fork_server: ForkServer) -> None:
    read, faults = 0, Faults()
    for seed in range(INPUTS):
        rng = random.Random(f"table-{seed}")
        folder = tmp_path / f"data{seed}"
        folder.mkdir()
        labels, suffix = list(rng.choice(fuzz.LABELS)), rng.choice((".csv", ".jsonl", ".parquet"))
        rows = {s: fuzz.table_rows(rng, s, labels, n) for s, n in {"train": 24, "validation": 8, "test": 8}.items()}
        for split, table in rows.items():
            fuzz.write_table(folder / f"{split}{suffix}", table, rng)
        damaged = rng.random() < 0.4
        if damaged:
            fuzz.damage_file(folder / f"{rng.choice(sorted(rows))}{suffix}", rng, fuzz.damage_bytes)
        done = fork_server.call("tests.fuzz:read_task", str(folder))
        with faults.of(f"{seed} ({suffix}, {labels})"):
            judged(done)
            found = json.loads(done.out)
            if not damaged:
                expected = {split: [[row["text"], row["label"]] for row in table] for split, table in rows.items()}
                assert found == expected
                read += 1
    faults.none()
    assert read > INPUTS / 3


def test_images(tmp_path: Path, fork_server: ForkServer) -> None:
    model, faults = write_mobilenet(tmp_path / "model", ["up", "down", "left"], side=32), Faults()
    for seed in range(INPUTS):
        file = tmp_path / f"image{seed}.png"
        fuzz.write_image(file, random.Random(f"image-{seed}"))
        done = fork_server.run("predict", str(model), "--image", str(file), "--format", "json")
        with faults.of(seed):
            if judged(done):
                alone = fork_server.call("tests.fuzz:classified_image", str(model), str(file))
                assert alone.code == 0, f"accepted, and transformers alone refuses it: {alone.err[-900:]}"
                answer, (_, score) = json.loads(done.out), json.loads(alone.out)
                assert answer["score"] == pytest.approx(score, abs=5e-3)
    faults.none()


def test_onnx_files(exported: Path, tmp_path: Path, marker: Path, fork_server: ForkServer) -> None:
    faults = Faults()
    for seed in range(INPUTS):
        rng = random.Random(f"onnx-{seed}")
        folder = copied(exported, tmp_path, marker)
        fuzz.damage_file(folder / "model.onnx", rng, fuzz.damage_bytes)
        with faults.of(seed):
            judged(fork_server.run("predict", str(folder), "--text", TEXT, "--format", "json"))
    faults.none()


@pytest.mark.parametrize("name", ["report.json", "recipe.lock.json"])
def test_files_of_a_run(name: str, finished: Path, tmp_path: Path, fork_server: ForkServer) -> None:
    """What `check` says of a run does not depend on files that only repeat what its records hold."""
    honest, faults = fork_server.run("check", str(finished)), Faults()
    for seed in range(INPUTS):
        rng = random.Random(f"{name}-{seed}")
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished, run)
        records = sorted(file.relative_to(run).as_posix() for file in run.glob("*/record.json"))
        place = rng.choice((name, name, rng.choice(records)))
        fuzz.damage_file(run / place, rng, fuzz.as_text(fuzz.damage_json))
        verb = rng.choice((["check"], ["check"], ["report"], ["push", "--hub-model-id", "org/name", "--dry-run"]))
        done = fork_server.run(verb[0], str(run), *verb[1:])
        with faults.of(f"{seed} ({verb[0]}, {place})"):
            if judged(done, (0, 1, 2)) and verb[0] == "check" and done.code == 0:
                assert done.out == honest.out, "the damaged file decides"
    faults.none()


def test_traffic(tmp_path: Path, fork_server: ForkServer) -> None:
    faults = Faults()
    for seed in range(INPUTS):
        rng = random.Random(f"traffic-{seed}")
        file = tmp_path / "traffic.jsonl"
        content = "\n".join(fuzz.traffic_lines(rng, 200)).encode("utf-8", "surrogatepass")
        file.write_bytes(fuzz.damage_bytes(content, rng) if rng.random() < 0.3 else content)
        with faults.of(seed):
            judged(fork_server.run("ab", str(file), "--metric", "ctr", "--tolerance", "5%"), (0, 1, 2, 3))
    faults.none()


def test_the_harness_itself(tmp_path: Path, fork_server: ForkServer) -> None:
    """What hangs, dies or grows is told apart from what ends."""
    model = tiny.write_model(tmp_path / "model")
    assert fork_server.run("predict", str(model), "--text", TEXT).code == 0
    assert fork_server.call("time:sleep", 30, timeout=0.5).timed_out
    assert fork_server.call("os:abort").code == -6
    assert fork_server.call("tests.test_fuzz:grow", most_mb=300).grown_mb > 300


def grow() -> None:
    """Take memory until one is stopped."""
    taken = []
    while True:
        taken.append(bytearray(random.randbytes(50_000_000)))
