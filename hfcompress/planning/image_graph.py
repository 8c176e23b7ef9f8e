"""How long this machine takes for an image: image models as ONNX graphs, written from their lists of blocks alone.

What is timed has the same nodes, widths, threads and session options as what will be exported, and random weights, so
that no model of the processor is needed. The models run in turn and twice each, as they will when they are measured.
"""

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hfcompress.architectures.image import Activation, Block, Conv, MaxPool
from hfcompress.architectures.image_layers import Layers
from hfcompress.architectures.layers import Layer
from hfcompress.evaluation.latency import interleaved
from hfcompress.planning.machine import Graph

RUNS, FEWEST_RUNS = 40, 5
LONGEST_S = 2.0  # of timed runs
RANGE = 6.0  # of the activations, in int8


def images_ms(
    networks: dict[str, tuple[Layers, bool]], size: tuple[int, int], batch: int, threads: int
) -> dict[str, float]:
    """Median milliseconds of a request of `batch` images, by model.

    Args:
        networks: name -> layers, and whether they are in int8; size: height and width of an image.
    """
    from hfcompress.formats.runtimes.sessions import onnx_session

    calls: dict[str, Any] = {}
    for name, (layers, integer) in networks.items():
        channels = next(iter(layers.values())).inputs
        feed = {"x": np.full((batch, channels, *size), 0.5, np.float32)}
        with TemporaryDirectory() as scratch:
            file = Writer(integer).network(layers).save(Path(scratch) / "model.onnx", 4)
            calls[name] = partial(onnx_session(file, threads).run, ["z"], feed)
    begun = time.perf_counter()
    for call in calls.values():
        call()
    runs = int(LONGEST_S / (time.perf_counter() - begun))
    found = interleaved(calls, min(RUNS, max(FEWEST_RUNS, runs)), back_to_back=True)
    return {name: float(np.median(times)) for name, times in found.items()}


class Writer:
    """Writes a network down, layer by layer; in int8 with a QuantizeLinear and a DequantizeLinear behind each."""

    def __init__(self, integer: bool) -> None:
        self.graph, self.integer, self.random = Graph(), integer, np.random.default_rng(0)

    def network(self, layers: Layers) -> Graph:
        """Every part of the architecture with the widths of `layers`, the average pool and the classifier."""
        last = self.quantized("x", signed=True)
        for part in layers.parts:
            if isinstance(part, Conv):
                last = self.conv(part, layers, last)
            elif isinstance(part, MaxPool):
                side, strides, pads = [part.kernel] * 2, [part.stride] * 2, [part.kernel // 2] * 4
                last = self.graph.add("MaxPool", [last], "pool", kernel_shape=side, strides=strides, pads=pads)
                last = self.quantized(last)
            else:
                last = self.block(part, layers, last)
        self.classifier(list(layers.values())[-1], last)
        return self.graph

    def block(self, block: Block, layers: Layers, read: str) -> str:
        """The convolutions of a block, and where it has one the sum."""
        last = read
        for conv in block.convs:
            last = self.conv(conv, layers, last)
        if block.shortcut is not None:
            return self.add(last, self.conv(block.shortcut, layers, read), block.activation)
        return self.add(last, read, block.activation) if block.residual else last

    def conv(self, conv: Conv, layers: Layers, read: str) -> str:
        """A convolution with bias and its activation."""
        name = f"{conv.name}.convolution"
        layer = layers[name]
        weight, bias = self.weights(name, (layer.outputs, layer.inputs // layer.groups, *layer.kernel))
        pads = [side // 2 for side in layer.kernel] * 2
        last = self.graph.add(
            "Conv", [read, weight, bias], f"{name}_z", group=layer.groups, strides=list(layer.stride), pads=pads
        )
        if conv.activation == "relu6":
            low, high = (self.graph.value(f"clip_{n}", np.array(n, np.float32)) for n in (0.0, RANGE))
            last = self.graph.add("Clip", [last, low, high], f"{name}_active")
        elif conv.activation == "relu":
            last = self.graph.add("Relu", [last], f"{name}_active")
        return self.quantized(last, signed=conv.activation is None)

    def add(self, one: str, other: str, activation: Activation | None) -> str:
        """The sum of two tensors, and its activation."""
        last = self.graph.add("Add", [one, other], f"{one}_sum")
        if activation is not None:
            last = self.graph.add("Relu", [last], f"{last}_active")
        return self.quantized(last, signed=activation is None)

    def classifier(self, layer: Layer, read: str) -> None:
        """Average pool and linear layer."""
        pooled = self.quantized(self.graph.add("GlobalAveragePool", [read], "average"))
        flat = self.quantized(self.graph.add("Flatten", [pooled], "flat", axis=1))
        weight, bias = self.weights("classifier", (layer.outputs, layer.inputs))
        logits = self.graph.add("Gemm", [flat, weight, bias], "logits", transB=1)
        self.graph.add("Identity", [self.quantized(logits, signed=True)], "z")

    def weights(self, name: str, shape: tuple[int, ...]) -> tuple[str, str]:
        """A weight that neither lets signals vanish nor grow, and a bias; in int8 as a scale an output channel."""
        outputs, graph = shape[0], self.graph
        bound = (2 / np.prod(shape[1:])) ** 0.5
        if not self.integer:
            weight = (bound * self.random.standard_normal(shape)).astype(np.float32)
            return graph.value(f"{name}_w", weight), graph.value(f"{name}_b", np.zeros(outputs, np.float32))
        codes = self.random.integers(1, 256, shape).astype(np.uint8)
        step = np.full(outputs, bound / 64, np.float32)
        dequantized = []
        for part, array, scale in (
            ("w", codes, step),
            ("b", np.zeros(outputs, np.int32), step * np.float32(RANGE / 255)),
        ):
            inputs = [
                graph.value(f"{name}_{part}", array),
                graph.value(f"{name}_{part}_scale", scale),
                graph.value(f"{name}_{part}_zero", np.full(outputs, 128 * (part == "w"), array.dtype)),
            ]
            dequantized.append(graph.add("DequantizeLinear", inputs, f"{name}_{part}_dq", axis=0))
        return dequantized[0], dequantized[1]

    def quantized(self, name: str, signed: bool = False) -> str:
        """In int8 the tensor as uint8; its zero is in the middle where it has a sign."""
        if not self.integer:
            return name
        zero = 128 if signed else 0
        scale = self.graph.value("scale", np.array(RANGE / 255, np.float32))
        middle = self.graph.value(f"zero_{zero}", np.array(zero, np.uint8))
        self.graph.add("QuantizeLinear", [name, scale, middle], f"{name}_q")
        return self.graph.add("DequantizeLinear", [f"{name}_q", scale, middle], f"{name}_dq")
