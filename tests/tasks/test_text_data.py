"""Texts and labels are what the user wrote, whatever a file's reader would make of them."""

import csv
import datetime
import decimal
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hfcompress.errors import UserError
from hfcompress.tasks.read_tables import read_table
from hfcompress.tasks.summarization import Summarization
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.text_generation import CausalLM

SIZES = {"train": 30, "validation": 6, "test": 9}


def rows(split: str, labels: tuple[Any, ...], size: int | None = None) -> list[dict[str, Any]]:
    return [{"text": f"{split} text {i}", "label": labels[i % len(labels)]} for i in range(size or SIZES[split])]


def write_csv(file: Path, found: list[dict[str, Any]], **options: Any) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(found[0]), **options)
        writer.writeheader()
        writer.writerows(found)


def write_jsonl(file: Path, found: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def write(folder: Path, kind: str, labels: tuple[Any, ...]) -> Path:
    for split in SIZES:
        (write_csv if kind == "csv" else write_jsonl)(folder / f"{split}.{kind}", rows(split, labels))
    return folder


def counts(task: TextClassification, split: str) -> dict[str, int]:
    return dict(Counter(task.data.labels[label] for label in task.data.label_ids(split)))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        _ = TextClassification(dataset=str(folder), **options).data
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "labels",
    [
        ("NA", "None", "null"),
        ("01", "02", "10"),
        ("1.0", "2.50", "3"),
        ("2019-01-01", "2020-06-30", "2021-12-31"),
        ("False", "True", "maybe"),
        ("1e5", "nan", "water"),
        ("a" * 200, "b;c", 'd "e"'),
    ],
)
def test_labels_keep_their_spelling(kind: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    task = TextClassification(dataset=str(write(tmp_path, kind, labels)))
    assert task.data.labels == list(labels)
    assert counts(task, "test") == dict.fromkeys(labels, 3)


def test_a_split_that_holds_numbers_only_has_the_classes_of_train(tmp_path: Path) -> None:
    for split in SIZES:
        labels = ("1", "2") if split == "test" else ("1", "2", "3a")
        write_csv(tmp_path / f"{split}.csv", rows(split, labels))
    task = TextClassification(dataset=str(tmp_path))
    assert task.data.labels == ["1", "2", "3a"]
    assert set(counts(task, "test")) == {"1", "2"}


def test_one_and_the_word_one_are_one_class(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows("train", (1, 2)))
    write_csv(tmp_path / "validation.csv", rows("validation", ("1", "2")))
    pandas.DataFrame(rows("test", (1.0, 2.0))).to_parquet(tmp_path / "test.parquet")
    task = TextClassification(dataset=str(tmp_path))
    assert task.data.labels == ["1", "2"]
    assert counts(task, "test") == {"1": 5, "2": 4}


def test_whole_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows("train", tuple(range(12)), 60))
    write_jsonl(tmp_path / "test.jsonl", rows("test", (10, 2)))
    write_jsonl(tmp_path / "validation.jsonl", rows("validation", (0,)))
    assert TextClassification(dataset=str(tmp_path)).data.labels == [str(number) for number in range(12)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((True, False), ["false", "true"]),
        ((datetime.datetime(2019, 1, 1), datetime.datetime(2020, 6, 30)), ["2019-01-01", "2020-06-30"]),
        ((datetime.date(2019, 1, 1), datetime.date(2020, 6, 30)), ["2019-01-01", "2020-06-30"]),
        ((decimal.Decimal("1.50"), decimal.Decimal("2.00")), ["1.50", "2.00"]),
        ((3, 1), ["1", "3"]),
        ((3.0, 1.0), ["1", "3"]),
        ((b"one", b"two"), ["one", "two"]),
    ],
)
def test_every_type_of_parquet_has_a_spelling(labels: tuple[Any, ...], names: list[str], tmp_path: Path) -> None:
    for split in SIZES:
        pandas.DataFrame(rows(split, labels)).to_parquet(tmp_path / f"{split}.parquet")
    assert TextClassification(dataset=str(tmp_path)).data.labels == names


