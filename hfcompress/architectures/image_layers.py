"""The layers of the image architectures of the table, worked out from a config.json: no torch, no weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hfcompress.architectures import IMAGE_MODELS
from hfcompress.architectures.image import Block, Conv, MaxPool, Part
from hfcompress.architectures.layers import Layer


class Layers(dict[str, Layer]):
    """Layers by the name of the module, in the order of their use; and the parts that they are of."""

    def __init__(self, layers: Mapping[str, Layer] | None = None, parts: tuple[Part, ...] = ()) -> None:
        super().__init__(layers or {})
        self.parts = parts


def layers_of_config(config: dict[str, Any], size: tuple[int, int]) -> Layers:
    """Convolutions, batch norms and the classifier of an image model of the table.

    Args:
        config: its config.json; size: height and width of its image.

    Raises:
        KeyError: another kind of model.
        ValueError: an image without pixels.
    """
    if min(size) < 1:
        raise ValueError("an image has at least one pixel")
    architecture, config = IMAGE_MODELS[config["model_type"]], with_defaults(config)
    parts = architecture.parts(config)
    walk = Walk(size, Layers(parts=parts))
    for part in parts:
        walk.go_through(part)
    labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    walk.layers[architecture.classifier] = Layer("linear", walk.channels, labels, bias=True)
    return walk.layers


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what transformers adds to it."""
    found = IMAGE_MODELS.get(config["model_type"])
    return config if found is None else found.with_defaults(config)


class Walk:
    """Goes along a network and writes its layers down; `size` and `channels` are of the image at this point."""

    def __init__(self, size: tuple[int, int], layers: Layers) -> None:
        self.size, self.layers, self.channels = size, layers, 0

    def go_through(self, part: Part) -> None:
        """Write the layers of a part down."""
        if isinstance(part, Conv):
            self.conv(part)
        elif isinstance(part, MaxPool):
            self.pool(part.stride)
        else:
            self.block(part)

    def conv(self, conv: Conv) -> None:
        """A convolution without bias and its batch norm."""
        read = self.size
        self.pool(conv.stride)
        sides, strides, positions = (conv.kernel,) * 2, (conv.stride,) * 2, self.size[0] * self.size[1]
        self.layers[f"{conv.name}.convolution"] = Layer(
            "convolution", conv.inputs, conv.outputs, False, conv.groups, sides, strides, read, positions
        )
        self.layers[f"{conv.name}.normalization"] = Layer("norm", conv.outputs, conv.outputs)
        self.channels = conv.outputs

    def block(self, block: Block) -> None:
        read = self.size
        for conv in block.convs:
            self.conv(conv)
        if block.shortcut is not None:
            self.size = read
            self.conv(block.shortcut)

    def pool(self, stride: int) -> None:
        height, width = self.size
        self.size = -(-height // stride), -(-width // stride)


def resized(layers: Layers, edits: list[dict[str, Any]]) -> Layers:
    """The layers with the widths that surgery.json's `resize` edits give them (see architectures/patches.py).

    Raises:
        KeyError: an edit names a layer that is not there, or no size.
        TypeError: a size is no whole number above 0.
    """
    found = Layers(layers, layers.parts)
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
    found = Layers(parts=layers.parts)
    for name, layer in layers.items():
        inputs = layer.inputs if name == names[0] else left(layer.inputs)
        outputs = layer.outputs if name == names[-1] else left(layer.outputs)
        found[name] = replace(layer, inputs=inputs, outputs=outputs, groups=inputs if layer.groups > 1 else 1)
    return found
