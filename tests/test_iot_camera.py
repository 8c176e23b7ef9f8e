"""iot_camera: the chain from a fine-tuned MobileNetV2 to int8 in one table, and the camera's limits."""

import json
from pathlib import Path

import numpy as np
import pytest

from hfcompress.evaluation.image_predictor import ImagePredictor
from hfcompress.image_onnx import require_integer_kernels
from hfcompress.plan import Plan
from hfcompress.run import Run
from recipes import iot_camera

MODELS = ["teacher", "teacher-onnx", "teacher-static-int8", "slim", "slim-onnx", "slim-static-int8", "int8"]


def test_small_scales_plan_holds_its_limits_and_a_tenth_of_it_does_not(tmp_path: Path) -> None:
    options = iot_camera.small(tmp_path)
    plan = Plan()
    iot_camera.recipe(plan, **options)  # type: ignore[arg-type]
    assert [row["name"] for row in plan.rows] == MODELS
    sizes = {row["name"]: row["disk_mb"] for row in plan.rows}
    assert sizes["teacher-onnx"] > options["budget"].disk_mb > sizes["int8"]
    assert plan.ok
    tight = Plan()
    iot_camera.recipe(tight, **options | {"budget": iot_camera.ImageBudget(disk_mb=0.05)})  # type: ignore[arg-type]
    assert not tight.ok


def test_the_base_is_written_once_and_its_signals_do_not_vanish(tmp_path: Path) -> None:
    import torch

    from hfcompress.models import load_classifier

    folder = iot_camera.write_base(tmp_path / "base", side=32)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    iot_camera.write_base(folder, side=32)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    network = load_classifier(folder).train()
    with torch.no_grad():
        pooled = network.mobilenet_v2(torch.randn(8, 3, 32, 32)).pooler_output
    assert float(pooled.std()) > 0.1


@pytest.mark.slow
def test_smoke_ends_in_one_table_of_pruned_and_quantized_models(tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForImageClassification

    run = Run(tmp_path, "iot_camera", "smoke")
    report = iot_camera.recipe(run, **iot_camera.smoke(tmp_path))
    run.close()
    rows = {row["name"]: row for row in report["models"]}
    assert list(rows) == MODELS
    assert rows["slim"]["parameters"] < rows["teacher"]["parameters"]
    for name in ("teacher-static-int8", "slim-static-int8", "int8"):
        assert rows[name]["format"] == "onnx"
        assert rows[name]["dtypes"]["int8"] > 0.5 * rows[name]["parameters"]
        assert require_integer_kernels(tmp_path / rows[name]["path"] / "model.onnx")["QLinearConv"] == 52
    limits = {verdict["limit"]: verdict for verdict in report["verdicts"]}
    assert set(limits) == {"disk_mb", "ram_mb", "peak_over_bare_mb", "drop:accuracy"}
    assert limits["peak_over_bare_mb"]["measured"] == pytest.approx(
        rows["int8"]["peak_rss_mb"] - rows["int8"]["bare_rss_mb"]
    )
    assert limits["disk_mb"]["ok"]
    logits = np.load(next(tmp_path.glob("measure-*")) / "predictions.npz")
    assert logits["int8"].shape == logits["teacher"].shape
    details = json.loads((tmp_path / "details.json").read_text())
    assert details["kind"] == "images"
    assert (tmp_path / "report.html").is_file()
    folder = tmp_path / rows["int8"]["path"]
    pixels = np.zeros((2, 3, 32, 32), np.float32)
    stock = ORTModelForImageClassification.from_pretrained(folder)(pixel_values=pixels).logits
    assert np.allclose(stock, ImagePredictor(folder, threads=1).run(pixels), atol=0.05)
