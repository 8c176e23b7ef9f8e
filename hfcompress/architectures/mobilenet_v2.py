"""MobileNetV2 (Sandler et al. 2018)."""

from collections.abc import Mapping
from typing import Any

from hfcompress.architectures.image import Block, Conv, ImageArchitecture, Part

# Table 2: channels after the stem and after each block, and the strides of the blocks.
CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
BODY = "mobilenet_v2"


def parts(config: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the convolutions of MobileNetV2ForImageClassification."""

    def wide(channels: float) -> int:
        return divisible(round(channels * config["depth_multiplier"]), config)

    first, channels, stem = wide(32), [wide(channels) for channels in CHANNELS], f"{BODY}.conv_stem"
    found: list[Part] = [Conv(f"{stem}.first_conv", config["num_channels"], first, 3, 2, activation="relu6")]
    if not config["first_layer_is_expansion"]:
        found.append(Conv(f"{stem}.expand_1x1", first, first, activation="relu6"))
    found += [
        Conv(f"{stem}.conv_3x3", first, first, 3, groups=first, activation="relu6"),
        Conv(f"{stem}.reduce_1x1", first, channels[0]),
    ]
    reached = 2  # the stride so far
    for i, stride in enumerate(STRIDES):
        stride = 1 if reached == config["output_stride"] else stride  # dilated from there on
        reached *= stride
        name, inputs, outputs = f"{BODY}.layer.{i}", channels[i], channels[i + 1]
        inner = divisible(round(inputs * config["expand_ratio"]), config)
        convs = (
            Conv(f"{name}.expand_1x1", inputs, inner, activation="relu6"),
            Conv(f"{name}.conv_3x3", inner, inner, 3, stride, inner, activation="relu6"),
            Conv(f"{name}.reduce_1x1", inner, outputs),
        )
        found.append(Block(name, convs, residual=stride == 1 and inputs == outputs))
    last = 1280 if config["finegrained_output"] and config["depth_multiplier"] < 1 else wide(1280)
    return (*found, Conv(f"{BODY}.conv_1x1", channels[-1], last, activation="relu6"))


def divisible(channels: int, config: Mapping[str, Any]) -> int:
    """Return the nearest width that the divisor allows, not below nine tenths of what is asked for."""
    step = config["depth_divisible_by"]
    found = max(config["min_depth"] or step, int(channels + step / 2) // step * step)
    return int(found + step if found < 0.9 * channels else found)


MOBILENET_V2 = ImageArchitecture(
    model_types=("mobilenet_v2",),
    body=BODY,
    classifier="classifier",
    defaults={
        "num_channels": 3, "image_size": 224, "depth_multiplier": 1.0, "depth_divisible_by": 8, "min_depth": 8,
        "expand_ratio": 6.0, "output_stride": 32, "first_layer_is_expansion": True, "finegrained_output": True,
        "hidden_act": "relu6", "tf_padding": True, "classifier_dropout_prob": 0.8, "initializer_range": 0.02,
        "layer_norm_eps": 0.001, "semantic_loss_ignore_index": 255,
    },
    parts=parts,
    config_changes=lambda network: None,  # all widths follow from one multiplier
    smallest={"depth_multiplier": 0.1, "finegrained_output": False},
    on_chip=True,
)  # fmt: skip
