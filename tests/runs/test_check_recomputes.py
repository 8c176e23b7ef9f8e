"""check, push and report compute the verdicts again from the records: an edited report.json proves nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.folders.record import read_json, sha256, write_json
from hfcompress.hub.release import release
from hfcompress.runs.comparison import COMPARISON, inconsistency, proven


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


Report = dict[str, Any]
Change = Callable[[Report], None]


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = read_json(file)
    change(content)
    write_json(file, content)


def huge(report: Report) -> None:
    """A gigabyte of gigabytes, and everything is fine."""
    report["models"][2]["bytes"] = 10**15
    report["verdicts"][0] |= {"measured": 1e9, "ok": True}


def small(report: Report) -> None:
    report["models"][2]["bytes"] = 1
    report["verdicts"][0]["measured"] = 1e-6


def cut_away(report: Report) -> None:
    del report["verdicts"][0]


def none_left(report: Report) -> None:
    report["verdicts"] = []


def loosened(report: Report) -> None:
    report["budget"]["disk_mb"] = report["verdicts"][0]["allowed"] = 1e9


def unlimited(report: Report) -> None:
    report["budget"]["disk_mb"] = None
    del report["verdicts"][0]


def better(report: Report) -> None:
    report["models"][2]["accuracy"]["value"] = 0.999


def bolder(report: Report) -> None:
    report["verdicts"][1] |= {"lower_bound": 0.0, "difference": 0.1}


def other_candidate(report: Report) -> None:
    for verdict in report["verdicts"]:
        verdict["candidate"] = "teacher"


EDITS = [huge, small, cut_away, none_left, loosened, unlimited, better, bolder, other_candidate]


@pytest.mark.parametrize("change", EDITS)
def test_an_edited_report_is_named_and_does_not_pass(
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    change: Change,
) -> None:
    assert dispatch(["check", str(copied)]) == 0
    edit(copied / "report.json", change)
    capsys.readouterr()
    assert dispatch(["check", str(copied)]) == 1
    said = capsys.readouterr()
    assert "The budget holds." in said.out, "what the records say"
    assert said.err.count("\n") == 1
    assert "report.json says otherwise than the records" in said.err
    with pytest.raises(UserError, match="says otherwise than the records"):
        release(copied, "org/small", "mit")
    assert dispatch(["report", str(copied)]) == 0
    assert dispatch(["check", str(copied)]) == 0, "report has written it again"


def test_less_than_is_proven_may_be_said(copied: Path) -> None:
    def fails(report: Report) -> None:
        report["ok"] = report["verdicts"][0]["ok"] = False

    edit(copied / "report.json", fails)
    assert dispatch(["check", str(copied)]) == 1
    with pytest.raises(UserError, match="--allow-failed"):
        release(copied, "org/small", "mit")
    card = release(copied, "org/small", "mit", allow_failed=True).rendered["README.md"].decode()
    assert card.split("---\n", 2)[2].strip().startswith("**The budget does not hold.**")


def test_what_is_edited_behind_the_report_is_found_by_its_hash(copied: Path) -> None:
    measured = copied / read_json(copied / "details.json")["measured"]
    before = {file: file.read_bytes() for file in (copied / COMPARISON, *measured.iterdir())}

    def restore() -> None:
        for file, content in before.items():
            file.write_bytes(content)

    def loose(comparison: Any) -> None:
        comparison["budget"]["disk_mb"] = 1e9

    edit(copied / COMPARISON, loose)
    with pytest.raises(UserError, match="is not what the run wrote"):
        dispatch(["check", str(copied)])
    restore()

    def smaller(measurements: Any) -> None:
        measurements["models"][2]["bytes"] = 1

    edit(measured / "measurements.json", smaller)
    with pytest.raises(UserError, match="is not what was measured"):
        dispatch(["check", str(copied)])

    def hashed(record: Any) -> None:
        file = measured / "measurements.json"
        record["sha256"][file.name], record["files"][file.name] = sha256(file), file.stat().st_size

    edit(measured / "record.json", hashed)
    with pytest.raises(UserError, match=r"its record\.json was changed"):
        dispatch(["check", str(copied)])
    restore()
    assert dispatch(["check", str(copied)]) == 0
    shutil.rmtree(measured)
    with pytest.raises(UserError, match="is gone"):
        dispatch(["check", str(copied)])


def test_a_budget_in_the_lock_that_is_not_the_runs_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def add(lock: Any) -> None:
        lock["options"]["budget"] = read_json(copied / "report.json")["budget"] | {"disk_mb": 5}

    edit(copied / "recipe.lock.json", add)
    assert dispatch(["check", str(copied)]) == 1
    assert "recipe.lock.json says otherwise" in capsys.readouterr().err


def test_a_budget_that_does_not_hold_is_1_without_a_word_on_the_report(
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hfcompress.runs import comparison

    tight = comparison.Comparison.read(copied)
    budget = tight.budget | {"disk_mb": 0.001}
    comparison.dataclasses.replace(tight, budget=budget).write(copied)
    write_json(copied / "report.json", proven(copied))
    assert dispatch(["check", str(copied)]) == 1
    said = capsys.readouterr()
    assert "does NOT hold" in said.out
    assert said.err == ""


def test_a_report_alone_is_a_claim(copied: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("report.json", "details.json", "report.html", "recipe.lock.json"):
        shutil.copyfile(copied / name, alone / name)
    for verb in (["check", str(alone)], ["push", str(alone), "--hub-model-id", "org/small", "--license", "mit"]):
        with pytest.raises(UserError, match="a claim, not a proof"):
            dispatch(verb)
    (copied / COMPARISON).unlink()
    with pytest.raises(UserError, match="older version"):
        dispatch(["check", str(copied)])
    edit(alone / "report.json", lambda report: report.update(delivered={}))
    with pytest.raises(UserError, match="hfcompress verify"):
        dispatch(["check", str(alone)])


@pytest.mark.parametrize("change", EDITS)
def test_a_pushed_report_that_contradicts_itself_is_seen(copied: Path, change: Change) -> None:
    """Without the records only contradictions are seen: not a figure that is wrong everywhere."""
    report = read_json(copied / "report.json")
    assert inconsistency(report) is None
    change(report)
    consistent = change in (small, loosened, unlimited, better, bolder)
    assert (inconsistency(report) is None) is consistent


def test_the_cards_that_are_shipped_do_not_contradict_themselves() -> None:
    for file in (Path(__file__).parents[2] / "model_cards").glob("*/report.json"):
        assert inconsistency(json.loads(file.read_text())) is None, file
