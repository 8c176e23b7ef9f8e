"""A group or a text in two splits stops the run; texts that are nearly equal are counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hfcompress.errors import UserError
from hfcompress.recipes import tiny
from hfcompress.tasks.hold_out import families, sample
from hfcompress.tasks.overlap import Keys, near_duplicates
from hfcompress.tasks.summarization import Summarization
from hfcompress.tasks.tabular_classification import ClickData, Clicks, read_logs, write_logs
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.text_generation import CausalLM

Row = dict[str, str]


def rows(split: str, count: int) -> list[Row]:
    return [{"text": f"{split} {i}", "label": "ab"[i % 2], "doc": f"{split} {i // 2}"} for i in range(count)]


def write(folder: Path, **more: list[Row]) -> TextClassification:
    for split, count in (("train", 40), ("validation", 10), ("test", 10)):
        lines = [json.dumps(row) + "\n" for row in rows(split, count) + more.get(split, [])]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return TextClassification(dataset=str(folder), group_column="doc")


def texts(task: TextClassification) -> dict[str, set[str]]:
    return {split: set(task.data.texts(split)) for split in task.data.splits}


def test_a_text_in_two_splits_is_refused_or_dropped_from_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [{"text": "  train 3\n", "label": "a", "doc": "x"}, {"text": "train 4", "label": "b", "doc": "x"}]
    task = write(tmp_path, test=again, validation=[{"text": "test 2", "label": "a", "doc": "y"}])
    with pytest.raises(UserError) as error:
        _ = task.data
    line = str(error.value)
    assert "2 of 12 texts of test stand in train too ('train 3')" in line
    assert "1 of 12 texts of test stand in validation too ('test 2')" in line
    assert "--task.overlap drop" in line
    found = texts(replace(task, overlap="drop"))
    assert found["test"] == {*(f"test {i}" for i in range(10)), "  train 3\n", "train 4"}
    assert found["train"] == {f"train {i}" for i in range(40)} - {"train 3", "train 4"}
    assert found["validation"] == {f"validation {i}" for i in range(10)}
    assert "2 of 40 rows of train, 1 of 11 rows of validation left out" in capsys.readouterr().err


def test_a_group_in_two_splits_is_refused_or_dropped_whole(tmp_path: Path) -> None:
    task = write(tmp_path, test=[{"text": "other", "label": "a", "doc": "train 3"}])
    with pytest.raises(UserError, match=r"1 of 6 groups of test stand in train too \('train 3'\)"):
        _ = task.data
    assert texts(replace(task, overlap="drop"))["train"] == {f"train {i}" for i in range(40)} - {"train 6", "train 7"}
    alone = replace(task, group_column=None)
    assert len(alone.data.texts("train")) == 40, "without a group column rows are groups of their own"


def test_nothing_is_left_of_a_train_split_that_is_the_test_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("x", 9)))
    with pytest.raises(UserError, match="every row of train stands in another split"):
        _ = TextClassification(dataset=str(tmp_path), overlap="drop").data


def test_a_text_that_train_holds_twice_is_not_set_aside_once(tmp_path: Path) -> None:
    twice = rows("train", 60) + [row | {"doc": f"again {i}"} for i, row in enumerate(rows("train", 60))]
    write(tmp_path, train=twice)
    (tmp_path / "validation.jsonl").unlink()
    found = texts(TextClassification(dataset=str(tmp_path), group_column="doc"))
    assert found["validation"]
    assert not found["train"] & found["validation"]


def test_the_data_of_the_smoke_runs_overlaps_nowhere(tmp_path: Path) -> None:
    task = TextClassification(dataset=str(tiny.write_dataset(tmp_path)), group_column="group")
    assert {split: len(task.data.texts(split)) for split in task.data.splits} == tiny.SIZES
    assert not task.data.notes


def test_documents_of_a_causal_lm_are_held_apart_but_for_short_lines(tmp_path: Path) -> None:
    for split in ("train", "test"):
        found = [{"text": " = Heading = "}, {"text": f"the {split} text"}, {"text": "word " * 16 + split}]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    assert len(CausalLM(dataset=str(tmp_path)).data.texts["test"]) == 3
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "word " * 16 + "test"}) + "\n")
    with pytest.raises(UserError, match="1 of 1 texts of test stand in train too"):
        _ = CausalLM(dataset=str(tmp_path)).data
    assert len(CausalLM(dataset=str(tmp_path), overlap="drop").data.texts["train"]) == 3


def test_summarized_documents_are_held_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"document": "a", "summary": split}) + "\n")
    with pytest.raises(UserError, match=r"--documents\.overlap drop"):
        _ = Summarization(str(tmp_path)).data


def test_a_click_log_is_not_its_own_test(tmp_path: Path) -> None:
    logs = Clicks(users=20, items=20, categories=3, requests=100).data.logs
    write_logs(ClickData({s: logs[s] for s in ("train", "validation", "test")}, ""), tmp_path / "good")
    assert set(read_logs(tmp_path / "good").logs) == {"train", "validation", "test"}
    write_logs(ClickData(logs | {"test": logs["train"]}, ""), tmp_path / "same")
    with pytest.raises(UserError, match="train and test are the same rows; split the log by time"):
        read_logs(tmp_path / "same")
    write_logs(ClickData(logs | {"test": logs["test"].rows(slice(0))}, ""), tmp_path / "empty")
    with pytest.raises(UserError, match=r"test\.parquet has no rows"):
        read_logs(tmp_path / "empty")


LONG = (
    "the licensee shall not sublicense or assign this agreement without the prior written consent of the licensor in"
)


@pytest.mark.parametrize(
    ("other", "near"),
    [
        (LONG.upper().replace(" ", ",  "), 1),
        (LONG.replace("licensor", "owner"), 1),
        (LONG.replace("licensee", "buyer").replace("prior", "earlier").replace("assign", "sell"), 0),
        ("a text about something else, with as many words as the other one has, and not one of them alike", 0),
        ("", 0),
    ],
)
def test_near_duplicates_are_counted(other: str, near: int) -> None:
    found = near_duplicates(
        {"train": Keys([f"{LONG} all", "", "x"], None), "test": Keys([f"{other} all", "", "z"], None)}
    )
    assert len(found) == near
    if near:
        assert found[0].startswith("1 of 3 texts of test are near-duplicates of one in train")


def test_near_duplicates_are_said_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write(tmp_path, train=[{"text": LONG, "label": "a", "doc": "l"}], test=[
        {"text": LONG.title() + "!", "label": "a", "doc": "m"}
    ])  # fmt: skip
    assert any("1 of 11 texts of test are near-duplicates of one in train" in note for note in task.data.notes)
    assert "near-duplicates of one in train (such as 'The Licensee" in capsys.readouterr().err


def test_families_are_joined_by_groups_and_texts() -> None:
    assert families(["b", "b", "a", "c", "d"], ["x", "y", "y ", "z", None]) == ["a", "a", "a", "c", "d"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 50, 99, 100, 200])
def test_a_sample_has_its_size_and_every_class(size: int) -> None:
    labels = ["a"] * 90 + ["b"] * 9 + ["c"]
    rows = sample(labels, size)
    assert len(rows) == len(set(rows)) == min(size, 100)
    assert rows == sorted(rows)
    if size >= 3:
        assert {labels[row] for row in rows} == {"a", "b", "c"}
