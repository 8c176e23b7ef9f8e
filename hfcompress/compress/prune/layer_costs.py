"""What a network costs as a function of its layers' widths: FLOPs, parameters, bytes, and milliseconds.

FLOPs count a multiplication and an addition as two (one MAC is 2 FLOPs), as torch.utils.flop_counter does, of the
convolutions, linear layers and attention products for one example.
"""

from typing import TYPE_CHECKING

import numpy as np

from hfcompress.architectures.layers import Layer, layers_of
from hfcompress.compress.prune.target import Measure
from hfcompress.planning.machine import Graph, Machine

if TYPE_CHECKING:
    from torch import nn

    from hfcompress.architectures.layers import Batch
    from hfcompress.compress.prune.channel_groups import Group

Kept = dict[str, int]  # a group's root -> units that stay


class Costs:
    """The costs of a network whose groups keep only some of their units.

    Args:
        example: inputs of one example (a batch of 1), which says how large the feature maps are.
        machine: what latency is measured on.
    """

    def __init__(self, network: "nn.Module", example: "Batch", groups: "list[Group]", machine: Machine) -> None:
        self.groups, self.machine = groups, machine
        self.layers = layers_of(network, example)
        counted = sum(layer.parameters for layer in self.layers.values())
        self.fixed_parameters = sum(p.numel() for p in network.parameters()) - counted

    def whole(self) -> Kept:
        """All units of all groups."""
        return {group.root: group.units for group in self.groups}

    def total(self, measure: Measure, kept: Kept) -> float:
        """FLOPs, parameters, bytes of weights and statistics in fp32, or milliseconds.

        Milliseconds are those of the convolutions and linear layers in onnxruntime, each measured alone and added up:
        what runs between them is left out, and so is what onnxruntime gains by fusing.
        """
        layers = self.narrowed(kept)
        if measure == "flops":
            return sum(layer.flops for layer in layers) + self.attention_flops(kept)
        if measure == "latency":
            return sum(self.milliseconds(layer) for layer in layers)
        if measure == "bytes":
            return 4 * self.fixed_parameters + sum(layer.bytes for layer in layers)
        return self.fixed_parameters + sum(layer.parameters for layer in layers)

    def narrowed(self, kept: Kept) -> list[Layer]:
        """The layers at the widths that are left."""
        gone: dict[tuple[str, bool], int] = {}
        for group in self.groups:
            units = group.units - kept[group.root]
            for member in group.members:
                key = (member.layer, member.writes)
                gone[key] = gone.get(key, 0) + units * (len(member.index) // group.units)
        found = []
        for name, layer in self.layers.items():
            reads, writes = gone.get((name, False), 0), gone.get((name, True), 0)
            both = layer.kind == "norm" or layer.groups > 1  # one channel in, the same channel out
            found.append(layer.narrowed(writes or reads, writes or reads) if both else layer.narrowed(reads, writes))
        return found

    def attention_flops(self, kept: Kept) -> int:
        """Of queries with keys and of probabilities with values: 2 FLOPs x 2 products x tokens^2 x width."""
        heads = [group for group in self.groups if group.size > 1]
        return sum(4 * self.layers[group.root].positions ** 2 * group.size * kept[group.root] for group in heads)

    def milliseconds(self, layer: Layer) -> float:
        """Of one layer in onnxruntime, at the next width in steps of BLOCK."""
        return 0.0 if layer.kind == "norm" else self.machine.graph_ms(layer.rounded(), *graph_of(layer.rounded()))


def graph_of(layer: Layer) -> tuple[Graph, tuple[int, ...]]:
    """The layer alone in ONNX, and the shape of its input."""
    graph = Graph()
    if layer.kind == "linear":
        weight = graph.value("w", np.full((layer.inputs, layer.outputs), 0.01, np.float32))
        graph.add("MatMul", ["x", weight], "z")
        return graph, (1, layer.positions, layer.inputs)
    weight = graph.value("w", np.full((layer.outputs, layer.inputs // layer.groups, *layer.kernel), 0.01, np.float32))
    pads = [side // 2 for side in layer.kernel] * 2
    graph.add("Conv", ["x", weight], "z", group=layer.groups, strides=list(layer.stride), pads=pads)
    return graph, (1, layer.inputs, *layer.size)
