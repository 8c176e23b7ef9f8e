"""Recorded traffic: whole lines or counted ones, one writer a file, nothing lost to a kill but the last line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hfcompress.errors import UserError
from hfcompress.rollout import traffic
from hfcompress.rollout.traffic import Event, Writer, as_line, parsed, read


def test_events_come_back_as_they_were_written(tmp_path: Path) -> None:
    events = [
        Event(id="1", arm="old", user="ü", input="a\nb", answer={"label": "x", "score": 0.5}, propensity=0.5),
        Event(id="2", arm="new", time=3.5, group="g", outcome={"ctr": 1, "label": "x"}),
    ]
    writer = Writer(tmp_path / "deep" / "traffic.jsonl")
    for event in events:
        writer.write(event)
    assert read(tmp_path / "deep" / "traffic.jsonl").events == events


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": {"ctr": "yes"}},
        {"outcome": {"ctr": float("nan")}},
        {"outcome": [1]},
        {"outcome": {"label": 3}},
        {"answer": {"score": 1.0}},
        {"propensity": 0.0},
        {"propensity": 1.5},
        {"user": 7},
        {"input": "half a character: \ud800"},
        {"outcome": {"ctr": 10**400}},
        {"version": 2},
        {"outcome": {"ctr": 1e300}},
        {"outcome": {"x" * 2000: 1.0}},
        {"outcome": {"label": "x" * 2000}},
        {"id": "x" * 1_000_000},
        {"id": "half a character: \ud800"},
        {"arm": "x" * 2000},
        {"user": "x" * 2000},
        {"time": "yesterday"},
        {"time": float("inf")},
        {"answer": {"label": "x" * 2000}},
    ],
)
def test_what_cannot_be_counted_with_is_no_event(change: dict[str, Any]) -> None:
    fine = {"id": "1", "arm": "old", "outcome": {"ctr": 1.0}}
    assert parsed(json.dumps(fine).encode()) is not None
    assert parsed(json.dumps(fine | change).encode()) is None


def test_lines_that_are_cut_or_no_json_are_counted_and_empty_ones_are_not(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    line = as_line(Event(id="1", arm="old"))
    file.write_bytes(line + b"\n" + b"\xff\xfe\n" + b"[]\n" + b"[" * 200_000 + b"\n" + line[:-20])
    found = read(file)
    assert (len(found.events), found.broken) == (1, 4)
    file.write_bytes(b"nothing\n")
    with pytest.raises(UserError, match="no line of it is an event"):
        read(file)


def test_a_torn_last_line_stays_apart_from_what_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_bytes(as_line(Event(id="1", arm="old")) + b'{"id": "2", "ar')
    writer = Writer(file)
    assert writer.torn
    writer.write(Event(id="3", arm="old"))
    writer.close()
    found = read(file)
    assert [event.id for event in found.events] == ["1", "3"]
    assert found.broken == 1
    again = Writer(file)
    assert not again.torn
    again.close()


@pytest.mark.parametrize("content", ['{\n "ok": true\n}\n', "text,label\n", '{"name": "x"}', "words"])
def test_a_file_of_something_else_is_not_appended_to(content: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"report\.json holds something other than traffic"):
        Writer(file)
    assert file.read_text() == content


@pytest.mark.parametrize("length", [0, 1, 4, 10, 40])
def test_a_first_line_that_was_torn_is_appended_to_again_and_again(length: int, tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_bytes(as_line(Event(id="1", arm="old"))[:length])
    for number in ("2", "3") if length != 1 else ("2",):
        writer = Writer(file)
        writer.write(Event(id=number, arm="old"))
        writer.close()
    assert [event.id for event in read(file).events][:1] == ["2"]


def test_a_large_file_is_rotated_and_no_event_is_lost(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "traffic.jsonl", rotate_mb=0.001)
    for i in range(40):
        writer.write(Event(id=str(i), arm="old", input="x" * 60))
    writer.close()
    parts = sorted(tmp_path.glob("traffic.jsonl.*"), key=lambda path: int(path.suffix[1:]))
    assert len(parts) > 2
    found = [event.id for part in [*parts, tmp_path / "traffic.jsonl"] for event in read(part).events]
    assert found == [str(i) for i in range(40)]


def test_a_file_that_cannot_be_begun_anew_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the disk has no room for another file: no event is lost for it, and later it is rotated."""
    writer = Writer(tmp_path / "traffic.jsonl", rotate_mb=0.001)
    with monkeypatch.context() as full:
        full.setattr(writer, "_open", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for i in range(20):
            writer.write(Event(id=str(i), arm="old", input="x" * 60))
    assert [path.name for path in tmp_path.iterdir()] == ["traffic.jsonl"]
    writer.write(Event(id="20", arm="old"))
    writer.close()
    parts = tmp_path / "traffic.jsonl.1", tmp_path / "traffic.jsonl"
    assert [event.id for part in parts for event in read(part).events] == [str(i) for i in range(21)]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, why in ((tmp_path, "Is a directory"), (tmp_path / "file" / "traffic.jsonl", "File exists")):
        with pytest.raises(UserError, match=rf"cannot be written \({why}\)"):
            Writer(place)


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "traffic.jsonl")
    writer.write(Event(id="1", arm="old", outcome={"label": "\ud800"}))
    writer.close()
    assert read(tmp_path / "traffic.jsonl").events[0].outcome == {"label": "?"}


def test_a_second_writer_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    first = Writer(tmp_path / "traffic.jsonl")
    with pytest.raises(UserError, match="another process writes"):
        Writer(tmp_path / "traffic.jsonl")
    first.close()
    Writer(tmp_path / "traffic.jsonl").close()


def test_a_killed_writer_loses_at_most_its_last_line(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    program = """
import sys
from pathlib import Path
from hfcompress.rollout.traffic import Event, Writer
writer = Writer(Path(sys.argv[1]))
for i in range(10**9):
    writer.write(Event(id=str(i), arm="old"))
    print(i, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(200)]
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = read(file)
    assert [event.id for event in found.events[:200]] == [line.strip() for line in said]
    assert found.broken <= 1


def test_a_line_without_end_is_one_broken_line_and_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "LONGEST_LINE", 200)
    file = tmp_path / "traffic.jsonl"
    line = as_line(Event(id="1", arm="old"))
    file.write_bytes(line + b"x" * 1999 + b"\n" + line + b" " * 500)
    found = read(file)
    assert (len(found.events), found.broken) == (2, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": "1", "arm": "old"}\n'.encode("utf-16"), "it is UTF-16: iconv"),
        (b'{"id": "1"}\n', "the first has no arm"),
        (b"id,arm\n", "the first is not JSON"),
        (b"[1]\n", "the first is no JSON object"),
    ],
)
def test_what_holds_no_event_says_what_is_wrong_with_its_first_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "traffic.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read(tmp_path / "traffic.jsonl")
