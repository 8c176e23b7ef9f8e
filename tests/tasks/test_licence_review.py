"""The embedded data set: what is read, what is kept, and that nothing leaks between the splits."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from hfcompress.errors import UserError
from hfcompress.tasks import licence_review
from hfcompress.tasks.licence_review import (
    Row,
    assign,
    front_matter,
    leaks,
    split_rows,
    usable_rows,
    without_near_duplicates,
)

CATEGORIES = ("Copyleft", "Permissive")


def sentence(seed: str, words: int = 30) -> str:
    """Words that no other seed shares."""
    return " ".join(f"{seed}{i}" for i in range(words))


def write(file: Path, text: str, **fields: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    head = "".join(f"{key}: {value}\n" for key, value in fields.items())
    file.write_text(f"---\n{head}---\n\n{text}\n", encoding="utf-8")


def write_rule(folder: Path, name: str, text: str, **fields: str) -> None:
    write(folder / "rules" / f"{name}.RULE", text, **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty licences in two categories, each with its full text and a notice."""
    for i in range(20):
        write(tmp_path / "licenses" / f"l{i}.LICENSE", sentence(f"text{i}x"), key=f"l{i}", category=CATEGORIES[i % 2])
        write_rule(tmp_path, f"l{i}_1", sentence(f"notice{i}x"), license_expression=f"l{i}", is_license_notice="yes")
    return tmp_path


def groups(rows: list[Row]) -> set[str]:
    return {row["group"] for row in rows}


def test_front_matter_ends_at_the_second_line_of_dashes() -> None:
    fields, text = front_matter("---\nkey: a\nname: A --- B\n---\n\nOne  {{two}}\n---\nthree\n")
    assert fields == {"key": "a", "name": "A --- B"}
    assert text == "One two --- three"


def test_licences_and_rules_are_read_with_the_category_of_their_licence(folder: Path) -> None:
    rows = usable_rows(folder, min_texts=1)
    assert len(rows) == 40
    assert {row["label"] for row in rows if row["group"] == "l3"} == {"Permissive"}
    assert set(rows[0]) == {"text", "label", "group"}


@pytest.mark.parametrize(
    "fields",
    [
        {"license_expression": "l1 AND l2"},
        {"license_expression": "l1 WITH l2"},
        {"license_expression": "(l1)"},
        {"license_expression": "unheard-of"},
        {"license_expression": "l1", "language": "fr"},
        {"license_expression": "l1", "is_deprecated": "yes"},
        {"license_expression": "l1", "is_license_clue": "yes"},
        {"license_expression": "l1", "is_license_intro": "yes"},
        {"is_false_positive": "yes"},
    ],
    ids=str,
)
def test_unusable_rules_are_left_out(folder: Path, fields: dict[str, str]) -> None:
    write_rule(folder, "extra", sentence("extra"), **fields)
    assert len(usable_rows(folder, min_texts=1)) == 40


def test_short_and_repeated_texts_and_rare_categories_are_left_out(folder: Path) -> None:
    write_rule(folder, "short", sentence("short", words=19), license_expression="l1")
    write_rule(folder, "long", sentence("long", words=20), license_expression="l1")
    write_rule(folder, "again", sentence("long", words=20).upper(), license_expression="l1")
    write(folder / "licenses" / "rare.LICENSE", sentence("rare"), key="rare", category="Rare")
    rows = usable_rows(folder, min_texts=2)
    assert len(rows) == 41
    assert "rare" not in groups(rows)


def test_a_quarter_of_each_categorys_licences_is_test_and_a_tenth_validation(folder: Path) -> None:
    rows = usable_rows(folder, min_texts=1)
    splits = split_rows(rows)
    assert sum(map(len, splits.values())) == 40  # nothing to drop here
    for category in CATEGORIES:
        size = {split: len(groups([r for r in found if r["label"] == category])) for split, found in splits.items()}
        assert size == {"train": 6, "validation": 1, "test": 3}


def test_a_licence_with_many_texts_is_for_training(folder: Path) -> None:
    test_licence = next(key for key, split in assign(usable_rows(folder, min_texts=1)).items() if split == "test")
    for i in range(licence_review.COMMON):
        write_rule(folder, f"many_{i}", sentence(f"many{i}x"), license_expression=test_licence)
    assert assign(usable_rows(folder, min_texts=1))[test_licence] == "train"


def test_of_near_duplicates_in_two_splits_as_few_as_can_be_are_dropped() -> None:
    def row(text: str) -> Row:
        return {"text": text, "label": "Permissive", "group": "any"}

    one, other, third = (sentence(name, words=60) for name in ("one", "other", "third"))
    left = [row(f"{one} ending{i}") for i in range(5)] + [row(other), row(third)]
    right = [row(one), *[row(f"{other} ending{i}") for i in range(4)], row(sentence("fourth"))]
    kept_left, kept_right = without_near_duplicates(left, right)
    assert kept_left == [*left[:5], row(third)]
    assert kept_right == right[1:]


def test_near_duplicates_in_train_are_thinned_out_unless_their_labels_differ(folder: Path) -> None:
    rows = usable_rows(folder, min_texts=1)
    assigned = assign(rows)
    train = {
        label: [row["group"] for row in rows if row["label"] == label and assigned[row["group"]] == "train"]
        for label in CATEGORIES
    }
    for label in CATEGORIES:
        for i in range(3):
            write_rule(
                folder,
                f"{label}_{i}",
                sentence("shared", words=60) + f" end{label}{i}",
                license_expression=train[label][i],
            )
    kept = [row for row in split_rows(usable_rows(folder, min_texts=1))["train"] if row["text"].startswith("shared0")]
    assert sorted(row["label"] for row in kept) == sorted(CATEGORIES)


def test_leaks_are_found_in_a_split_by_text(folder: Path) -> None:
    """The check says no: to a licence in two splits, and to a near-duplicate under another licence's name."""
    rows = usable_rows(folder, min_texts=1)
    by_text = {"train": rows[::2], "test": rows[1::2]}
    assert any("licence l0 is in train and in test" in line for line in leaks(by_text))
    splits = split_rows(rows)
    copied = splits["train"][0] | {"text": splits["test"][0]["text"] + " and a word more"}
    assert leaks(splits) == []
    assert leaks(splits | {"train": [*splits["train"], copied]}) == ["1 near-duplicate texts between train and test"]


def test_the_split_is_the_same_in_every_process(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from hfcompress.tasks.licence_review import *;"
        "print(split_rows(usable_rows(Path(sys.argv[1]), min_texts=1)))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 1000


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps scancode-toolkit-mini"):
        licence_review.load()


def test_load_caches_what_it_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(licence_review, "data_folder", lambda: folder)
    monkeypatch.setattr(licence_review, "MIN_TEXTS", 1)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0")
    first = licence_review.load()
    assert set(first) == {"train", "validation", "test"}
    monkeypatch.setattr(licence_review, "usable_rows", None)  # a second reading would fail
    second = licence_review.load()
    assert [list(second[s]) for s in second] == [list(first[s]) for s in first]


@pytest.mark.slow
def test_the_real_texts_have_no_leak() -> None:
    if importlib.util.find_spec("licensedcode") is None:
        pytest.skip("scancode-toolkit-mini is not installed")
    splits = {split: list(rows) for split, rows in licence_review.load().items()}
    assert leaks(splits) == []
    assert len({row["label"] for row in splits["test"]}) == 9
