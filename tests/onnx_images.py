"""Small image classifiers as ONNX, for the tests: exported from torch, quantized by onnxruntime."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Images(torch.nn.Module):
    """A network as a function of pixel_values alone."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found = self.network(pixel_values)
        return found.logits if hasattr(found, "logits") else found


class Mixed(torch.nn.Module):
    """Every operation that the planner knows: grouped and dense convolutions, ReLU6, a pool, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pool = torch.nn.MaxPool2d(3, 2, 1)
        self.grouped = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.nn.functional.relu6(4 * self.stem(x)))
        x = x + self.depthwise(torch.relu(self.grouped(x)))
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def mobilenet(resolution: int = 32, width: float = 0.35, labels: int = 10) -> Any:
    """A MobileNetV2 of random weights that do not vanish on the way."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    config = MobileNetV2Config(image_size=resolution, depth_multiplier=width, num_labels=labels)
    network = MobileNetV2ForImageClassification(config)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
        elif parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def images(count: int, resolution: int = 32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, resolution, resolution)).astype(np.float32)


def export(network: torch.nn.Module, folder: Path, resolution: int = 32) -> Path:
    """model.onnx in fp32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Images(network).eval(),
            (torch.from_numpy(images(2, resolution)),),
            str(folder / "model.onnx"),
            input_names=["pixel_values"],
            output_names=["logits"],
            opset_version=18,
            dynamo=False,
            dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        )
    return folder / "model.onnx"


class Calibration(CalibrationDataReader):
    def __init__(self, batches: Iterator[np.ndarray]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixel_values": batch}


def quantize(model: Path, out: Path, resolution: int = 32, symmetric: bool = False) -> Path:
    """A static int8 QDQ model, per channel, as onnxruntime makes it."""
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(model), str(prepared))
    batches = iter(np.split(images(8, resolution), 8))
    quantize_static(
        str(prepared),
        str(out),
        Calibration(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric},
    )
    return out