def test_a_category_of_pandas_is_its_value(tmp_path: Path) -> None:
    for split in SIZES:
        frame = pandas.DataFrame(rows(split, ("x", "y")))
        frame["label"] = frame["label"].astype("category")
        frame.to_parquet(tmp_path / f"{split}.parquet")
    assert counts(TextClassification(dataset=str(tmp_path)), "test") == {"x": 5, "y": 4}


def test_scores_are_no_classes(tmp_path: Path) -> None:
    for split in SIZES:
        pandas.DataFrame(rows(split, (0.0, 3.8))).to_parquet(tmp_path / f"{split}.parquet")
    assert "--task.label-column label: it holds numbers such as 3.8; this task takes classes" in refusal(tmp_path)


def class_labels(file: Path, names: list[str], labels: list[str | None]) -> None:
    ids = [-1 if label is None else names.index(label) for label in labels]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    columns = {"text": [f"{file.stem} text {i}" for i in range(len(ids))], "label": ids}
    Dataset.from_dict(columns, features=features).to_parquet(file)


def test_classes_of_two_splits_agree_by_name(tmp_path: Path) -> None:
    class_labels(tmp_path / "train.parquet", ["water", "fruit", "metal"], ["fruit", "metal", "water", "water"] * 5)
    class_labels(tmp_path / "validation.parquet", ["fruit", "metal", "water"], ["fruit", "metal"])
    class_labels(tmp_path / "test.parquet", ["metal", "water", "fruit"], ["water", "water", "fruit"])
    task = TextClassification(dataset=str(tmp_path))
    assert task.data.labels == ["water", "fruit", "metal"], "the order that train gives"
    assert counts(task, "train") == {"water": 10, "fruit": 5, "metal": 5}
    assert counts(task, "test") == {"water": 2, "fruit": 1}


def test_shards_that_number_their_names_differently_are_one_split(tmp_path: Path) -> None:
    class_labels(tmp_path / "train-00000-of-00002.parquet", ["a", "b"], ["a"] * 3 + ["b"])
    class_labels(tmp_path / "train-00001-of-00002.parquet", ["b", "a"], ["a"] * 5 + ["b"] * 2)
    assert Counter(read_table(sorted(tmp_path.iterdir()))["label"]) == {"a": 8, "b": 3}


def test_a_row_without_a_label_is_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, size in SIZES.items():
        class_labels(tmp_path / f"{split}.parquet", ["a", "b"], [*["a", "b"] * size, None])
    line = refusal(tmp_path)
    assert "--task.label-column label: row 60 of the train split is empty" in line
    assert "row 18 of the test split is empty" in line, "all at once"
    assert "--task.missing skip" in line
    task = TextClassification(dataset=str(tmp_path), missing="skip")
    assert task.data.labels == ["a", "b"]
    assert counts(task, "test") == {"a": 9, "b": 9}
    assert "1 of 61 rows of train lack a text, label or group and are left out" in capsys.readouterr().err
    assert any("1 of 61 rows of train" in note for note in task.data.notes)


@pytest.mark.parametrize(
    ("labels", "mark"), [((0, 1, 2, -1), "-1"), ((0, 1, -100), "-100"), (("yes", "no", "-"), "-")]
)
def test_marks_of_a_missing_label_are_no_classes(labels: tuple[Any, ...], mark: str, tmp_path: Path) -> None:
    write(tmp_path, "jsonl", labels)
    line = refusal(tmp_path)
    assert f"rows of the train split are {mark!r}" in line
    assert "--task.labels NAME NAME" in line
    found = TextClassification(dataset=str(tmp_path), missing="skip").data.labels
    assert found == sorted({str(label) for label in labels} - {mark})


