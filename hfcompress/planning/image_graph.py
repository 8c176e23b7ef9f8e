"""How long this machine takes for an image: MobileNetV2s and ResNets as ONNX graphs, written from their layers alone.

What is timed has the same nodes, widths, threads and session options as what will be exported, and random weights, so
that no model of the processor is needed. The models run in turn and twice each, as they will when they are measured.
"""

import re
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hfcompress.architectures.image_layers import Layers
from hfcompress.architectures.layers import Layer
from hfcompress.planning.machine import Graph

RUNS, FEWEST_RUNS = 40, 5
LONGEST_S = 2.0  # of timed runs
BLOCK = re.compile(r"(mobilenet_v2\.layer\.\d+|resnet\.encoder\.stages\.\d+\.layers\.\d+)\.")
RANGE = 6.0  # of the activations, in int8


def images_ms(
    networks: dict[str, tuple[Layers, bool]], size: tuple[int, int], batch: int, threads: int
) -> dict[str, float]:
    """Median milliseconds of a request of `batch` images, by model.

    Args:
        networks: name -> layers, and whether they are in int8; size: height and width of an image.
    """
    from hfcompress.evaluation.latency import interleaved
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
        """Blocks with their residual sums; in a ResNet a layer with a ReLU, in a MobileNetV2 with a ReLU6."""
        names = [name for name, layer in layers.items() if layer.kind == "convolution"]
        resnet = names[0].startswith("resnet")
        last = read = self.quantized("x", signed=True)
        for i, name in enumerate(names):
            layer, block = layers[name], BLOCK.match(name)
            if block and (i == 0 or not names[i - 1].startswith(block[0])):
                read = last
            ends = block is not None and (i + 1 == len(names) or not names[i + 1].startswith(block[0]))
            shortcut = ".shortcut." in name
            if shortcut:
                main, last = last, read
            linear = name.endswith("reduce_1x1.convolution") or (resnet and self.adds(names, i))
            last = self.conv(name, layer, last, None if linear else resnet)
            if shortcut:
                last = self.add(main, last, relu=True)
            elif ends and resnet:
                last = self.add(last, read, relu=True)
            elif ends and self.is_residual(layers, names, i):
                last = self.add(last, read, relu=False)
            if ".embedder." in name:
                last = self.graph.add(
                    "MaxPool", [last], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
                )
                last = self.quantized(last)
        self.classifier(list(layers.values())[-1], last)
        return self.graph

    @staticmethod
    def adds(names: list[str], i: int) -> bool:
        """Whether a ResNet's convolution is the last of its block's own: its ReLU comes behind the sum."""
        block = BLOCK.match(names[i])
        following = names[i + 1] if i + 1 < len(names) else ""
        return block is not None and (not following.startswith(block[0]) or ".shortcut." in following)

    @staticmethod
    def is_residual(layers: Layers, names: list[str], i: int) -> bool:
        """Whether a MobileNetV2's block, which ends here, has the shape of its input."""
        first, middle, last = (layers[name] for name in names[i - 2 : i + 1])
        return middle.stride == (1, 1) and first.inputs == last.outputs

    def conv(self, name: str, layer: Layer, read: str, relu: bool | None) -> str:
        """A convolution with bias; `relu`: a ReLU behind it, or (False) a ReLU6, or none."""
        shape = (layer.outputs, layer.inputs // layer.groups, *layer.kernel)
        weight, bias = self.weights(name, shape)
        pads = [side // 2 for side in layer.kernel] * 2
        last = self.graph.add(
            "Conv", [read, weight, bias], f"{name}_z", group=layer.groups, strides=list(layer.stride), pads=pads
        )
        if relu is not None:
            low, high = (self.graph.value(f"clip_{n}", np.array(n, np.float32)) for n in (0.0, RANGE))
            last = self.graph.add("Relu" if relu else "Clip", [last] if relu else [last, low, high], f"{name}_active")
        return self.quantized(last, signed=relu is None)

    def add(self, one: str, other: str, relu: bool) -> str:
        last = self.graph.add("Add", [one, other], f"{one}_sum")
        if relu:
            last = self.graph.add("Relu", [last], f"{last}_active")
        return self.quantized(last, signed=not relu)

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
