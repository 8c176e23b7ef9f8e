"""Quantization-aware training of image classifiers: exact int8 kernels, and graphs that only claim them fail."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from hfcompress.architectures.models import load_classifier
from hfcompress.compress.quantize import qat_images
from hfcompress.compress.quantize.qat_images import QATImages, calibrate, fold_batch_norms, prepare, write_int8
from hfcompress.errors import UserError
from hfcompress.formats.onnx_images import export_images, require_integer_kernels
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.formats.size import integer_bytes, sizes
from hfcompress.ops.fake_quant import FakeQuantConv2d, fake_quant_rows, integer_rows, row_scales
from hfcompress.tasks.image_classification import ImageClassification
from tests.image_models import write_mobilenet

OPTIONS = QATImages(max_steps=6, learning_rate=1e-4, per_device_train_batch_size=32, bf16="no", shift=0.0)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    image_classifier: tuple[Path, dict[str, Any]],
    image_task: ImageClassification,
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("qat") / "int8"
    out.mkdir()
    return out, OPTIONS(out, model=image_classifier[0], teacher=image_classifier[0], task=image_task)


def test_the_integers_of_a_convolution_are_what_it_computed_with() -> None:
    weight = torch.tensor([[[[1.0, -2.0]]], [[[0.5, 0.1]]]])
    assert torch.allclose(row_scales(weight), torch.tensor([2 / 127, 0.5 / 127]))
    assert integer_rows(weight).flatten().tolist() == [64, -127, 127, 25]  # 63.5 to even, 25.4 down
    restored = integer_rows(weight) * row_scales(weight)[:, None, None, None]
    assert torch.allclose(fake_quant_rows(weight), restored)
    layer = torch.nn.Conv2d(1, 2, (1, 2), bias=False)
    layer.weight.data = weight
    x = torch.rand(1, 1, 3, 4)
    assert torch.allclose(FakeQuantConv2d(layer)(x), torch.nn.functional.conv2d(x, restored))


def test_folding_batch_norms_changes_nothing(image_classifier: tuple[Path, dict[str, Any]]) -> None:
    network, pixels = load_classifier(image_classifier[0]), torch.randn(2, 3, 16, 16)
    before = network(pixels).logits
    assert len(fold_batch_norms(network)) == 52
    assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert torch.allclose(network(pixels).logits, before, atol=1e-4)


def test_every_layer_runs_in_integer_kernels_and_answers_like_the_teacher(
    made: tuple[Path, dict[str, Any]], image_classifier: tuple[Path, dict[str, Any]], image_task: ImageClassification
) -> None:
    out, measured = made
    kernels = measured["kernels"]
    assert (kernels["QLinearConv"], kernels["QLinearAdd"], kernels["QGemm"]) == (52, 10, 1)
    assert kernels["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Gemm", "Clip", "Pad"} & set(kernels)
    dtypes = sizes(out)["dtypes"]
    assert integer_bytes(dtypes) > 5 * dtypes["float32"], "scales alone are left in float"
    images = image_task.data.images("test")
    labels = np.array(image_task.data.label_ids("test"))
    int8, whole = ImagePredictor(out, 1).logits(images), ImagePredictor(image_classifier[0], 1).logits(images)
    assert (int8.argmax(1) == labels).mean() > (whole.argmax(1) == labels).mean() - 0.05


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(
    tmp_path: Path,
    made: tuple[Path, dict[str, Any]],
    image_classifier: tuple[Path, dict[str, Any]],
    image_task: ImageClassification,
) -> None:
    OPTIONS(tmp_path, model=image_classifier[0], teacher=image_classifier[0], task=image_task)
    assert (tmp_path / "model.onnx").read_bytes() == (made[0] / "model.onnx").read_bytes()


def test_a_resnet_with_a_max_pool_and_projections_is_all_integer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=3)
    network = ResNetForImageClassification(config).eval()
    prepare(network)
    pixels = torch.randn(8, 3, 32, 32)
    calibrate(network, [{"pixel_values": row, "labels": 0} for row in pixels], seed=0)
    write_int8(network, tmp_path, (32, 32))
    kernels = require_integer_kernels(tmp_path / "model.onnx")
    assert (kernels["QLinearConv"], kernels["QLinearAdd"], kernels["QGemm"]) == (8, 3, 1)
    assert "Relu" not in kernels


def test_a_model_that_is_not_known_is_refused() -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16)
    with pytest.raises(UserError, match="vit cannot be trained in int8 yet"):
        prepare(ViTForImageClassification(config))
    with pytest.raises(UserError, match="not all of them 0"):
        QATImages(logits_weight=0.0)


def test_a_teacher_of_labels_in_another_order_is_refused(
    tmp_path: Path, image_base: Path, image_task: ImageClassification
) -> None:
    other = write_mobilenet(tmp_path / "other", image_task.data.labels[::-1], side=16)
    with pytest.raises(UserError, match="or the same in another order"):
        OPTIONS(tmp_path / "int8", model=image_base, teacher=other, task=image_task)


def test_a_graph_left_in_float_fails(image_base: Path, tmp_path: Path) -> None:
    export_images(load_classifier(image_base), tmp_path, (16, 16))
    with pytest.raises(RuntimeError, match="run in float"):
        require_integer_kernels(tmp_path / "model.onnx")


def test_weights_of_another_layer_fail_the_stage(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    image_classifier: tuple[Path, dict[str, Any]],
    image_task: ImageClassification,
) -> None:
    def broken(network: Any, out: Path, size: tuple[int, int]) -> int:
        count = write_int8(network, out, size)
        model = onnx.load(str(out / "model.onnx"))
        weights = [t for t in model.graph.initializer if t.name.endswith("weight_uint8") and t.dims[0] == 10]
        for tensor in weights:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.roll(array, 1, axis=0), tensor.name))
        assert weights
        onnx.save(model, str(out / "model.onnx"))
        return count

    monkeypatch.setattr(qat_images, "write_int8", broken)
    with pytest.raises(RuntimeError, match="the exported graph's logits differ"):
        OPTIONS(tmp_path, model=image_classifier[0], teacher=image_classifier[0], task=image_task)
