"""One thing spelled in two ways: labels, groups and encodings that files of one data set write differently."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hfcompress.errors import UserError
from hfcompress.folders.lines import other_encoding, read_lines
from hfcompress.tasks.cells import identifier, whole_numbers
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.read_tables import read_table
from hfcompress.tasks.summarization import Summarization
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.text_generation import CausalLM
from tests.tasks.test_text_data import counts, refusal, rows, write_csv, write_jsonl

SIZES = {"train": 30, "validation": 6, "test": 9}


def write(folder: Path, labels: dict[str, tuple[Any, ...]], **more: Any) -> Path:
    """Write csv files whose labels, and further columns of (split, row), are spelled as each split has them."""
    for split in SIZES:
        found = [row | {k: v(split, i) for k, v in more.items()} for i, row in enumerate(rows(split, labels[split]))]
        write_csv(folder / f"{split}.csv", found)
    return folder


def test_one_with_a_point_and_one_are_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As pandas writes a column of whole numbers where a cell of that file is empty."""
    task = TextClassification(
        dataset=str(write(tmp_path, {"train": ("0.0", "1.0", "1"), "validation": ("0", "1"), "test": ("1.0", "0")}))
    )
    assert task.data.labels == ["0", "1"]
    assert counts(task, "train") == {"0": 10, "1": 20}
    assert counts(task, "test") == {"0": 4, "1": 5}
    assert "--task.label-column label: 0.0 and 0 are one class" in capsys.readouterr().err
    assert whole_numbers(["1.0", "2.0"]) == {}, "names of one spelling, such as versions, stay as they are"


def test_numbers_of_one_split_are_the_names_of_another(tmp_path: Path) -> None:
    """As pandas writes a ClassLabel: it keeps the numbers alone."""
    names = Features({"text": Value("string"), "label": ClassLabel(names=["water", "fruit"])})
    for split, features in (("train", None), ("validation", None), ("test", names)):
        found = Dataset.from_list(rows(split, (0, 1, 1)))
        (found.cast(features) if features else found).to_parquet(str(tmp_path / f"{split}.parquet"))
    task = TextClassification(dataset=str(tmp_path))
    assert task.data.labels == ["fruit", "water"]
    assert counts(task, "train") == {"water": 10, "fruit": 20}
    assert counts(task, "test") == {"water": 3, "fruit": 6}


@pytest.mark.parametrize("other", ["fruit\u200b", "\ufefffruit", "fruit\xa0", "f\xadruit"])
def test_labels_that_look_alike_are_refused(other: str, tmp_path: Path) -> None:
    for split in SIZES:
        write_jsonl(tmp_path / f"{split}.jsonl", rows(split, ("fruit", other, "water")))
    assert "differ only in spaces, in characters that are not seen" in refusal(tmp_path)


