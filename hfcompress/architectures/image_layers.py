"""The layers of transformers' MobileNetV2 and ResNet, worked out from a config.json: no torch, no weights.

Every convolution of both has an odd kernel and is padded so that it reads each stride once: its output has
ceil(side / stride) pixels, with TensorFlow's padding as with torch's. Tests compare all this with the modules.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hfcompress.architectures.layers import Layer

Layers = dict[str, Layer]  # by the name of the module, in the order of their use

# What a config.json does not say, as transformers 4.57 has it.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {
        "num_channels": 3, "image_size": 224, "depth_multiplier": 1.0, "depth_divisible_by": 8, "min_depth": 8,
        "expand_ratio": 6.0, "output_stride": 32, "first_layer_is_expansion": True, "finegrained_output": True,
        "hidden_act": "relu6", "tf_padding": True, "classifier_dropout_prob": 0.8, "initializer_range": 0.02,
        "layer_norm_eps": 0.001, "semantic_loss_ignore_index": 255,
    },
    "resnet": {
        "num_channels": 3, "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3],
        "layer_type": "bottleneck", "hidden_act": "relu", "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
}  # fmt: skip
# Sandler et al. 2018, table 2: channels after the stem and after each block, and the strides of the blocks.
CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
RESNET_REDUCTION = 4


def layers_of_config(config: dict[str, Any], size: tuple[int, int]) -> Layers:
    """Convolutions, batch norms and the classifier of a MobileNetV2 or a ResNet.

    Args:
        config: its config.json; size: height and width of its image.

    Raises:
        KeyError: another kind of model.
        ValueError: an image without pixels.
    """
    if min(size) < 1:
        raise ValueError("an image has at least one pixel")
    kinds: dict[str, Callable[[Walk, dict[str, Any]], None]] = {"mobilenet_v2": mobilenet_v2, "resnet": resnet}
    walk = Walk(size)
    kinds[config["model_type"]](walk, with_defaults(config))
    return walk.layers


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what transformers adds to it."""
    return DEFAULTS.get(config["model_type"], {}) | config