def test_minus_one_is_a_class_where_it_is_named_or_beside_one_alone(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", (-1, 0, 1))
    names = ("negative", "neutral", "positive")
    data = TextClassification(dataset=str(tmp_path), labels=names).data
    assert data.labels == list(names)
    assert data.label_ids("train")[:3] == [0, 1, 2]
    write(tmp_path, "jsonl", (-1, 1))
    assert TextClassification(dataset=str(tmp_path)).data.labels == ["-1", "1"]


def test_labels_name_integers_and_order_names(tmp_path: Path) -> None:
    write(tmp_path, "csv", (1, 0))
    data = TextClassification(dataset=str(tmp_path), labels=("negative", "positive")).data
    assert data.labels == ["negative", "positive"]
    assert data.label_ids("train")[:2] == [1, 0]
    assert "2 classes: train has the labels 0, 1" in refusal(tmp_path, labels=("a", "b", "c"))
    assert "--task.labels a a: a name stands twice" in refusal(tmp_path, labels=("a", "a"))
    write(tmp_path, "csv", ("x", "y", "z"))
    data = TextClassification(dataset=str(tmp_path), labels=["z", "x", "y"]).data  # type: ignore[arg-type]
    assert data.labels == ["z", "x", "y"], "a list, as a lock holds it"
    assert data.label_ids("train")[:3] == [1, 2, 0]
    assert "train has the labels x, y, z" in refusal(tmp_path, labels=("x", "y"))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("a\nb", "c"), "holds a line break"),
        (("a\x00", "c"), "holds a line break or control character"),
        (("a" * 300, "c"), "a label of 300 characters"),
        (("a", "a ", "c"), "differ only in spaces"),
        (("caf\u00e9", "cafe\u0301"), "how accents are stored"),
    ],
)
def test_labels_that_are_no_names_are_refused(labels: tuple[str, ...], words: str, tmp_path: Path) -> None:
    assert words in refusal(write(tmp_path, "jsonl", labels))


def test_lists_and_objects_are_refused_at_once(tmp_path: Path) -> None:
    for split in SIZES:
        found = [{"text": ["a", str(i)], "label": ["x"] if i % 3 else "y"} for i in range(SIZES[split])]
        write_jsonl(tmp_path / f"{split}.jsonl", found)
    line = refusal(tmp_path)
    assert "--task.text-column text: it holds lists; this task takes a text (join words with spaces)" in line
    assert "--task.label-column label: it holds lists; this task takes one label a text" in line
    for split in SIZES:
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": {"en": "a"}, "label": "x"}])
    assert "--task.text-column text: it holds objects" in refusal(tmp_path)


def test_columns_are_guessed_all_at_once(tmp_path: Path) -> None:
    for split in SIZES:
        renamed = [{"sentence": row["text"], "target": row["label"], "idx": 1} for row in rows(split, ("a", "b"))]
        write_jsonl(tmp_path / f"{split}.jsonl", renamed)
    assert refusal(tmp_path) == (
        "--task.text-column text, --task.label-column label: the train, validation and test splits have no such "
        "columns, only sentence, target, idx; did you mean --task.text-column sentence --task.label-column target?"
    )


def test_columns_are_guessed_from_what_they_hold(tmp_path: Path) -> None:
    for split in SIZES:
        found = [{"q1": row["text"], "q2": row["label"], "q3": i} for i, row in enumerate(rows(split, ("a", "b")))]
        write_csv(tmp_path / f"{split}.csv", found)
    assert "did you mean --task.text-column q1 --task.label-column q2?" in refusal(tmp_path)


def test_a_csv_without_a_header_is_said(tmp_path: Path) -> None:
    for split in SIZES:
        lines = [f"the {split} clause number {i} of this agreement shall survive,x\n" for i in range(4)]
        (tmp_path / f"{split}.csv").write_text("".join(lines), encoding="utf-8")
    assert "the first line of a csv file names its columns" in refusal(tmp_path)


