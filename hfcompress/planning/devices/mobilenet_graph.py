"""An image model's int8 graph from its config alone: shapes and bytes of what would be exported, without weights."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hfcompress.architectures import IMAGE_MODELS
from hfcompress.architectures.image import Block, MaxPool
from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.patches import Edit, apply
from hfcompress.errors import UserError
from hfcompress.planning.devices.integer_graph import IntegerGraph, Operation

if TYPE_CHECKING:
    from torch import nn


def mobilenet_graph(
    config: dict[str, Any], resolution: int, width: float | None = None, edits: list[Edit] | None = None
) -> IntegerGraph:
    """The graph of a classifier whose architecture is planned on chips, batch normalization folded.

    Args:
        config: a config.json.
        resolution: height and width of the image.
        width: another depth_multiplier than the config's.
        edits: of a surgery.json.

    Raises:
        UserError: the config is of another kind of model, or the edits do not fit it.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    architecture = IMAGE_MODELS.get(config.get("model_type", ""))
    if architecture is None or not architecture.on_chip:
        known = " or ".join(sorted(kind for kind, each in IMAGE_MODELS.items() if each.on_chip))
        raise UserError(f"a {config.get('model_type')} cannot be planned from its shape; only a {known} can")
    found = AutoConfig.for_model(**config)
    if width is not None:
        found.depth_multiplier = width
    network = meta_model(AutoModelForImageClassification, found)
    apply(network, edits or [])
    return network_graph(network, resolution)


def network_graph(network: Any, resolution: int) -> IntegerGraph:
    """The same of a module at hand, whatever the widths of its blocks are."""
    config = network.config
    padded = bool(getattr(config, "tf_padding", False))
    return Builder(padded, config.num_channels, resolution).network(network)


class Builder:
    """Writes operations down in the order in which they run."""

    def __init__(self, tf_padding: bool, channels: int, resolution: int) -> None:
        self.tf_padding = tf_padding
        self.operations: list[Operation] = []
        self.shapes: dict[str, tuple[int, ...]] = {"pixel_values": (channels, resolution, resolution)}

    def network(self, network: Any) -> IntegerGraph:
        architecture, last = IMAGE_MODELS[network.config.model_type], "pixel_values"
        for part in architecture.parts(network.config.to_dict()):
            first = last
            if isinstance(part, MaxPool):
                raise UserError(f"{network.config.model_type}: a max pool is not planned for a chip")
            for conv in part.convs if isinstance(part, Block) else (part,):
                name = f"{conv.name}.convolution"
                last = self.conv(conv.name.removeprefix(f"{architecture.body}."), network.get_submodule(name), last)
            if isinstance(part, Block) and part.residual:
                name = f"{part.name.removeprefix(f'{architecture.body}.')}.add"
                last = self.add(Operation("Add", name, (first, last), name), self.shapes[last])
        channels = self.shapes[last][0]
        last = self.add(Operation("GlobalAveragePool", "pooler", (last,), "pooler"), (channels, 1, 1))
        labels = network.get_submodule(architecture.classifier).out_features
        flash = labels * channels + 8 * labels
        gemm = Operation("Gemm", "classifier", (last,), "logits", macs_per_value=channels, flash=flash)
        return IntegerGraph("pixel_values", self.add(gemm, (labels,)), tuple(self.operations), self.shapes)

    def conv(self, name: str, layer: "nn.Conv2d", source: str) -> str:
        per_value = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        operation = Operation(
            "Conv",
            name,
            (source,),
            name,
            kernel=(layer.kernel_size[0], layer.kernel_size[1]),
            stride=(layer.stride[0], layer.stride[1]),
            dilation=(layer.dilation[0], layer.dilation[1]),
            group=layer.groups,
            macs_per_value=per_value,
            flash=layer.out_channels * (per_value + 8),
        )
        _, *sides = self.shapes[source]
        pads = [self.padding(operation, axis, side, layer.padding) for axis, side in enumerate(sides)]
        sizes = [
            (side + sum(pad) - operation.reach(axis)) // operation.stride[axis] + 1
            for axis, (side, pad) in enumerate(zip(sides, pads, strict=True))
        ]
        operation = replace(operation, pads=(pads[0][0], pads[1][0], pads[0][1], pads[1][1]))
        return self.add(operation, (layer.out_channels, *sizes))

    def padding(self, operation: Operation, axis: int, side: int, own: Any) -> tuple[int, int]:
        """Before and after; TensorFlow's "SAME" puts the odd one behind."""
        if not self.tf_padding:
            return own[axis], own[axis]
        stride = operation.stride[axis]
        total = max(0, operation.reach(axis) - (side % stride or stride))
        return total // 2, total - total // 2

    def add(self, operation: Operation, shape: tuple[int, ...]) -> str:
        self.operations.append(operation)
        self.shapes[operation.output] = shape
        return operation.output
