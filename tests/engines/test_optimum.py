"""Optimum in this process and by another Python: the same graphs, one line where it is not, and recipes without it."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hfcompress.engines import optimum
from hfcompress.errors import UserError, has
from hfcompress.formats.onnx import DynamicInt8, ExportOnnx, StaticInt8
from hfcompress.runs.effects import Walk, walked
from hfcompress.runs.prepare import defaults_of
from hfcompress.runs.recipes import load_recipe
from hfcompress.stage import content_key, library_version
from hfcompress.tasks.text_classification import TextClassification

THIS = Path(sys.executable)
GIVEN = os.environ.get(optimum.VARIABLE)
HERE = has("optimum.onnxruntime") and optimum.takes(library_version("transformers"))


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No environment of Optimum but those that a test names."""
    monkeypatch.delenv(optimum.VARIABLE, raising=False)
    monkeypatch.setattr(optimum, "ENVIRONMENT", tmp_path / "none" / "python")
    optimum.asked.cache_clear()
    yield
    optimum.asked.cache_clear()


def hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave this process without an Optimum that it could call."""
    monkeypatch.setitem(sys.modules, "optimum.onnxruntime", None)
    monkeypatch.delenv(optimum.VARIABLE, raising=False)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an Optimum: this process's, else the one that the tests were started with."""
    if not HERE and not GIVEN:
        pytest.skip(f"Optimum is not in this environment, and {optimum.VARIABLE} is not set")
    if not HERE and GIVEN:
        monkeypatch.setenv(optimum.VARIABLE, GIVEN)


def python_that(folder: Path, *lines: str) -> Path:
    """An executable that does these lines of shell instead of running Python."""
    file = folder / "python"
    file.write_text("\n".join(["#!/bin/sh", *lines]), encoding="utf-8")
    file.chmod(0o755)
    return file


def made(stage: Any, out: Path, **inputs: Any) -> bytes:
    (out / "work").mkdir(parents=True)
    stage(out, **inputs)
    return (out / "model.onnx").read_bytes()


@pytest.mark.parametrize("make", [DynamicInt8, lambda python: StaticInt8(calibration_texts=4, python=python)])
def test_another_python_writes_the_same_bytes_under_the_same_key(
    make: Callable[..., Any], exported: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    if not HERE:
        pytest.skip("Optimum is not in this environment")
    here, there = make(python=None), make(python=THIS)
    inputs: dict[str, Any] = {"model": exported, "task": tiny_task}
    assert content_key(here, inputs) == content_key(there, inputs)
    assert made(here, tmp_path / "here", **inputs) == made(there, tmp_path / "there", **inputs)


def test_optimums_export_answers_as_the_model(
    tiny_teacher: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    """The stage compares its logits with the model's; a graph of another model is refused by that."""
    if not HERE:
        pytest.skip("Optimum is not in this environment")
    inputs: dict[str, Any] = {"model": tiny_teacher, "task": tiny_task}
    theirs = ExportOnnx(engine="optimum", python=THIS)
    assert content_key(theirs, inputs) != content_key(ExportOnnx(), inputs)
    made(theirs, tmp_path / "theirs", **inputs)
    assert (tmp_path / "theirs" / "tokenizer.json").is_file()


def test_the_key_of_before_is_kept_and_an_optimum_of_another_version_makes_anew() -> None:
    for stage, key in (
        (DynamicInt8, "fd8a445a9950df28"),
        (StaticInt8, "87277271df8b696f"),
        (ExportOnnx, "d1206b00514a465a"),
    ):
        kept = type("Kept", (stage,), {"libraries": (), "foreign_versions": {}, "__qualname__": stage.__name__})
        assert content_key(kept(), {}) == key
        other = type("Kept", (kept,), {"foreign_versions": {"optimum-onnx": "9"}, "__qualname__": stage.__name__})
        assert content_key(other(), {}) != key


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["echo 'no module' >&2", "exit 1"], r"it has no Optimum \(no module\): python -m venv \.venv-optimum"),
        (
            ["""echo '{"optimum-onnx": "0.1.0", "onnxruntime": "1.32.0", "transformers": "5.24.0"}'"""],
            r"Optimum does not import beside its transformers 5\.24\.0: python -m venv \.venv-optimum",
        ),
    ],
)
def test_a_python_without_optimum_is_refused_in_a_line(
    lines: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = python_that(tmp_path, *lines)
    with pytest.raises(UserError, match=rf"^optimum_python \S+/python: {said}"):
        optimum.find(python)
    monkeypatch.setenv(optimum.VARIABLE, str(python))
    with pytest.raises(UserError, match=rf"^HFCOMPRESS_OPTIMUM_PYTHON \S+/python: {said}"):
        optimum.find()
    with pytest.raises(UserError, match=r"^optimum_python /no/such: cannot be run"):
        optimum.find(Path("/no/such"))


def test_an_environment_beside_the_working_directory_is_found_where_this_one_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch)
    assert optimum.find() is None
    versions = {"optimum-onnx": "0.1.0", "onnxruntime": "1.32.0", "transformers": "4.57.6"}
    python = python_that(tmp_path, f"echo '{json.dumps(versions)}'")
    monkeypatch.setattr(optimum, "ENVIRONMENT", python)
    found = optimum.find()
    assert found is not None
    assert found.python == python
    assert dict(found.versions) == {"optimum-onnx": "0.1.0", "onnxruntime": "1.32.0"}
    assert DynamicInt8().foreign_versions == dict(found.versions)


