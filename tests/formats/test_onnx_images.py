"""Image classifiers as ONNX in fp32 and static int8: the same answers, integer kernels, int8 weights."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from hfcompress.architectures.models import load_classifier
from hfcompress.errors import UserError
from hfcompress.formats.onnx_image_stages import ExportImages, StaticInt8Images, calibration_rows, require_int8_weights
from hfcompress.formats.onnx_images import require_integer_kernels, require_parity
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.formats.size import integer_bytes, sizes
from hfcompress.formats.tensorrt import static_qdq
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.image_data import pixel_values
from tests.image_models import processor
from tests.onnx_images import mobilenet

TASK = ImageClassification(max_train_examples=100)
SIDE = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MobileNetV2 whose batch norms have something to say."""
    folder = tmp_path_factory.mktemp("onnx-images") / "model"
    network = mobilenet(SIDE)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.7, 1.3)
    network.save_pretrained(folder)
    processor(SIDE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model: Path) -> tuple[Path, dict[str, Any]]:
    out = model.parent / "onnx"
    out.mkdir()
    return out, ExportImages()(out, model=model, task=TASK)


@pytest.fixture(scope="module")
def quantized(exported: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    out = exported[0].parent / "int8"
    out.mkdir()
    return out, StaticInt8Images(calibration_images=24)(out, model=exported[0], task=TASK)


def test_the_export_answers_as_torch_does_for_any_number_of_images(
    model: Path, exported: tuple[Path, dict[str, Any]]
) -> None:
    folder, measured = exported
    images = TASK.data.images("test")[:5]
    before, after = (ImagePredictor(place).logits(images) for place in (model, folder))
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    assert 0 <= measured["largest_logit_difference"] <= 1e-3
    assert len(ImagePredictor(folder).logits(images[:1])) == 1


def test_batch_norms_are_in_the_convolutions(exported: tuple[Path, dict[str, Any]]) -> None:
    kinds = Counter(node.op_type for node in onnx.load(exported[0] / "model.onnx").graph.node)
    assert kinds["Conv"] == 52
    assert kinds["BatchNormalization"] == 0


def test_an_export_of_another_model_is_seen(model: Path, exported: tuple[Path, dict[str, Any]]) -> None:
    network: Any = load_classifier(model)
    pixels = pixel_values(processor(SIDE), TASK.data.inputs("validation", 4))
    require_parity(network, exported[0] / "model.onnx", pixels)
    with torch.no_grad():
        network.mobilenet_v2.layer[3].expand_1x1.normalization.running_mean += 0.1
    with pytest.raises(RuntimeError, match="differ"):
        require_parity(network, exported[0] / "model.onnx", pixels)


def test_the_int8_graph_runs_in_integer_kernels_from_int8_weights(
    model: Path, exported: tuple[Path, dict[str, Any]], quantized: tuple[Path, dict[str, Any]]
) -> None:
    folder, measured = quantized
    kernels = measured["kernels"]
    assert kernels["QLinearConv"] == 52
    assert kernels["QGemm"] == 1
    assert kernels["QLinearAdd"] == 10, "the residual sums"
    assert kernels["QLinearGlobalAveragePool"] == 1
    dtypes = sizes(folder)["dtypes"]
    weights = sum(p.numel() for p in load_classifier(model).parameters() if p.ndim > 1)
    assert weights <= integer_bytes(dtypes) < 1.1 * weights
    assert dtypes["float32"] < 0.05 * 4 * weights, "scales alone"
    images = TASK.data.images("test")[:20]
    fp32, int8 = (ImagePredictor(place).logits(images) for place in (exported[0], folder))
    assert np.abs(fp32 - int8).mean() < 0.1 * np.abs(fp32).max()


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_ranges_by_histogram_are_narrower_and_give_the_same_kernels(
    tmp_path: Path,
    exported: tuple[Path, dict[str, Any]],
    quantized: tuple[Path, dict[str, Any]],
    calibration: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = StaticInt8Images(calibration_images=24, calibration=calibration)
    assert stage(tmp_path, model=exported[0], task=TASK)["kernels"] == quantized[1]["kernels"]
    assert not capsys.readouterr().out, "what the quantizer prints is no data of a command"
    extremes, found = (activation_scales(folder / "model.onnx") for folder in (quantized[0], tmp_path))
    shares = np.array([found[name] / extremes[name] for name in extremes])
    assert shares.max() < 1.02
    assert shares.min() < 0.97, "what lies outermost is cut off"
    images = TASK.data.images("test")[:20]
    fp32, int8 = (ImagePredictor(place).logits(images) for place in (exported[0], tmp_path))
    assert np.abs(fp32 - int8).mean() < 0.1 * np.abs(fp32).max()


def test_a_histogram_of_one_batch_at_a_time_is_that_of_all(exported: tuple[Path, dict[str, Any]]) -> None:
    """Also where a later batch has the larger values, and widens it."""
    pixels = np.random.default_rng(0).normal(size=(12, 3, SIDE, SIDE)).astype(np.float32)
    pixels *= np.linspace(0.5, 1.5, 12, dtype=np.float32)[:, None, None, None]
    parts, whole = (
        activation_scales(static_qdq(exported[0] / "model.onnx", batches, symmetric=False, calibration="percentile"))
        for batches in (np.split(pixels, 4), [pixels])
    )
    assert parts.keys() == whole.keys()
    assert all(parts[name] == pytest.approx(whole[name], rel=0.05) for name in whole)


def activation_scales(model: Path | onnx.ModelProto) -> dict[str, float]:
    """The scale of each quantized activation."""
    graph = (onnx.load(model) if isinstance(model, Path) else model).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {n.input[0]: float(values[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"}


def test_convolutions_left_in_float_are_seen(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    pixels = pixel_values(processor(SIDE), TASK.data.inputs("train", 8))
    found = static_qdq(exported[0] / "model.onnx", [pixels], symmetric=False, op_types_to_quantize=["Gemm"])
    onnx.save(found, str(tmp_path / "model.onnx"))
    with pytest.raises(RuntimeError, match="float"):
        require_integer_kernels(tmp_path / "model.onnx")
    with pytest.raises(RuntimeError, match="not stored as int8"):
        require_int8_weights(found)


def test_a_float_copy_of_a_weight_is_seen(quantized: tuple[Path, dict[str, Any]]) -> None:
    found = onnx.load(quantized[0] / "model.onnx")
    require_int8_weights(found)
    found.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "copy"))
    with pytest.raises(RuntimeError, match="1 weights in float, such as copy"):
        require_int8_weights(found)


def test_calibration_sees_every_class_in_turn_and_refuses_to_see_one_alone() -> None:
    labels = [0] * 90 + [1] * 7 + [2] * 3
    rows = calibration_rows(labels, 12, seed=0)
    assert len(set(rows)) == 12
    assert Counter(labels[row] for row in rows) == {0: 5, 1: 4, 2: 3}
    assert calibration_rows(labels, 12, seed=1) != rows
    assert len(calibration_rows(labels, 500, seed=0)) == 100
    with pytest.raises(UserError, match=r"^calibration_images 1: .* one class only.* 3 or more"):
        calibration_rows(labels, 1, seed=0)
    with pytest.raises(UserError, match="one class only"):
        calibration_rows([4] * 50, 30, seed=0)
    with pytest.raises(UserError, match=r"^calibration_images 0: must be at least 1$"):
        StaticInt8Images(calibration_images=0)
