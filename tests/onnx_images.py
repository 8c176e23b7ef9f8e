"""Small image classifiers as ONNX, for the tests: exported from torch, quantized by onnxruntime."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from transformers import PretrainedConfig

from hfcompress.formats.onnx_images import export_images
from hfcompress.formats.tensorrt import static_qdq


class Mixed(torch.nn.Module):
    """Every operation that the planner knows: grouped and dense convolutions, ReLU6, a pool, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig(num_channels=3)
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pool = torch.nn.MaxPool2d(3, 2, 1)
        self.grouped = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        x = self.pool(torch.nn.functional.relu6(4 * self.stem(pixel_values)))
        x = x + self.depthwise(torch.relu(self.grouped(x)))
        logits = self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return SimpleNamespace(logits=logits)


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


def export(network: Any, folder: Path, resolution: int = 32) -> Path:
    """model.onnx in fp32."""
    export_images(network, folder, (resolution, resolution))
    return folder / "model.onnx"


def quantize(model: Path, out: Path, resolution: int = 32, symmetric: bool = False) -> Path:
    """A static int8 QDQ model, per channel, as onnxruntime makes it by itself."""
    batches = np.split(images(8, resolution), 8)
    found = static_qdq(model, batches, symmetric=symmetric, extra_options={"ActivationSymmetric": symmetric})
    onnx.save(found, str(out))
    return out