@pytest.mark.parametrize("spelled", ["{}.0", " {}", "{} "])
def test_groups_are_compared_in_one_spelling(spelled: str, tmp_path: Path) -> None:
    labels = dict.fromkeys(SIZES, ("a", "b"))

    def group(split: str, row: int) -> str:
        return str(row // 2) if split == "train" else spelled.format(row // 2 + 100 * (split == "validation"))

    folder = write(tmp_path, labels, doc=group)
    assert "5 of 5 groups of test stand in train too ('0')" in refusal(folder, group_column="doc")
    kept = TextClassification(dataset=str(folder), group_column="doc", overlap="drop").data
    assert len(kept.groups("train")) == 20
    with pytest.raises(UserError, match="groups of test stand in train too"):
        _ = CausalLM(dataset=str(folder), group_column="doc").data
    assert [identifier(name) for name in ("12.0", " x ", "1.5", "e\u0301")] == ["12", "x", "1.5", "\xe9"]


def test_rows_without_a_group_are_not_one_group(tmp_path: Path) -> None:
    pixel = {"bytes": b"x", "path": None}
    for split in SIZES:
        found = [{"document": f"{split} {i}", "summary": "s", "text": f"{split} {i}", "doc": None} for i in range(4)]
        write_jsonl(tmp_path / f"{split}.jsonl", [found[0] | {"doc": "one"}, *found[1:]])
    with pytest.raises(UserError, match=r"--documents.group-column doc: 3 rows .* have no group \(the first: row 1\)"):
        _ = Summarization(dataset=str(tmp_path / "test.jsonl"), group_column="doc").data
    with pytest.raises(UserError, match=r"--task\.group-column doc: 3 rows of the train split have no group"):
        _ = CausalLM(dataset=str(tmp_path), group_column="doc").data
    (tmp_path / "images").mkdir()
    for split in SIZES:
        table = Dataset.from_list([{"image": pixel, "label": label, "doc": None} for label in "ab"])
        table.cast_column("doc", Value("string")).to_parquet(str(tmp_path / "images" / f"{split}.parquet"))
    with pytest.raises(UserError, match=r"--task\.group-column doc: 2 rows of the train split have no group"):
        _ = ImageClassification(dataset=str(tmp_path / "images"), group_column="doc").data


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_no_text_with_zeros(encoding: str, tmp_path: Path) -> None:
    name = encoding.upper().replace("-16-", "-16")
    (tmp_path / "a.csv").write_bytes("text,label\na clause,x\n".encode(encoding))
    with pytest.raises(UserError, match=rf"a\.csv is {name} text; .*iconv -f {name}"):
        read_table([tmp_path / "a.csv"])
    with pytest.raises(UserError, match=f"is {name} text"):
        list(read_lines(tmp_path / "a.csv"))
    for plain in (b"a text with \0 in it\n", b"a\0bc", "\u6587\u5b57".encode(), b"", b"ab"):
        assert other_encoding(plain) is None


def test_other_values_of_a_column_of_splits_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"train": "train", "validation": "unused", "test": "test"}
    found = [row | {"split": said[split]} for split in SIZES for row in rows(split, ("a", "b"))]
    found[0]["split"] = None
    write_jsonl(tmp_path / "all.jsonl", found)
    data = TextClassification(dataset=str(tmp_path / "all.jsonl")).data
    assert data.texts("test") == [f"test text {i}" for i in range(9)]
    assert len(data.texts("train")) + len(data.texts("validation")) == 29
    assert "7 of 45 rows are not used: split is 'unused', no value" in capsys.readouterr().err
    write_jsonl(tmp_path / "two.jsonl", [row for row in found if row["split"] != "test"])
    sets = [row | {"split": {"unused": "dev"}.get(row["split"], row["split"])} for row in found]
    write_jsonl(tmp_path / "dev.jsonl", [row for row in sets if row["split"] != "test"])
    assert "its column split says train and validation, and no row is of test" in refusal(tmp_path / "dev.jsonl")
    topics = [row | {"split": "train station" if i % 2 else "bus"} for i, row in enumerate(found)]
    write_jsonl(tmp_path / "topics.jsonl", topics)
    assert len(TextClassification(dataset=str(tmp_path / "topics.jsonl")).data.notes) == 1  # split by a hash


def test_a_sample_has_a_row_of_every_class_in_every_split(tmp_path: Path) -> None:
    for split in SIZES:
        write_jsonl(tmp_path / f"{split}.jsonl", rows(split, ("a", "b", "c")))
    task = TextClassification(dataset=str(tmp_path), max_train_examples=3)
    for split in SIZES:
        assert Counter(task.data.label_ids(split)) == {0: 1, 1: 1, 2: 1}
    line = refusal(tmp_path, max_train_examples=2)
    assert line == "--task.max-train-examples 2: train has 3 classes; give 3 or more"


def test_a_tsv_of_commas_and_a_line_of_spaces_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text,label\na clause,x\n  \n", encoding="utf-8")
    assert read_table([tmp_path / "a.tsv"]).to_list() == [{"text": "a clause", "label": "x"}]


def test_one_problem_of_all_splits_is_said_once(tmp_path: Path) -> None:
    for name in ("trainset", "testset", "valset"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"sentence": "a"}])
    assert refusal(tmp_path).endswith("--task.data-files train=trainset.jsonl,test=testset.jsonl")
    files = "train=trainset.jsonl,test=testset.jsonl"
    line = refusal(tmp_path, data_files=files, label_column="sentence")
    assert line == ("--task.text-column text: the train and test splits have no such column, only sentence")
    (tmp_path / "none").mkdir()
    for split in SIZES:
        (tmp_path / "none" / f"{split}.json").write_text(json.dumps([]), encoding="utf-8")
    assert refusal(tmp_path / "none").endswith("none: the train split is empty")