class Walk:
    """Goes along a network and writes its layers down; `size` is that of the image at this point."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size, self.layers = size, Layers()

    def conv(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        """A convolution without bias and its batch norm."""
        read = self.size
        self.pool(stride)
        sides, strides, positions = (kernel, kernel), (stride, stride), self.size[0] * self.size[1]
        self.layers[f"{name}.convolution"] = Layer(
            "convolution", inputs, outputs, False, groups, sides, strides, read, positions
        )
        self.layers[f"{name}.normalization"] = Layer("norm", outputs, outputs)

    def pool(self, stride: int) -> None:
        height, width = self.size
        self.size = -(-height // stride), -(-width // stride)

    def classify(self, name: str, inputs: int, config: dict[str, Any]) -> None:
        labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
        self.layers[name] = Layer("linear", inputs, labels, bias=True)


def mobilenet_v2(walk: Walk, config: dict[str, Any]) -> None:
    """As MobileNetV2ForImageClassification is built."""

    def wide(channels: float) -> int:
        return divisible(round(channels * config["depth_multiplier"]), config)

    body, first, channels = "mobilenet_v2", wide(32), [wide(channels) for channels in CHANNELS]
    walk.conv(f"{body}.conv_stem.first_conv", config["num_channels"], first, 3, 2)
    if not config["first_layer_is_expansion"]:
        walk.conv(f"{body}.conv_stem.expand_1x1", first, first, 1)
    walk.conv(f"{body}.conv_stem.conv_3x3", first, first, 3, groups=first)
    walk.conv(f"{body}.conv_stem.reduce_1x1", first, channels[0], 1)
    reached = 2  # the stride so far
    for i, stride in enumerate(STRIDES):
        stride = 1 if reached == config["output_stride"] else stride  # dilated from there on
        reached *= stride
        inner = divisible(round(channels[i] * config["expand_ratio"]), config)
        walk.conv(f"{body}.layer.{i}.expand_1x1", channels[i], inner, 1)
        walk.conv(f"{body}.layer.{i}.conv_3x3", inner, inner, 3, stride, inner)
        walk.conv(f"{body}.layer.{i}.reduce_1x1", inner, channels[i + 1], 1)
    last = 1280 if config["finegrained_output"] and config["depth_multiplier"] < 1 else wide(1280)
    walk.conv(f"{body}.conv_1x1", channels[-1], last, 1)
    walk.classify("classifier", last, config)


def divisible(channels: int, config: dict[str, Any]) -> int:
    """The nearest width that the divisor allows, not below nine tenths of what is asked for."""
    step = config["depth_divisible_by"]
    found = max(config["min_depth"] or step, int(channels + step / 2) // step * step)
    return int(found + step if found < 0.9 * channels else found)


def resnet(walk: Walk, config: dict[str, Any]) -> None:
    """As ResNetForImageClassification is built."""
    widths = [config["embedding_size"], *config["hidden_sizes"]]
    walk.conv("resnet.embedder.embedder", config["num_channels"], widths[0], 7, 2)
    walk.pool(2)
    for stage, depth in enumerate(config["depths"]):
        for i in range(depth):
            inputs, outputs = widths[stage + (i > 0)], widths[stage + 1]
            stride = 2 if i == 0 and (stage > 0 or config["downsample_in_first_stage"]) else 1
            resnet_block(walk, f"resnet.encoder.stages.{stage}.layers.{i}", inputs, outputs, stride, config)
    walk.classify("classifier.1", widths[-1], config)


def resnet_block(walk: Walk, name: str, inputs: int, outputs: int, stride: int, config: dict[str, Any]) -> None:
    """Two convolutions, or three around a narrow middle; and one on the shortcut where shapes differ."""
    read = walk.size
    if config["layer_type"] == "bottleneck":
        middle = outputs // RESNET_REDUCTION
        strides = (stride, 1) if config["downsample_in_bottleneck"] else (1, stride)
        walk.conv(f"{name}.layer.0", inputs, middle, 1, strides[0])
        walk.conv(f"{name}.layer.1", middle, middle, 3, strides[1])
        walk.conv(f"{name}.layer.2", middle, outputs, 1)
    else:
        walk.conv(f"{name}.layer.0", inputs, outputs, 3, stride)
        walk.conv(f"{name}.layer.1", outputs, outputs, 3)
    if inputs != outputs or stride != 1:
        walk.size = read
        walk.conv(f"{name}.shortcut", inputs, outputs, 1, stride)


def resized(layers: Layers, edits: list[dict[str, Any]]) -> Layers:
    """The layers with the widths that surgery.json's `resize` edits give them (see architectures/patches.py).

    Raises:
        KeyError: an edit names a layer that is not there, or no size.
        TypeError: a size is no whole number above 0.
    """
    found = dict(layers)
    for edit in edits:
        to: dict[str, Any] = edit["to"]
        if not to or not all(isinstance(value, int) and value > 0 for value in to.values()):
            raise TypeError(f"{edit['module']}: {to} are no sizes")
        layer = found[edit["module"]]
        inputs = to.get("in_channels", to.get("in_features", to.get("num_features", layer.inputs)))
        outputs = to.get("out_channels", to.get("out_features", to.get("num_features", layer.outputs)))
        found[edit["module"]] = replace(layer, inputs=inputs, outputs=outputs, groups=to.get("groups", layer.groups))
    return found


def narrowed(layers: Layers, share: float, round_to: int = 1) -> Layers:
    """The layers with this share of their channels each, in multiples; the image's and the classes stay."""

    def left(channels: int) -> int:
        return min(channels, max(1, round(share * channels / round_to)) * round_to)

    names = [name for name, layer in layers.items() if layer.kind != "norm"]
    found = {}
    for name, layer in layers.items():
        inputs = layer.inputs if name == names[0] else left(layer.inputs)
        outputs = layer.outputs if name == names[-1] else left(layer.outputs)
        found[name] = replace(layer, inputs=inputs, outputs=outputs, groups=inputs if layer.groups > 1 else 1)
    return found
