"""Runs an int8 graph in one arena, as a microcontroller does, and counts the bytes that are alive."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hfcompress.formats.onnx_export import Array
from hfcompress.planning.devices.integer_graph import IntegerGraph, Operation, Parameters, Quantization
from hfcompress.planning.devices.tensor_lifetimes import MemoryPlan, is_depthwise, scratch


@dataclass(frozen=True)
class Counted:
    """What a run of the interpreter saw: the logits, and bytes of the arrays that were there at the same time."""

    logits: Array
    peak: int
    arena: int


def run(graph: IntegerGraph, plan: MemoryPlan, pixel_values: Array) -> Counted:
    """One image [3, height, width] (float32) through the graph.

    Every activation is an array inside one buffer of `plan.arena` bytes, at its planned place, and is forgotten after
    its planned last use. The arithmetic is onnxruntime's: exact int32 sums, rescaled in float32, rounded half to even.

    Raises:
        RuntimeError: the plan is wrong: a tensor is read after it was freed, or written over one that is alive.
    """
    memory = Arena(graph, plan)
    image = quantized(pixel_values.astype(np.float32), graph.quantization[graph.input])
    outside = {graph.input: image} if graph.input in graph.external else {}
    if not outside:
        memory.write(graph.input, image, None)
    for i, operation in enumerate(graph.operations):
        inputs = [outside[name] if name in outside else memory.read(name) for name in operation.inputs]
        if operation.output in plan.in_place:
            memory.over(operation, inputs[0])
        else:
            memory.write(operation.output, compute(graph, operation, inputs), operation.place)
        memory.free_after(i)
    logits = memory.read(graph.output)
    if graph.output in graph.quantization:
        logits = dequantized(logits, graph.quantization[graph.output])
    return Counted(logits.reshape(-1).copy(), memory.peak, memory.high)


class Arena:
    """The buffer, which arrays in it are alive, and the most that ever were."""

    def __init__(self, graph: IntegerGraph, plan: MemoryPlan) -> None:
        self.graph, self.plan = graph, plan
        self.memory = np.zeros(plan.arena, np.uint8)
        self.ends = {t.tensor: t.last for t in plan.lifetimes}
        self.alive: dict[str, Array] = {}
        self.home: dict[str, str] = {}  # an output written in place -> whose buffer it is in
        self.peak = self.high = 0

    def read(self, name: str) -> Array:
        if name not in self.alive:
            raise RuntimeError(f"{name} is read after its planned lifetime")
        return self.alive[name]

    def write(self, name: str, values: Array, place: Any) -> None:
        """Values into a tensor's place in the arena; `place` says which rows and columns of it."""
        if name not in self.alive:
            shape = self.graph.shapes[name] if place else values.shape
            self.alive[name] = self.reserve(name, shape, values.dtype)
        target = self.alive[name]
        (target if place is None else cut(target, place))[...] = values

    def over(self, operation: Operation, source: Array) -> None:
        """A depthwise convolution over its own input, through a scratch of one channel."""
        channel = self.reserve(scratch(operation), source.shape[1:], source.dtype)
        self.alive[scratch(operation)] = channel
        self.count()
        for c in range(len(source)):
            channel[...] = compute(self.graph, operation, [source[c : c + 1]], c)[0]
            source[c] = channel
        (name,) = operation.inputs
        self.home[operation.output] = self.home.get(name, name)
        self.alive[operation.output] = self.alive.pop(name)

    def reserve(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        start = self.plan.offsets[name]
        stop = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
        for other, array in self.alive.items():
            begin = self.plan.offsets[self.home.get(other, other)]
            if begin < stop and start < begin + array.nbytes:
                raise RuntimeError(f"{name} would be written over {other}, which is alive")
        self.high = max(self.high, stop)
        return self.memory[start:stop].view(dtype).reshape(shape)

    def count(self) -> None:
        self.peak = max(self.peak, sum(array.nbytes for array in self.alive.values()))

    def free_after(self, step: int) -> None:
        self.count()
        gone = [name for name in self.alive if self.ends[self.home.get(name, name)] <= step]
        for name in gone:
            if name != self.graph.output or step < self.plan.operations - 1:
                del self.alive[name]


def compute(graph: IntegerGraph, operation: Operation, inputs: list[Array], channel: int | None = None) -> Array:
    """The values that an operation writes; of a depthwise convolution perhaps one channel."""
    windows = operation.windows or (None,) * len(inputs)
    parts = [cut(x, window) if window else x for x, window in zip(inputs, windows, strict=True)]
    if operation.kind == "Read":
        return parts[0]
    into = graph.quantization.get(operation.output)
    froms = [graph.quantization[name] for name in operation.inputs]
    numbers = graph.parameters[operation.name]
    if operation.kind in ("Conv", "Gemm"):
        return weighted(graph, operation, parts[0], froms[0], into, numbers, channel)
    if operation.kind == "MaxPool":
        return requantized(pooled(operation, parts[0]), froms[0], into, numbers)
    if operation.kind == "GlobalAveragePool":
        centred = parts[0].astype(np.int64) - froms[0].zero_point
        sums = centred.sum(axis=(1, 2), keepdims=True).astype(np.float32)
        mean = np.float32(froms[0].scale) / np.float32(centred[0].size)
        if into is None:
            return stored(sums * mean, into, numbers)
        return rounded(sums * (mean / np.float32(into.scale)), into, numbers)
    if operation.kind == "Add":
        values = dequantized(parts[0], froms[0]) + dequantized(parts[1], froms[1])
        return stored(values, into, numbers)
    return requantized(parts[0], froms[0], into, numbers).reshape(graph.shapes[operation.output])


def weighted(
    graph: IntegerGraph,
    operation: Operation,
    x: Array,
    source: Quantization,
    into: Quantization | None,
    numbers: Parameters,
    channel: int | None,
) -> Array:
    """A convolution or a linear layer: int32 sums and biases, one float32 factor a channel."""
    assert numbers.weight is not None  # a Conv or a Gemm has all three
    assert numbers.weight_scale is not None
    assert numbers.bias is not None
    part = slice(None) if channel is None else slice(channel, channel + 1)
    weight, scale = numbers.weight[part], np.float32(source.scale) * numbers.weight_scale[part]
    centred = x.reshape(*x.shape, *(1,) * (3 - x.ndim)).astype(np.float64) - source.zero_point
    sums = convolved(operation, centred, weight, is_depthwise(graph, operation))
    sums += np.rint(numbers.bias[part].astype(np.float64) / scale)[:, None, None]
    if x.ndim == 1 or operation.kind == "Gemm":
        sums = sums.reshape(-1)
    factors = scale.reshape(-1, *(1,) * (sums.ndim - 1))
    if into is None:
        return np.clip(sums.astype(np.float32) * factors, numbers.low, numbers.high).astype(np.float32)
    return rounded(sums.astype(np.float32) * (factors / np.float32(into.scale)), into, numbers)


def convolved(operation: Operation, x: Array, weight: Array, depthwise: bool) -> Array:
    """Sums [out, height, width] in float64, which holds them exactly: they stay far below 2^53."""
    top, left, bottom, right = operation.pads
    x = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    height, width = ((x.shape[1 + a] - operation.reach(a)) // operation.stride[a] + 1 for a in (0, 1))
    sums = np.zeros((len(weight), height, width))
    for u in range(weight.shape[2]):
        for v in range(weight.shape[3]):
            seen = taken(operation, x, u, v, height, width)
            tap = weight[:, :, u, v].astype(np.float64)
            if depthwise:
                sums += tap[:, :, None] * seen
                continue
            ins, outs = len(x) // operation.group, len(weight) // operation.group
            for g in range(operation.group):
                rows = slice(g * outs, (g + 1) * outs)
                flat = seen[g * ins : (g + 1) * ins].reshape(ins, -1)
                sums[rows] += (tap[rows] @ flat).reshape(outs, height, width)
    return sums


def pooled(operation: Operation, x: Array) -> Array:
    top, left, bottom, right = operation.pads
    x = np.pad(x, ((0, 0), (top, bottom), (left, right)), constant_values=np.iinfo(x.dtype).min)
    height, width = ((x.shape[1 + a] - operation.reach(a)) // operation.stride[a] + 1 for a in (0, 1))
    taps = [(u, v) for u in range(operation.kernel[0]) for v in range(operation.kernel[1])]
    return np.max([taken(operation, x, u, v, height, width) for u, v in taps], axis=0)


def taken(operation: Operation, x: Array, u: int, v: int, height: int, width: int) -> Array:
    """What the tap (u, v) of a window sees at every output position."""
    (down, across), (by, bx) = operation.stride, operation.dilation
    rows = slice(u * by, u * by + (height - 1) * down + 1, down)
    return x[:, rows, v * bx : v * bx + (width - 1) * across + 1 : across]


def cut(x: Array, window: tuple[int, int, int, int]) -> Array:
    top, left, height, width = window
    return x[:, top : top + height, left : left + width]


def quantized(x: Array, into: Quantization) -> Array:
    limits = np.iinfo(into.dtype)
    return np.clip(np.rint(x / np.float32(into.scale)) + into.zero_point, limits.min, limits.max).astype(into.dtype)


def dequantized(x: Array, source: Quantization) -> Array:
    return np.float32(source.scale) * (x.astype(np.float32) - np.float32(source.zero_point))


def stored(values: Array, into: Quantization | None, numbers: Parameters) -> Array:
    """Real values as the output's integers."""
    clipped = np.clip(values, numbers.low, numbers.high).astype(np.float32)
    return clipped if into is None else quantized(clipped, into)


def requantized(x: Array, source: Quantization, into: Quantization | None, numbers: Parameters) -> Array:
    if source == into and numbers == Parameters():
        return x
    return stored(dequantized(x, source), into, numbers)


def rounded(values: Array, into: Quantization, numbers: Parameters) -> Array:
    """Values in units of the output's scale as its integers, within the bounds of a fused ReLU or Clip."""
    limits = np.iinfo(into.dtype)
    low, high = (bound / into.scale if np.isfinite(bound) else bound for bound in (numbers.low, numbers.high))
    integers = np.rint(np.clip(values, low, high)) + into.zero_point
    return np.clip(integers, limits.min, limits.max).astype(into.dtype)
