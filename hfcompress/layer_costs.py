"""What a network costs as a function of its layers' widths: FLOPs, parameters, bytes, and milliseconds.

FLOPs count a multiplication and an addition as two (one MAC is 2 FLOPs), as torch.utils.flop_counter does, of the
convolutions, linear layers and attention products for one example.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hfcompress.machine import Graph, Machine
from hfcompress.pruning_target import Measure

if TYPE_CHECKING:
    from torch import nn

    from hfcompress.coupling import Batch, Group

Kept = dict[str, int]  # a group's root -> units that stay
BLOCK = 8  # widths are timed in steps of so many channels: kernels work in such blocks anyway


@dataclass(frozen=True)
class Layer:
    """A convolution, Linear or batch norm at its place in a network."""

    kind: Literal["convolution", "linear", "norm"]
    inputs: int
    outputs: int
    bias: bool = False
    groups: int = 1
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    size: tuple[int, ...] = (1, 1)  # height and width of what a convolution reads
    positions: int = 1  # that the weights are used at for one example: pixels of the output, or tokens

    @property
    def weights(self) -> int:
        return self.outputs * (self.inputs // self.groups) * int(np.prod(self.kernel))

    @property
    def parameters(self) -> int:
        if self.kind == "norm":
            return 2 * self.outputs
        return self.weights + (self.outputs if self.bias else 0)

    @property
    def bytes(self) -> int:
        """In fp32, with a batch norm's running mean and variance."""
        return 4 * (self.parameters + (2 * self.outputs if self.kind == "norm" else 0))

    @property
    def flops(self) -> int:
        return 0 if self.kind == "norm" else 2 * self.weights * self.positions

    def narrowed(self, inputs: int, outputs: int) -> "Layer":
        """With so many channels less; a depthwise convolution has as many groups as channels."""
        groups = self.groups - inputs if self.groups > 1 and self.groups == self.inputs else self.groups
        return replace(self, inputs=self.inputs - inputs, outputs=self.outputs - outputs, groups=groups)

    def rounded(self) -> "Layer":
        """At the next widths that are timed."""
        inputs, outputs = (-(-width // BLOCK) * BLOCK for width in (self.inputs, self.outputs))
        if 1 < self.groups < self.inputs:  # cannot be cut, so its widths are not looked for
            return self
        return replace(self, inputs=inputs, outputs=outputs, groups=inputs if self.groups > 1 else 1, bias=False)

    def graph(self) -> tuple[Graph, tuple[int, ...]]:
        """The layer alone in ONNX, and the shape of its input."""
        graph = Graph()
        if self.kind == "linear":
            weight = graph.value("w", np.full((self.inputs, self.outputs), 0.01, np.float32))
            graph.add("MatMul", ["x", weight], "z")
            return graph, (1, self.positions, self.inputs)
        weight = graph.value("w", np.full((self.outputs, self.inputs // self.groups, *self.kernel), 0.01, np.float32))
        pads = [side // 2 for side in self.kernel] * 2
        graph.add("Conv", ["x", weight], "z", group=self.groups, strides=list(self.stride), pads=pads)
        return graph, (1, self.inputs, *self.size)


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
        return 0.0 if layer.kind == "norm" else self.machine.graph_ms(layer.rounded(), *layer.rounded().graph())


def layers_of(network: "nn.Module", example: "Batch") -> dict[str, Layer]:
    """Name -> layer, of the convolutions, linear layers and batch norms that a forward pass uses."""
    from torch import nn

    from hfcompress.coupling import logits_of

    found: dict[str, Layer] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, layer_of(module, inputs[0], output))

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(note(name)) for name, m in network.named_modules() if isinstance(m, kinds)]
    logits_of(network, example)
    for hook in hooks:
        hook.remove()
    return found


def layer_of(module: Any, read: Any, written: Any) -> Layer:
    """A module as it was called.

    Args:
        read, written: its input and output.
    """
    from torch import nn

    if isinstance(module, nn.BatchNorm2d):
        return Layer("norm", module.num_features, module.num_features)
    if isinstance(module, nn.Linear):
        rows = read.numel() // module.in_features
        return Layer("linear", module.in_features, module.out_features, module.bias is not None, positions=rows)
    return Layer(
        "convolution",
        module.in_channels,
        module.out_channels,
        module.bias is not None,
        module.groups,
        tuple(module.kernel_size),
        tuple(module.stride),
        tuple(read.shape[-2:]),
        written.shape[-2] * written.shape[-1],
    )
