"""iot_camera: the chain from a fine-tuned MobileNetV2 to int8 in one table, and the camera's limits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.formats import FORMATS
from hfcompress.formats.onnx_images import require_integer_kernels
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.formats.runtimes.litert_network import find_python
from hfcompress.formats.saturation import saturating_layers
from hfcompress.formats.size import integer_bytes
from hfcompress.hub.release import delivered
from hfcompress.planning.plan import Plan
from hfcompress.recipes import iot_camera
from hfcompress.runs.run import Run
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.training.new_images import NewMobileNet
from tests.optimum_python import run_optimum

GRAY = """
import sys
import numpy as np
from optimum.onnxruntime import ORTModelForImageClassification
network = ORTModelForImageClassification.from_pretrained(sys.argv[1])
print(network(pixel_values=np.zeros((2, 3, 32, 32), np.float32)).logits.tolist())
"""
MODELS = ["teacher", "teacher-onnx", "teacher-static-int8", "slim", "slim-onnx", "slim-static-int8", "int8"]


def test_small_scales_plan_holds_its_limits_and_a_tenth_of_it_does_not(tmp_path: Path) -> None:
    options = iot_camera.small(tmp_path)
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
    plan = Plan()
    iot_camera.recipe(plan, **options)  # type: ignore[arg-type]
    assert [row["name"] for row in plan.rows] == MODELS
    rows = {row["name"]: row for row in plan.rows}
    allowed = options["budget"].disk_mb
    assert rows["teacher-onnx"]["disk_mb"] > allowed
    # docs/measurements/iot_camera.md
    measured = {"slim": 0.439, "slim-onnx": 0.580, "slim-static-int8": 0.259, "int8": 0.281}
    assert all(rows[name]["at_least"]["disk_mb"] < mb < rows[name]["disk_mb"] for name, mb in measured.items())
    assert rows["int8"]["at_least"]["disk_mb"] < allowed < rows["int8"]["disk_mb"]
    assert plan.ok, "pruning may well meet it"
    tight = Plan()
    iot_camera.recipe(tight, **options | {"budget": iot_camera.ImageBudget(disk_mb=0.05)})  # type: ignore[arg-type]
    assert not tight.ok


def test_signals_do_not_vanish_in_the_base(tmp_path: Path) -> None:
    import torch

    from hfcompress.architectures.models import load_classifier

    NewMobileNet(side=32)(tmp_path, task=ImageClassification())
    network = load_classifier(tmp_path).train()
    with torch.no_grad():
        pooled = network.mobilenet_v2(torch.randn(8, 3, 32, 32)).pooler_output
    assert float(pooled.std()) > 0.1


@pytest.mark.slow
def test_smoke_ends_in_one_table_of_pruned_and_quantized_models(tmp_path: Path) -> None:
    run = Run(tmp_path, "iot_camera", "smoke")
    report = iot_camera.recipe(run, **iot_camera.smoke(tmp_path))
    run.close()
    rows = {row["name"]: row for row in report["models"]}
    assert list(rows) == MODELS
    assert rows["slim"]["parameters"] < rows["teacher"]["parameters"]
    for name in ("teacher-static-int8", "slim-static-int8", "int8"):
        assert rows[name]["format"] == "onnx"
        assert integer_bytes(rows[name]["dtypes"]) > 0.5 * rows[name]["parameters"]
        assert require_integer_kernels(tmp_path / rows[name]["path"] / "model.onnx")["QLinearConv"] == 52
        assert not saturating_layers(tmp_path / rows[name]["path"] / "model.onnx"), "the same on every processor"
    limits = {verdict["limit"]: verdict for verdict in report["verdicts"]}
    assert set(limits) == {"disk_mb", "ram_mb", "peak_over_bare_mb", "drop:accuracy"}
    assert limits["peak_over_bare_mb"]["measured"] == pytest.approx(
        rows["int8"]["peak_rss_mb"] - rows["int8"]["bare_rss_mb"]
    )
    assert limits["disk_mb"]["ok"]
    logits = np.load(next(tmp_path.glob("measure-*")) / "predictions.npz")
    assert logits["int8"].shape == logits["teacher"].shape
    details = json.loads((tmp_path / "details.json").read_text())
    assert details["task"] == "image-classification"
    assert (tmp_path / "report.html").is_file()
    folder = tmp_path / rows["int8"]["path"]
    stock = np.array(json.loads(run_optimum(GRAY, folder)))
    assert np.allclose(stock, ImagePredictor(folder, threads=1).run(np.zeros((2, 3, 32, 32), np.float32)), atol=0.05)
    for deliver, name in (("tensorrt-onnx", "tensorrt"), ("litert", "litert")):
        require_delivered(tmp_path, deliver, name)


def require_delivered(folder: Path, deliver: str, name: str) -> None:
    """The format is measured in its runtime, held against the budget, shown, and would be pushed."""
    if deliver == "litert" and not has_litert():
        return
    form, run = FORMATS[deliver], Run(folder, "iot_camera", "smoke")
    report: dict[str, Any] = iot_camera.recipe(run, deliver=deliver, **iot_camera.smoke(folder))  # type: ignore[arg-type]
    run.close()
    row = report["models"][-1]
    assert (row["name"], row["format"], row["latency_ms"]["runtime"]) == (name, deliver, form.runtime)
    assert integer_bytes(row["dtypes"]) > 0.5 * row["parameters"]
    assert row["peak_rss_mb"] > row["bare_rss_mb"] > 0
    plan = Plan()
    iot_camera.recipe(plan, deliver=deliver, **iot_camera.smoke(folder))  # type: ignore[arg-type]
    (planned,) = [planned for planned in plan.rows if planned["name"] == name]
    assert 0.8 * planned["at_least"]["disk_mb"] < row["bytes"] / 1e6 < 1.2 * planned["disk_mb"]  # how much is pruned
    assert {verdict["candidate"] for verdict in report["verdicts"]} == {name}
    assert all(verdict["measured"] is not None for verdict in report["verdicts"])
    said = any("No engine was built here" in note for note in report["notes"])
    assert said == (deliver == "tensorrt-onnx")
    details = json.loads((folder / "details.json").read_text())
    places = delivered(folder, report, details)
    assert form.folder + form.weights.replace("*", "model") in places
    assert deliver in (folder / "report.html").read_text()
    assert form.usage(row["path"], "images").splitlines()[0] in (folder / "model_card.md").read_text()


def has_litert() -> bool:
    try:
        find_python(package="litert_torch")
    except UserError:
        return False
    return True


@pytest.mark.parametrize(("deliver", "name"), [("tensorrt-onnx", "tensorrt"), ("litert", "litert")])
def test_a_plan_holds_what_is_delivered_against_the_budget(
    deliver: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iot_camera, "find_python", lambda: None)
    plan = Plan()
    iot_camera.recipe(plan, deliver=deliver, **iot_camera.small(tmp_path))  # type: ignore[arg-type]
    assert [row["name"] for row in plan.rows] == [*MODELS, name]
    assert {verdict["candidate"] for verdict in plan.verdicts} == {name}
    rows = {row["name"]: row for row in plan.rows}
    assert rows[name]["format"] == deliver
    assert 0.5 < rows[name]["disk_mb"] / rows["slim-static-int8"]["disk_mb"] < 2


def test_litert_that_is_not_there_is_refused_before_any_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCOMPRESS_LITERT_PYTHON", "/bin/false")
    plan = Plan()
    with pytest.raises(UserError, match=r"^HFCOMPRESS_LITERT_PYTHON=/bin/false: it has no litert-torch\. [^\n]*$"):
        iot_camera.recipe(plan, deliver="litert", **iot_camera.small(tmp_path))
