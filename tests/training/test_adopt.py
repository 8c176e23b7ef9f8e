"""A teacher in hand is taken into a run, unless its own record says that it may know the test texts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hfcompress.errors import UserError
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.adopt import Adopt


@pytest.fixture
def teacher(tmp_path: Path, tiny_teacher: Path) -> Path:
    (tmp_path / "out").mkdir()
    return Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))


def adopted(teacher: Path, task: TextClassification, trained_on: str | None) -> bool:
    """Whether it was taken, with a record that names what it was trained on."""
    if trained_on is not None:
        (teacher / "record.json").write_text(json.dumps({"inputs": {"task": trained_on}}))
    Adopt()(teacher.parent / "out", model=teacher, task=task)
    return (teacher.parent / "out" / "model.safetensors").is_file()


def test_a_task_is_named_by_its_texts_and_not_by_its_place(tmp_path: Path, tiny_task: TextClassification) -> None:
    copy = replace(tiny_task, dataset=str(shutil.copytree(tiny_task.dataset, tmp_path / "data")))
    assert copy.identity == tiny_task.identity
    assert copy.identity.startswith("data@")
    lines = (tmp_path / "data" / "train.jsonl").read_text().splitlines()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert replace(copy).identity != tiny_task.identity


def test_a_teacher_of_the_same_texts_of_other_data_or_without_record_is_taken(
    teacher: Path, tiny_task: TextClassification
) -> None:
    for trained_on in (None, tiny_task.identity, "imdb@0123456789abcdef"):
        assert adopted(teacher, tiny_task, trained_on)
    (teacher / "record.json").write_text("another tool's")
    assert adopted(teacher, tiny_task, None)


def test_a_teacher_of_another_version_of_the_data_is_refused(teacher: Path, tiny_task: TextClassification) -> None:
    with pytest.raises(UserError, match=r"may be in test now; --teacher none"):
        adopted(teacher, tiny_task, "data@0123456789abcdef")
    assert not (teacher.parent / "out" / "model.safetensors").exists()
    assert adopted(teacher, replace(tiny_task, max_train_examples=60), "data@0123456789abcdef")