def test_what_fails_in_the_other_python_is_one_line(
    exported: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    versions = {"optimum-onnx": "0.1.0", "onnxruntime": "1.32.0", "transformers": "4.57.6"}
    asked = f"""case "$2" in -c) echo '{json.dumps(versions)}';; *) echo 'ValueError: broken' >&2; exit 1;; esac"""
    stage = DynamicInt8(python=python_that(tmp_path, asked))
    with pytest.raises(UserError, match=r"^optimum_python \S+: Optimum's dynamic failed there: ValueError: broken$"):
        made(stage, tmp_path / "out", model=exported, task=tiny_task)


def options(recipe: str, folder: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
    module = load_recipe(recipe)
    return module.recipe, defaults_of(module.recipe, module.arguments("small", folder), []) | changes


def names(walk: Walk) -> list[str]:
    return [step.name for step in walk.steps]


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize("recipe", ["legal_bert", "legal_bert_structured"])
def test_without_optimum_its_rows_are_left_out_and_a_note_says_how_to_get_them(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, found = options(recipe, tmp_path)
    with_it = walked(function, found)
    hide(monkeypatch)
    without = walked(function, found)
    left_out = set(names(with_it)) - set(names(without))
    assert left_out
    assert all("dynamic" in name or "static" in name for name in left_out)
    assert with_it.compared["notes"] == ()
    (note,) = without.compared["notes"]
    assert all(name in note for name in left_out)
    assert "not installed. To have them: python -m venv .venv-optimum" in note
    assert "--optimum-python" in note
    assert without.compared["candidate"].name == with_it.compared["candidate"].name


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize("form", ["dynamic", "static"])
def test_optimums_model_can_be_the_delivered_one(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, found = options("legal_bert", tmp_path, int8=f"optimum-{form}")
    walk = walked(function, found)
    assert "int8" not in names(walk)
    assert walk.compared["candidate"].name == f"slim-{form}-int8"
    assert walk.compared["deliver"][-1] is walk.compared["candidate"]
    assert walk.compared["candidate"] in walk.compared["models"]
    hide(monkeypatch)
    with pytest.raises(
        UserError, match=r"^quantizing with Optimum needs optimum\.onnxruntime, which is not installed"
    ):
        walked(function, found)
