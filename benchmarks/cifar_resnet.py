"""ResNet-20 and ResNet-56 for CIFAR-10 (He et al. 2015) as a plain torch module, and the images they were trained for.

Shortcuts are option A: every second pixel, padded with channels of zeros. Weights and images come from the folders
resnet_cifar10 and cifar10 of the real data.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAD = 4  # pixels that a training image is moved by at most


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = 0 if inputs == outputs else outputs // 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """pixel_values [batch, 3, 32, 32] -> logits [batch, 10]; 6 x blocks + 2 layers with weights."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width = 16
        for stage, outputs in enumerate((16, 32, 64), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            layers = [Block(width if i == 0 else outputs, outputs, stride) for i, stride in enumerate(strides)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            width = outputs
        self.linear = nn.Linear(64, 10)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.with_states(pixel_values)[0]

    def with_states(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and what each block gives: [batch, 16 to 64, 32 to 8, 32 to 8]."""
        x = pixel_values.contiguous(memory_format=torch.channels_last)  # trains a tenth faster on CPUs
        x = F.relu(self.bn1(self.conv1(x)))
        states = []
        for stage in (1, 2, 3):
            for block in self.get_submodule(f"layer{stage}").children():
                x = block(x)
                states.append(x)
        return self.linear(x.mean(dim=(2, 3))), states


def trained(data: Path, depth: int) -> CifarResNet:
    """The trained network of 20 or 56 layers, in eval mode."""
    network = CifarResNet((depth - 2) // 6)
    network.load_state_dict(load_file(data / "resnet_cifar10" / f"resnet{depth}.safetensors"))
    return network.eval()


def images(data: Path, split: str, first: int | None = None) -> tuple[Tensor, Tensor]:
    """Pixels [images, 3, 32, 32], normalized, and labels [images], of "train" or "test"."""
    from datasets import Dataset

    rows: Any = Dataset.from_parquet(str(data / "cifar10" / f"{split}.parquet")).with_format("torch")
    rows = rows.select(range(first)) if first else rows
    pixels = torch.stack(list(rows["image"])).float() / 255
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (pixels - mean) / std, torch.as_tensor(rows["label"])


class Examples(torch.utils.data.Dataset[dict[str, Any]]):
    """What the Trainer reads; `varied` shifts each image by up to PAD pixels and mirrors every second one."""

    def __init__(self, pixels: Tensor, labels: Tensor, varied: bool) -> None:
        self.labels, self.varied = labels, varied
        self.pixels = F.pad(pixels, (PAD,) * 4) if varied else pixels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.pixels[index]
        if self.varied:
            top, left, mirror = (int(torch.randint(n, ())) for n in (2 * PAD + 1, 2 * PAD + 1, 2))
            pixels = pixels[:, top : top + 32, left : left + 32]
            pixels = pixels.flip(-1) if mirror else pixels
        return {"pixel_values": pixels, "labels": self.labels[index], "index": index}
