"""Image classifiers of low-rank factors as ONNX: in fp32, in static int8 and trained in int8, each factor a kernel."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import hfcompress
from hfcompress.architectures.patches import read_edits
from hfcompress.compress.factorize.factorize import FactorizeImages
from hfcompress.compress.quantize.qat_images import QATImages
from hfcompress.formats.onnx_image_stages import ExportImages, StaticInt8Images
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.formats.size import integer_bytes, sizes
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.training.finetune_images import FinetuneImages
from hfcompress.training.new_images import NewResNet

TASK = ImageClassification(max_train_examples=400)
QUICK: dict[str, Any] = {"learning_rate": 3e-3, "bf16": "no", "saves_per_epoch": 1}
EDITS = {"svd": "low_rank_linear", "tucker2": "tucker2_conv", "cp": "cp_conv"}


def made(stage: Any, out: Path, **inputs: Any) -> dict[str, Any]:
    (out / "work").mkdir(parents=True)
    measured: dict[str, Any] = stage(out, task=TASK, **inputs)
    return measured


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factored-images")
    made(NewResNet(side=16, widths=(16, 32), blocks=1), folder / "base")
    made(FinetuneImages(num_train_epochs=4, **QUICK), folder / "trained", model=folder / "base")
    return folder / "trained"


def logits(folder: Path) -> Any:
    return ImagePredictor(folder, 1).logits(TASK.data.images("test"))


def require_integers(folder: Path, factored: Path, kernels: dict[str, int]) -> None:
    """Every factor runs in a kernel of its own, in integers, and the answers are those of the factored model."""
    layers = Counter(type(module) for module in hfcompress.load(factored).modules())
    assert kernels["QLinearConv"] == layers[nn.Conv2d]
    assert kernels["QGemm"] + kernels.get("QLinearMatMul", 0) == layers[nn.Linear]
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(kernels)
    dtypes = sizes(folder)["dtypes"]
    assert integer_bytes(dtypes) > dtypes["float32"], "scales alone are left in float"
    assert (logits(folder).argmax(1) == logits(factored).argmax(1)).mean() >= 0.9


@pytest.mark.parametrize("kind", ["svd", "tucker2", "cp"])
def test_a_factored_resnet_is_exported_calibrated_and_trained_in_int8(tmp_path: Path, resnet: Path, kind: Any) -> None:
    stage = FactorizeImages(keep_flops=0.6, kind=kind, max_steps=4, calibration_examples=32, **QUICK)
    factored = tmp_path / "factored"
    made(stage, factored, model=resnet, teacher=resnet)
    assert EDITS[kind] in {edit["edit"] for edit in read_edits(factored)}
    made(ExportImages(), tmp_path / "onnx", model=factored)
    assert np.abs(logits(tmp_path / "onnx") - logits(factored)).max() < 1e-3
    static = made(StaticInt8Images(calibration_images=64), tmp_path / "static", model=tmp_path / "onnx")
    require_integers(tmp_path / "static", factored, static["kernels"])
    qat = QATImages(max_steps=4, **(QUICK | {"learning_rate": 1e-4}))
    trained = made(qat, tmp_path / "qat", model=factored, teacher=factored)
    require_integers(tmp_path / "qat", factored, trained["kernels"])


@pytest.mark.slow
def test_a_factored_mobilenet_with_tensorflows_padding_is_trained_in_int8(
    tmp_path: Path, image_classifier: tuple[Path, dict[str, Any]]
) -> None:
    """The padding stands before the first factor of a convolution, and before the whole kernel alike."""
    model = image_classifier[0]
    stage = FactorizeImages(energy=0.995, kind="tucker2", max_steps=1, calibration_examples=32, **QUICK)
    made(stage, tmp_path / "factored", model=model, teacher=model)
    qat = QATImages(max_steps=1, **(QUICK | {"learning_rate": 1e-5}))
    measured = made(qat, tmp_path / "qat", model=tmp_path / "factored", teacher=tmp_path / "factored")
    require_integers(tmp_path / "qat", tmp_path / "factored", measured["kernels"])