def test_empty_texts_are_counted(tmp_path: Path) -> None:
    for split in SIZES:
        write_csv(tmp_path / f"{split}.csv", [*rows(split, ("a", "b")), {"text": " \t", "label": "a"}])
    assert "--task.text-column text: row 30 of the train split is" in refusal(tmp_path)
    assert len(TextClassification(dataset=str(tmp_path), missing="skip").data.texts("train")) == 30


EXPECTED = [("one, two", "x"), ('three "four"\nfive', "y")]


def as_rows(file: Path) -> list[tuple[Any, Any]]:
    table = read_table([file])
    return list(zip(table["text"], table["label"], strict=True))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_is_read_with_its_delimiter(delimiter: str, mark: str, newline: str, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    found = [{"text": text, "label": label} for text, label in EXPECTED]
    write_csv(file, found, delimiter=delimiter, lineterminator=newline)
    file.write_bytes(mark.encode() + file.read_bytes() + newline.encode())
    assert as_rows(file) == EXPECTED
    file.with_suffix(".CSV.GZ").write_bytes(gzip.compress(file.read_bytes()))
    assert as_rows(file.with_suffix(".CSV.GZ")) == EXPECTED


def test_a_tsv_may_know_no_quotation_marks(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text('text\tlabel\n"open\tx\nclosed"\ty\nboth "of" them\tx\n', encoding="utf-8")
    assert as_rows(file) == [('"open', "x"), ('closed"', "y"), ('both "of" them', "x")]
    write_csv(file, [{"text": text, "label": label} for text, label in EXPECTED], delimiter="\t")
    assert as_rows(file) == EXPECTED


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text,label\na,b,c\n", "line 2 has 3 fields, the header 2"),
        (b"text,label\na\n", "line 2 has 1 fields"),
        (b'text,label\n"a,b\nc,d\n', "unexpected end of data"),
        (b"text,text\na,b\n", "two columns called text"),
        (b"text,label\ncaf\xe9,b\n", "is not UTF-8 text"),
        ("text,label\na,b\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\n", "is empty"),
    ],
)
def test_a_csv_that_is_none_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_table([tmp_path / "train.csv"])
    assert "train.csv" in str(error.value)


def test_a_long_text_is_whole(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [{"text": "word " * 100_000, "label": "x"}])
    assert len(read_table([tmp_path / "train.csv"])["text"][0]) == 500_000
    assert csv.field_size_limit() == 131_072


