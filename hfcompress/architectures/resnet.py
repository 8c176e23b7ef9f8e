"""ResNet (He et al. 2016), of two or three convolutions a block."""

from collections.abc import Mapping
from typing import Any

from hfcompress.architectures.image import Block, Conv, ImageArchitecture, MaxPool, Part

REDUCTION = 4
BODY = "resnet"


def parts(config: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the convolutions of ResNetForImageClassification."""
    widths = [config["embedding_size"], *config["hidden_sizes"]]
    found: list[Part] = [
        Conv(f"{BODY}.embedder.embedder", config["num_channels"], widths[0], 7, 2, activation="relu"),
        MaxPool(3, 2),
    ]
    for stage, depth in enumerate(config["depths"]):
        for i in range(depth):
            inputs, outputs = widths[stage + (i > 0)], widths[stage + 1]
            stride = 2 if i == 0 and (stage > 0 or config["downsample_in_first_stage"]) else 1
            found.append(block(f"{BODY}.encoder.stages.{stage}.layers.{i}", inputs, outputs, stride, config))
    return tuple(found)


def block(name: str, inputs: int, outputs: int, stride: int, config: Mapping[str, Any]) -> Block:
    """Return two convolutions, or three around a narrow middle; and one on the shortcut where shapes differ."""
    convs: tuple[Conv, ...]
    if config["layer_type"] == "bottleneck":
        middle = outputs // REDUCTION
        strides = (stride, 1) if config["downsample_in_bottleneck"] else (1, stride)
        convs = (
            Conv(f"{name}.layer.0", inputs, middle, 1, strides[0], activation="relu"),
            Conv(f"{name}.layer.1", middle, middle, 3, strides[1], activation="relu"),
            Conv(f"{name}.layer.2", middle, outputs),
        )
    else:
        convs = (
            Conv(f"{name}.layer.0", inputs, outputs, 3, stride, activation="relu"),
            Conv(f"{name}.layer.1", outputs, outputs, 3),
        )
    differs = inputs != outputs or stride != 1
    shortcut = Conv(f"{name}.shortcut", inputs, outputs, 1, stride) if differs else None
    return Block(name, convs, residual=True, shortcut=shortcut, activation="relu")


def config_changes(network: Any) -> dict[str, Any]:
    """Return the widths of the stem and of the stages; those inside a block follow from them."""
    stages = network.resnet.encoder.stages
    return {
        "embedding_size": network.resnet.embedder.embedder.convolution.out_channels,
        "hidden_sizes": [stage.layers[-1].layer[-1].convolution.out_channels for stage in stages],
    }


RESNET = ImageArchitecture(
    model_types=("resnet",),
    body=BODY,
    classifier="classifier.1",
    defaults={
        "num_channels": 3, "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3],
        "layer_type": "bottleneck", "hidden_act": "relu", "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
    parts=parts,
    config_changes=config_changes,
    smallest={"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]},
)  # fmt: skip
