"""Small image classifiers and their processors, for tests."""

from pathlib import Path

import torch
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor


def processor(side: int) -> MobileNetV2ImageProcessor:
    """Pixels in [-1, 1], [3, side, side]."""
    return MobileNetV2ImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def write_mobilenet(folder: Path, labels: list[str], side: int = 32, width: float = 0.35) -> Path:
    """A MobileNetV2 of random weights with its processor."""
    torch.manual_seed(0)
    config = MobileNetV2Config(
        image_size=side,
        depth_multiplier=width,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    MobileNetV2ForImageClassification(config).save_pretrained(folder)
    processor(side).save_pretrained(folder)
    return folder
