"""Which file is which split: one rule, and what it does not use is said."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from hfcompress.errors import UserError
from hfcompress.tasks.find_splits import split_of
from hfcompress.tasks.hold_out import split_by_digest
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.read_tables import read_table
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.text_generation import CausalLM

Sizes = dict[str, int]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("TRAIN", "train"),
        ("training", "train"),
        ("review_train", "train"),
        ("train-00000-of-00002", "train"),
        ("wiki.train.raw", "train"),
        ("contest_train", "train"),
        ("latest_train", "train"),
        ("val", "validation"),
        ("valid", "validation"),
        ("dev", "validation"),
        ("eval", "validation"),
        ("development", "validation"),
        ("dev_matched", "validation"),
        ("test", "test"),
        ("testing", "test"),
        ("contest", None),
        ("latest", None),
        ("trainer", None),
        ("retrain", None),
        ("device", None),
        ("evaluator", None),
        ("value", None),
        ("train_test", None),
        ("holdout", None),
    ],
)
def test_a_name_belongs_to_a_split_by_its_words(name: str, split: str | None) -> None:
    assert split_of(name) == split


def lines(name: str, count: int) -> str:
    found = [{"text": f"{name} {i}", "label": "ab"[i % 2]} for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in found)


def folder(place: Path, **files: int) -> Path:
    """Files of so many rows; in a name __ is / and - stands for itself."""
    for name, count in files.items():
        file = place / f"{name.replace('__', '/')}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(lines(name, count), encoding="utf-8")
    return place


def sizes(dataset: Path, **options: str) -> Sizes:
    data = TextClassification(dataset=str(dataset), **options).data  # type: ignore[arg-type]
    return {split: len(data.label_ids(split)) for split in data.splits}


def refusal(dataset: Path, **options: str) -> str:
    with pytest.raises(UserError) as error:
        sizes(dataset, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


WANTED = {"train": 20, "validation": 6, "test": 8}


@pytest.mark.parametrize(
    "files",
    [
        {"train": 20, "val": 6, "test": 8},
        {"train": 20, "dev": 6, "test": 8},
        {"my_training": 20, "my-eval": 6, "my.testing": 8},
        {"data__train": 20, "data__validation": 6, "data__test": 8},
        {"train__part1": 12, "train__test": 8, "val__train": 6, "test__a": 8},
        {"data__train__a": 20, "data__dev__b": 6, "data__test__c": 8},
        {"train-00000-of-00002": 12, "train-00001-of-00002": 8, "val": 6, "test": 8},
    ],
)
def test_files_are_found_by_their_own_or_their_folders_name(files: Sizes, tmp_path: Path) -> None:
    assert sizes(folder(tmp_path, **files)) == WANTED


def test_what_is_not_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, train=20, val=6, test=8, unsupervised=3, train_test=2)
    for name in ("README.md", "notes.txt", "._train.csv", "dataset_infos.json", "test.xlsx"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert sizes(tmp_path) == WANTED
    said = [line for line in capsys.readouterr().err.splitlines() if "not used" in line]
    assert said == [
        f"hfcompress: --task.dataset {tmp_path}: not used: train_test.jsonl, unsupervised.jsonl, "
        "notes.txt (not a kind that is read), test.xlsx (not a kind that is read)"
    ]


def test_a_word_that_only_holds_a_splits_name_is_no_split(tmp_path: Path) -> None:
    line = refusal(folder(tmp_path, contest_train=20, contest_heldout=8))
    assert "no test split (train is contest_train.jsonl); not used: contest_heldout.jsonl" in line
    typed = "train=contest_train.jsonl,test=contest_heldout.jsonl"
    assert f"--task.data-files {typed}" in line
    assert sizes(tmp_path, data_files=typed)["test"] == 8
    assert "no test split" in refusal(folder(tmp_path / "one", latest_train=20))


def test_two_candidates_are_refused_with_both_names(tmp_path: Path) -> None:
    folder(tmp_path, train=20, val=6, test=8)
    (tmp_path / "train.csv").write_text("text,label\na,b\n", encoding="utf-8")
    line = refusal(tmp_path)
    assert "train.csv, train.jsonl could all be train; choose with --task.data-files" in line
    assert sizes(tmp_path, data_files="*.jsonl") == WANTED
    (tmp_path / "train.csv").rename(tmp_path / "dev.csv")
    assert "dev.csv, val.jsonl could all be validation" in refusal(tmp_path)
    folder(tmp_path / "b", train=20, train__more=3, test=8)
    assert "train.jsonl, train/ could all be train" in refusal(tmp_path / "b")
    folder(tmp_path / "c", train__a=20, test=8)
    (tmp_path / "c" / "train" / "a.csv").write_text("text,label\na,b\n", encoding="utf-8")
    assert "train/a.csv, train/a.jsonl could both be train" in refusal(tmp_path / "c")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder(tmp_path, **{"train-00001-of-00002": 20, "test": 8})
    assert "1 of the 2 files of train are there (train-00001-of-00002.jsonl)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("nothing_*", "no train split"),
        ("train=none.jsonl,test=test.jsonl", "has no such file"),
        ("all=train.jsonl", "is not SPLIT=FILE"),
        ("train=README.md,test=test.jsonl", "README.md is not read"),
        ("/etc/*", "give a pattern below"),
    ],
)
def test_a_pattern_that_finds_nothing_is_refused(pattern: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    assert words in refusal(folder(tmp_path, train=20, test=8), data_files=pattern)


def test_a_folder_within_is_named(tmp_path: Path) -> None:
    folder(tmp_path, plain__train=20, plain__val=6, plain__test=8)
    assert f"--task.dataset {tmp_path / 'plain'}" in refusal(tmp_path)
    assert sizes(tmp_path, config="plain") == WANTED
    assert "--task.config other" in refusal(tmp_path, config="other")


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    rows = {name: [json.loads(line) for line in lines(name, count).splitlines()] for name, count in WANTED.items()}
    DatasetDict({name: Dataset.from_list(found) for name, found in rows.items()}).save_to_disk(tmp_path / "all")
    assert sizes(tmp_path / "all") == WANTED
    Dataset.from_list([row for found in rows.values() for row in found] * 1).save_to_disk(tmp_path / "one")
    assert sum(sizes(tmp_path / "one").values()) == 34


def test_one_file_is_split_by_a_hash_of_its_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"text {i % 150}", "label": "ab"[i % 2], "doc": f"d{i // 2}"} for i in range(200)]
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = TextClassification(dataset=str(file), group_column="doc").data
    groups = {split: set(data.groups(split)) for split in data.splits}
    texts = {split: set(data.texts(split)) for split in data.splits}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not groups[one] & groups[other]
        assert not texts[one] & texts[other]
    assert sum(len(data.label_ids(split)) for split in data.splits) == 200
    assert "one table, split by a hash of its groups: train" in capsys.readouterr().err
    more = [*rows, *({"text": f"more {i}", "label": "a", "doc": f"more {i}"} for i in range(50))]
    file.write_text("".join(json.dumps(row) + "\n" for row in reversed(more)), encoding="utf-8")
    again = TextClassification(dataset=str(file), group_column="doc").data
    for split in data.splits:
        assert groups[split] == {group for group in again.groups(split) if group.startswith("d")}, "no row moves"
    assert f"--task.dataset {file}" in refusal(folder(tmp_path))
    assert "--task.data-files *" in refusal(file, data_files="*")


def test_a_column_says_the_split(tmp_path: Path) -> None:
    rows = [
        json.loads(line) | {"split": {"validation": "dev"}.get(name, name)}
        for name, count in WANTED.items()
        for line in lines(name, count).splitlines()
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "all.parquet")
    assert sizes(tmp_path / "all.parquet") == WANTED


def test_a_class_that_train_would_lack_stays_in_train(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": f"rare {i}" if i % 20 == 0 else "common"} for i in range(200)]
    (tmp_path / "all.json").write_text(json.dumps(rows), encoding="utf-8")
    data = TextClassification(dataset=str(tmp_path / "all.json")).data
    assert Counter(data.label_ids("train"))[data.labels.index("rare 0")] == 1


def test_a_file_in_a_folder_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, data__reviews=200)
    monkeypatch.chdir(tmp_path)
    task = TextClassification(dataset="data/reviews.jsonl")
    assert not task.on_hub
    assert sum(len(task.data.label_ids(split)) for split in task.data.splits) == 200
    with pytest.raises(UserError, match=r"--task\.dataset: it is empty"):
        _ = TextClassification(dataset="").data


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    folder(tmp_path, train=20, test=8)
    (tmp_path / "dev.csv").symlink_to(tmp_path / "gone.csv")
    assert "dev.csv is a link to nothing" in refusal(tmp_path)


def test_both_forms_of_arrow_are_read(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", "b"], "label": ["x", "y"]})
    for name, writer in (("a.arrow", pyarrow.ipc.new_file), ("b.arrow", pyarrow.ipc.new_stream)):
        with writer(tmp_path / name, table.schema) as out:
            out.write_table(table)
        assert read_table([tmp_path / name]).to_dict() == table.to_pydict()


def test_a_file_that_is_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.xlsx").write_text("x", encoding="utf-8")
    assert "not a file that is read; read are parquet" in refusal(tmp_path / "train.xlsx")
    assert "no train split; not used: train.xlsx (not a kind that is read)" in refusal(tmp_path)
    assert "no such folder or file" in refusal(tmp_path / "none.csv")


def test_documents_are_split_alike(tmp_path: Path) -> None:
    rows = [{"text": f"document {i} " + "word " * 20} for i in range(100)]
    (tmp_path / "all.json").write_text(json.dumps(rows), encoding="utf-8")
    texts = CausalLM(dataset=str(tmp_path / "all.json")).data.texts
    assert set(texts) == {"train", "validation", "test"}
    assert sum(map(len, texts.values())) == 100


def images(place: Path, *files: str) -> Path:
    for i, name in enumerate(files):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, i // 256, 7)).save(place / name)
    return place


def image_sizes(place: Path) -> Sizes:
    data = ImageClassification(dataset=str(place)).data
    return {split: len(data.label_ids(split)) for split in data.splits}


def test_images_below_a_split_are_of_that_split_whatever_their_names(tmp_path: Path) -> None:
    names = [
        f"{s}/{c}/test_{i}.png" for s, n in (("train", 9), ("val", 3), ("test", 4)) for c in "ab" for i in range(n)
    ]
    names += [
        "train/a/dog on a train.png",
        "train/b/train/deep test.PNG",
        "test/train/a class.png",
        "train/train/x.png",
    ]
    images(tmp_path, *names)
    (tmp_path / "train" / "a" / "._test_0.png").write_bytes(b"no image")
    (tmp_path / "train" / "a" / "Thumbs.db").write_bytes(b"no image")
    assert image_sizes(tmp_path) == {"train": 21, "validation": 6, "test": 9}
    assert ImageClassification(dataset=str(tmp_path)).data.labels == ["a", "b", "train"]
    images(tmp_path, "valid/a/1.png")
    with pytest.raises(UserError, match=r"(val/, valid/|valid/, val/) could all be validation"):
        image_sizes(tmp_path)


def test_class_folders_without_splits_are_split_by_their_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path, *(f"{c}/{i}.png" for c in ("bus", "train") for i in range(60)), "stray.png")
    found = image_sizes(tmp_path)
    assert sum(found.values()) == 120
    assert 60 < found["train"] < 110
    assert ImageClassification(dataset=str(tmp_path)).data.labels == ["bus", "train"]
    said = capsys.readouterr().err
    assert "split by a hash of each image" in said
    assert "1 images are not used: stray.png" in said


def test_images_without_a_test_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no test split: it has train/, val/ but no folder test/"):
        image_sizes(images(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png"))


def test_the_only_image_of_a_class_stays_in_train(tmp_path: Path) -> None:
    images(
        tmp_path, *(f"{c}/{i}.png" for c in ("bus", "car") for i in range(40)), *(f"spare/{i}.png" for i in range(40))
    )
    spare = sorted((tmp_path / "spare").iterdir())
    chosen = next(f for f in spare if split_by_digest(hashlib.sha256(f.read_bytes()).hexdigest()) == "test")
    for file in spare:
        if file != chosen:
            file.unlink()
    data = ImageClassification(dataset=str(tmp_path)).data
    rare = data.labels.index("spare")
    assert [split for split in data.splits for label in data.label_ids(split) if label == rare] == ["train"]