FOUND = [{"text": "a\u2028b", "label": "1.50"}, {"text": "c", "label": "2"}]
LINES = '{"text": "a\u2028b", "label": 1.50}\n\n{"text": "c", "label": 2}\n'
LIST = '[{"text": "a\u2028b", "label": 1.50},\n {"text": "c", "label": 2}]'


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        "\ufeff" + LINES,
        LINES.replace("\n", "\r\n"),
        LIST,
        f'{{"data":\n {LIST}}}',
        f'{{\n "version": "1",\n "data": {LIST}\n}}\n',
    ],
)
@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "train.NDJSON"])
def test_json_is_read_in_its_forms(content: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_table([tmp_path / name]).to_list() == FOUND


def test_one_line_is_a_table_in_json_and_a_row_in_json_lines(tmp_path: Path) -> None:
    columns = '{"text": ["a\u2028b", "c"], "label": [1.50, 2]}'
    (tmp_path / "a.json").write_text(columns, encoding="utf-8")
    (tmp_path / "b.json").write_text('{"data": ' + LIST.replace("\n", "") + "}", encoding="utf-8")
    assert read_table([tmp_path / "a.json"]).to_list() == read_table([tmp_path / "b.json"]).to_list() == FOUND
    (tmp_path / "a.jsonl").write_text(columns, encoding="utf-8")
    assert read_table([tmp_path / "a.jsonl"]).to_list() == [{"text": ["a\u2028b", "c"], "label": ["1.50", "2"]}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n{"text": "b"\n', "line 2 is not json"),
        ('{"text": "a"}\n["b"]\n', "line 2 is not an object"),
        ('{"text": "a", "text": "b"}\n', "names text twice"),
        ('["a", "b"]', "holds no list of rows"),
        ('{"text": {"0": "a"}, "label": {"0": "x"}}', "holds no list of rows"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_no_table_is_one_line(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_table([tmp_path / "train.json"])


def test_half_a_surrogate_pair_is_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x \\ud83d", "b": "\\ud83d\\ude00"}\n', encoding="utf-8")
    assert read_table([tmp_path / "a.jsonl"]).to_list() == [{"text": "x \ufffd", "b": "\U0001f600"}]


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_a_damaged_file_of_columns_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as"):
        read_table([tmp_path / name])


def test_a_sample_of_sorted_data_has_all_classes_in_proportion(tmp_path: Path) -> None:
    for split, size in (("train", 300), ("validation", 90), ("test", 90)):
        found = sorted(rows(split, ("a", "b", "b", "c"), size), key=lambda row: str(row["label"]))
        write_jsonl(tmp_path / f"{split}.jsonl", found)
    task = TextClassification(dataset=str(tmp_path), max_train_examples=40)
    assert counts(task, "train") == {"a": 10, "b": 20, "c": 10}
    assert counts(task, "test") == {"a": 3, "b": 6, "c": 3}
    again = TextClassification(dataset=str(tmp_path), max_train_examples=40)
    assert again.data.texts("train") == task.data.texts("train")
    few = TextClassification(dataset=str(tmp_path), max_train_examples=3)
    assert counts(few, "train") == {"a": 1, "b": 1, "c": 1}


def test_a_class_of_every_row_is_ten_thousand_classes(tmp_path: Path) -> None:
    labels = tuple(f"class {i}" for i in range(10_000))
    write_csv(tmp_path / "train.csv", rows("train", labels, 20_000))
    write_csv(tmp_path / "test.csv", rows("test", labels, 100))
    write_csv(tmp_path / "val.csv", rows("validation", labels, 100))
    assert len(TextClassification(dataset=str(tmp_path)).data.labels) == 10_000


def test_texts_of_a_causal_lm_are_read_alike(tmp_path: Path) -> None:
    for split in ("train", "test"):
        found = [{"text": f"{split} 01"}, {"text": None}, {"text": "  "}, {"text": 7.0}]
        (tmp_path / f"{split}.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, found)).encode())
    data = CausalLM(dataset=str(tmp_path)).data
    assert data.texts == {"train": ["train 01", "7.0"], "test": ["test 01", "7.0"]}
    write_jsonl(tmp_path / "test.jsonl", [{"text": ["a", "b"]}])
    with pytest.raises(UserError, match=r"--task\.text-column text: it holds lists"):
        _ = CausalLM(dataset=str(tmp_path)).data


def test_documents_and_summaries_are_read_alike(tmp_path: Path) -> None:
    write_csv(tmp_path / "papers.csv", [{"document": "None", "summary": "01"}, {"document": "b", "summary": " "}])
    with pytest.raises(UserError, match=r"summary is empty in row 1 of the test split; .*--documents\.missing skip"):
        _ = Summarization(str(tmp_path)).data
    rows = Summarization(str(tmp_path), missing="skip").data.splits["test"]
    assert (rows.documents, rows.references) == (["None"], [["01"]])
    assert Summarization(str(tmp_path / "papers.csv"), missing="skip").data.splits["test"] == rows
    write_jsonl(tmp_path / "papers.jsonl", [{"document": ["a"], "summary": "b"}])
    with pytest.raises(UserError, match=r"--documents\.document-column document: it holds lists"):
        _ = Summarization(str(tmp_path / "papers.jsonl")).data
