"""What goes wrong around recorded traffic: a disk that is really full, clocks, lonely groups, a model that dies."""

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.metrics import METRICS
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.rollout import replay, serving
from hfcompress.rollout.sequential import Tolerance, ab
from hfcompress.rollout.traffic import Event, Writer, assigned, read
from hfcompress.tasks.text_classification import TextClassification

LENGTH = 32


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)):
        pytest.skip("a file system of its own can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def texts(tiny_task: TextClassification) -> list[str]:
    return tiny_task.data.texts("test")


def asked(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))


def test_record_on_a_full_disk_stops_with_whole_lines_and_goes_on_when_there_is_room(
    small_disk: Path,
    tiny_teacher: Path,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = small_disk / "traffic.jsonl"
    asked(texts, monkeypatch)
    with pytest.raises(UserError, match=r"is full; \d+ requests are recorded, each whole") as stopped:
        dispatch(["record", str(tiny_teacher), str(file)])
    done = len(capsys.readouterr().out.splitlines())
    assert f"is full; {done} requests" in str(stopped.value)
    assert file.read_bytes().endswith(b"\n")
    assert [event.input for event in read(file).events] == texts[:done]
    assert 0 < done < len(texts)
    assert mount("-o", "remount,size=1m", str(small_disk))
    asked(texts[done:], monkeypatch)
    assert dispatch(["record", str(tiny_teacher), str(file)]) == 0
    found = read(file)
    assert [event.input for event in found.events] == texts
    assert found.broken == 0


def test_record_says_that_a_killed_writers_last_line_is_lost(
    tiny_teacher: Path,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_bytes(b'{"id": "1", "arm": "old"}\n{"id": "2", "ar')
    asked(texts[:3], monkeypatch)
    assert dispatch(["record", str(tiny_teacher), str(file)]) == 0
    assert "killed amid its last line, which is lost" in capsys.readouterr().err
    assert (len(read(file).events), read(file).broken) == (4, 1)


def test_replay_counts_lines_that_are_cut_or_no_json_and_goes_on(
    tiny_teacher: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(tmp_path / "traffic.jsonl")
    for i, text in enumerate(texts[:4]):
        writer.write(Event(id=str(i), arm="old", input=text))
    writer.close()
    whole = writer.file.read_bytes()
    writer.file.write_bytes(b"not json\n\xff\n" + whole[:-30])
    assert dispatch(["replay", str(tiny_teacher), str(tiny_teacher), str(writer.file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["changes"]["n"], found["broken_lines"]) == (3, 3)


def test_record_into_a_file_that_another_process_writes_is_refused_before_anything_is_answered(
    tiny_teacher: Path,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = Writer(tmp_path / "traffic.jsonl")
    asked(texts[:3], monkeypatch)
    with pytest.raises(UserError, match="another process writes"):
        dispatch(["record", str(tiny_teacher), str(first.file)])
    first.close()
    assert not capsys.readouterr().out
    assert first.file.read_bytes() == b""


def test_shadow_on_a_full_disk_answers_all_and_counts_the_lines_that_are_lost(
    small_disk: Path, tiny_teacher: Path, texts: list[str]
) -> None:
    model, state, writer = Predictor(tiny_teacher, 1), serving.Shadowed(), Writer(small_disk / "traffic.jsonl")
    other = serving.Shadow(tiny_teacher, LENGTH)
    try:
        lines = io.BytesIO("\n".join(texts).encode())
        answers = list(serving.shadow(model, other, lines, writer, LENGTH, state))
    finally:
        other.close()
        writer.close()
    found = read(small_disk / "traffic.jsonl")
    assert len(answers) == state.answered == len(texts)
    assert state.unwritten > 0
    assert len(found.events) + state.unwritten == state.answered + state.compared
    assert found.broken == 0


def test_a_device_that_takes_nothing_is_told() -> None:
    writer = Writer(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        writer.write(Event(id="1", arm="old"))
    writer.close()


def test_a_clock_that_runs_backwards_changes_no_answer_and_no_verdict(
    tiny_teacher: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the file counts, not the clock: replay and A/B say the same whatever the times are."""
    now = [1e9]

    def backwards() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(serving.time, "time", backwards)
    model, writer = Predictor(tiny_teacher, 1), Writer(tmp_path / "traffic.jsonl")
    list(serving.record(model, io.BytesIO("\n".join(texts[:20]).encode()), writer, "old", LENGTH))
    writer.close()
    events = read(tmp_path / "traffic.jsonl").events
    times = [float(event.time or 0) for event in events]
    assert times == sorted(times, reverse=True)
    assert [event.input for event in events] == texts[:20]
    rng = np.random.default_rng(0)
    clicks = rng.random(3000) < 0.2
    forwards, back = (
        [
            Event(id=str(i), arm=assigned(str(i), "s", 0.5), user=str(i), time=sign * i, outcome={"ctr": float(click)})
            for i, click in enumerate(clicks.tolist())
        ]
        for sign in (1.0, -1.0)
    )
    one, other = (ab(found, "ctr", Tolerance(0.05, relative=False)) for found in (forwards, back))
    assert one.as_dict() == other.as_dict()
    assert one.looks


def test_groups_of_one_member_are_resampled_one_by_one(
    tiny_teacher: Path, tiny_task: TextClassification, texts: list[str]
) -> None:
    """Every request a group of its own: the interval is that of single requests, as wide as the binomial says."""
    data = tiny_task.data
    events = [
        Event(id=str(i), arm="old", input=text, group=f"alone {i}", outcome={"label": data.labels[label]})
        for i, (text, label) in enumerate(zip(texts, data.label_ids("test"), strict=True))
    ]
    model = Predictor(tiny_teacher, 1)
    found = replay.against_truth(replay.answered(model, model, events, LENGTH))
    assert found["accuracy"]["difference"] == 0
    truth, right = np.zeros(400, dtype=int), np.arange(400) % 5 > 0
    flipped = np.where(right, 0, 1)
    groups = [str(i) for i in range(400)]
    before, after = (Drawn(answers, truth, groups, resamples=4000, seed=0) for answers in (truth, flipped))
    difference = paired_difference(before, after, METRICS["accuracy"], 0.95)
    expected = -0.2 - 1.645 * (0.2 * 0.8 / 400) ** 0.5
    assert difference.lower_bound == pytest.approx(expected, abs=0.005)


def answers_three_and_dies(model: Path, max_length: int, threads: int, asked_for: Any, told: Any, loaded: Any) -> None:
    loaded.set()
    for _ in range(3):
        key, _ = asked_for.get()
        told.put((key, {"label": "apple", "score": 1.0}, 1.0))
    told.close()
    told.join_thread()
    os._exit(13)


def test_a_model_that_dies_amid_a_shadow_test_is_seen_and_its_requests_are_counted(
    tiny_teacher: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "work", answers_three_and_dies)
    model, state, writer = Predictor(tiny_teacher, 1), serving.Shadowed(), Writer(tmp_path / "traffic.jsonl")
    other = serving.Shadow(tiny_teacher, LENGTH)
    try:
        lines = io.BytesIO("\n".join(texts).encode())
        answers = list(serving.shadow(model, other, lines, writer, LENGTH, state))
    finally:
        other.close()
    assert len(answers) == state.answered == len(texts)
    assert (state.compared, state.dropped) == (3, len(texts) - 3)
    assert not state.alive
    assert "<strong>has stopped</strong>" in serving.page(state)
    assert json.dumps(state.as_dict())
