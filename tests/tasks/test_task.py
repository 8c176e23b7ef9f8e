"""What is wrong with a data set is said in one line that names the option."""

import json
from pathlib import Path

import pytest

from hfcompress.errors import UserError
from hfcompress.recipes import tiny
from hfcompress.tasks.text_classification import TextClassification


def write(folder: Path, **splits: list[dict[str, object]]) -> TextClassification:
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return TextClassification(dataset=str(folder))


def rows(count: int, name: str = "train") -> list[dict[str, object]]:
    """Texts of two classes that stand in no other split."""
    return [{"text": f"{name} {i}", "label": "ab"[i % 2]} for i in range(count)]


GOOD, VALID, TEST = rows(40), rows(4, "validation"), rows(6, "test")


def test_splits_have_text_numbered_label_and_group(tiny_task: TextClassification) -> None:
    data = tiny_task.data
    assert data.labels == ["apple", "metal", "water"]
    assert {split: len(rows) for split, rows in data.splits.items()} == tiny.SIZES
    assert set(data.label_ids("train")) == {0, 1, 2}
    assert len(set(data.groups("test"))) == 30


def test_a_missing_validation_split_is_carved_from_train_by_group(tmp_path: Path) -> None:
    task = write(tmp_path, train=GOOD, test=TEST)
    sizes = {split: len(rows) for split, rows in task.data.splits.items()}
    assert sizes["train"] + sizes["validation"] == len(GOOD)
    assert sizes["validation"] > 0
    assert not set(task.data.groups("train")) & set(task.data.groups("validation"))


def test_the_fingerprint_follows_the_data_not_the_folder(tmp_path: Path) -> None:
    first = write(tmp_path / "a", train=GOOD, validation=VALID, test=TEST)
    same = write(tmp_path / "b", train=GOOD, validation=VALID, test=TEST)
    other = write(tmp_path / "c", train=GOOD[:-1], validation=VALID, test=TEST)
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


def test_encode_truncates_and_numbers_rows(tiny_task: TextClassification, tiny_model: Path) -> None:
    from hfcompress.architectures.models import load_tokenizer

    rows = tiny_task.data.encode(load_tokenizer(tiny_model), 16, "test")
    assert max(rows["length"]) == 16
    assert list(rows["index"]) == list(range(len(rows)))


@pytest.mark.parametrize(
    ("splits", "options", "words"),
    [
        ({"train": GOOD, "test": TEST}, {"text_column": "body"}, ["--task.text-column body", "text, label"]),
        ({"train": GOOD, "test": TEST}, {"label_column": "class"}, ["--task.label-column class"]),
        ({"train": GOOD, "test": TEST}, {"group_column": "contract"}, ["--task.group-column contract"]),
        ({"train": GOOD[::2], "test": TEST[::2]}, {}, ["only one class", "'a'"]),
        ({"train": GOOD, "test": [*TEST, {"text": "t", "label": "c"}]}, {}, ["'c'", "only in test"]),
        ({"test": GOOD}, {}, ["no train split"]),
        ({"train": GOOD}, {}, ["no test split"]),
        ({"train": [*GOOD, {"text": None, "label": "a"}], "test": TEST}, {}, ["row 40 of the train split is empty"]),
    ],
)
def test_what_is_wrong_with_the_data_is_named(
    tmp_path: Path, splits: dict[str, list[dict[str, object]]], options: dict[str, str], words: list[str]
) -> None:
    write(tmp_path, **splits)
    with pytest.raises(UserError) as error:
        _ = TextClassification(dataset=str(tmp_path), **options).data  # type: ignore[arg-type]
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, train=GOOD, test=[])
    with pytest.raises(UserError, match=r"test"):
        _ = TextClassification(dataset=str(tmp_path)).data


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    write(tmp_path, test=GOOD)
    (tmp_path / "train.csv").write_bytes("text,label\ncaf\xe9,a\nb,b\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.csv is not UTF-8"):
        _ = TextClassification(dataset=str(tmp_path)).data


def test_two_candidates_for_a_split_ask_for_a_pattern(tmp_path: Path) -> None:
    write(tmp_path, train=GOOD, review_train=GOOD, review_test=TEST)
    with pytest.raises(UserError, match=r"--task\.data-files"):
        _ = TextClassification(dataset=str(tmp_path)).data
    assert TextClassification(dataset=str(tmp_path), data_files="review_*").data.labels == ["a", "b"]


@pytest.mark.parametrize("dataset", ["./nowhere", "nowhere", "/nowhere"])
def test_a_folder_that_is_not_there_is_named(dataset: str) -> None:
    with pytest.raises(UserError, match=r"no such folder"):
        _ = TextClassification(dataset=dataset).data


def test_a_hub_data_set_without_network_says_so() -> None:
    with pytest.raises(UserError, match=r"cannot be had from the Hub"):
        _ = TextClassification(dataset="nobody/nothing").data


@pytest.mark.slow
def test_the_contract_clauses_load_by_pattern(real_data: Path) -> None:
    task = TextClassification(dataset=str(real_data / "cuad"), data_files="review_*.parquet")
    assert [len(task.data.splits[s]) for s in ("train", "validation", "test")] == [4570, 771, 834]
    assert len(task.data.labels) == 36
