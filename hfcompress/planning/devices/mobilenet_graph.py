"""MobileNetV2's int8 graph from its config alone: shapes and bytes of what would be exported, without weights."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.patches import Edit, apply
from hfcompress.errors import UserError
from hfcompress.planning.devices.integer_graph import IntegerGraph, Operation

if TYPE_CHECKING:
    from torch import nn


def mobilenet_graph(
    config: dict[str, Any], resolution: int, width: float | None = None, edits: list[Edit] | None = None
) -> IntegerGraph:
    """The graph of transformers' MobileNetV2ForImageClassification, batch normalization folded.

    Args:
        config: a config.json.
        resolution: height and width of the image.
        width: another depth_multiplier than the config's.
        edits: of a surgery.json.

    Raises:
        UserError: the config is of another kind of model, or the edits do not fit it.
    """
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    if config.get("model_type") != "mobilenet_v2":
        raise UserError(f"a {config.get('model_type')} cannot be planned from its shape; only a mobilenet_v2 can")
    found = MobileNetV2Config.from_dict(config)
    if width is not None:
        found.depth_multiplier = width
    with torch.device("meta"):
        network: Any = MobileNetV2ForImageClassification(found)
    apply(network, edits or [])
    return network_graph(network, resolution)


def network_graph(network: Any, resolution: int) -> IntegerGraph:
    """The same of a module at hand, whatever the widths of its blocks are."""
    config = network.config
    return Builder(bool(config.tf_padding), config.num_channels, resolution).network(network)


class Builder:
    """Writes operations down in the order in which they run."""

    def __init__(self, tf_padding: bool, channels: int, resolution: int) -> None:
        self.tf_padding = tf_padding
        self.operations: list[Operation] = []
        self.shapes: dict[str, tuple[int, ...]] = {"pixel_values": (channels, resolution, resolution)}

    def network(self, network: Any) -> IntegerGraph:
        body = network.mobilenet_v2
        stem = body.conv_stem
        last = "pixel_values"
        for name in ("first_conv", "expand_1x1", "conv_3x3", "reduce_1x1"):
            if (layer := getattr(stem, name, None)) is not None:
                last = self.conv(f"conv_stem.{name}", layer.convolution, last)
        for i, block in enumerate(body.layer):
            first = last
            for name in ("expand_1x1", "conv_3x3", "reduce_1x1"):
                last = self.conv(f"layer.{i}.{name}", getattr(block, name).convolution, last)
            if block.use_residual:
                last = self.add(Operation("Add", f"layer.{i}.add", (first, last), f"layer.{i}.add"), self.shapes[last])
        last = self.conv("conv_1x1", body.conv_1x1.convolution, last)
        channels = self.shapes[last][0]
        last = self.add(Operation("GlobalAveragePool", "pooler", (last,), "pooler"), (channels, 1, 1))
        labels = network.classifier.out_features
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
