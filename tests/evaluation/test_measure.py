"""measure: every model of a run in one table, and a model that is broken is seen in every part of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.evaluation.measure import Measure
from hfcompress.evaluation.statistics import Difference, n_needed, verdict
from hfcompress.tasks.linear import TfidfSvm
from hfcompress.tasks.text_classification import TextClassification

QUICK = Measure(sequence_length=16, runs=4, resamples=200)


def swapped(teacher: Path, folder: Path) -> Path:
    """The teacher with the rows of two classes of its head exchanged: wrong labels, all else as it was."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(teacher, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][[1, 0, 2]].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def out(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, exported: Path, tiny_task: TextClassification
) -> Path:
    folder = tmp_path_factory.mktemp("measure")
    out = folder / "out"
    out.mkdir()
    models = {"teacher": tiny_teacher, "teacher-onnx": exported, "broken": swapped(tiny_teacher, folder / "broken")}
    QUICK(out, models=models, task=tiny_task, reference="teacher", confidence=0.95)
    return out


@pytest.fixture(scope="module")
def found(out: Path) -> dict[str, Any]:
    return json.loads((out / "measurements.json").read_text())


def row(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(model for model in found["models"] if model["name"] == name)


def test_every_model_and_the_baseline_have_a_row_with_reports_names(found: dict[str, Any]) -> None:
    formats = {model["name"]: model["format"] for model in found["models"]}
    assert formats == {
        "teacher": "transformers",
        "teacher-onnx": "onnx",
        "broken": "transformers",
        TfidfSvm.name: "baseline",
    }
    for model in found["models"]:
        assert set(model["accuracy"]) == {"metric", "value", "ci95", "n", "all"}
        assert set(model["latency_ms"]) == {
            *("p50", "p95", "p99", "batch", "sequence_length", "threads", "runtime", "runs"),
        }
        assert model["latency_ms"]["runs"] == QUICK.runs
        low, high = model["accuracy"]["ci95"]
        assert low <= model["accuracy"]["value"] <= high
    runtimes = {model["name"]: model["latency_ms"]["runtime"] for model in found["models"]}
    assert (runtimes["teacher"], runtimes["teacher-onnx"]) == ("torch", "onnxruntime")
    assert (found["n"], found["groups"], found["reference"]) == (90, 30, "teacher")


def test_nothing_in_it_is_nan(found: dict[str, Any]) -> None:
    json.dumps(found, allow_nan=False)
    assert row(found, TfidfSvm.name)["accuracy"]["all"]["ece"] is None
    assert row(found, "teacher")["accuracy"]["all"]["ece"] is not None


def test_the_export_changes_nothing_and_a_broken_model_is_seen(found: dict[str, Any]) -> None:
    differences = found["differences"]
    assert "teacher" not in differences
    assert differences["teacher-onnx"]["accuracy"]["difference"] == 0
    assert found["flips"]["teacher-onnx"]["total"] == 0
    broken = Difference(**differences["broken"]["accuracy"])
    assert verdict(broken, 0.02) == "exceeded"
    assert n_needed(broken, 0.02) is None
    assert found["flips"]["broken"]["lost"] > 30
    by_class = {label: differences["broken"][f"f1:{label}"]["difference"] for label in found["labels"]}
    assert max(by_class["apple"], by_class["metal"]) < -0.5
    assert by_class["water"] == 0


def test_ninety_texts_do_not_show_a_drop_of_a_point(found: dict[str, Any]) -> None:
    """Not even of a model whose answers are all the same."""
    same = Difference(**found["differences"]["teacher-onnx"]["accuracy"])
    assert verdict(same, 0.01) == "cannot be shown"
    assert n_needed(same, 0.01) == 299


def test_the_logits_kept_are_those_that_were_counted(out: Path, found: dict[str, Any]) -> None:
    with np.load(out / "predictions.npz") as kept:
        assert set(kept) == {"labels", "groups", "teacher", "teacher-onnx", "broken", TfidfSvm.name}
        right = (kept["teacher"].argmax(axis=1) == kept["labels"]).mean()
        assert len(set(kept["groups"].tolist())) == found["groups"]
    assert row(found, "teacher")["accuracy"]["value"] == pytest.approx(right)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bounds(
    tmp_path: Path, tiny_teacher: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    """Only the clock and the memory may differ between two measurements."""
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        models = {"teacher": tiny_teacher, "raw": tiny_model}
        QUICK(folder, models=models, task=tiny_task, reference="teacher", confidence=0.95)
        measured = json.loads((folder / "measurements.json").read_text())
        made.append((measured["differences"], measured["flips"], [m["accuracy"] for m in measured["models"]]))
    assert made[0] == made[1]


@pytest.mark.parametrize("option", ["batch", "sequence_length", "threads", "runs", "resamples"])
def test_an_impossible_option_is_refused_by_name(option: str) -> None:
    with pytest.raises(UserError, match=rf"{option} 0"):
        Measure(**{option: 0})
