"""Which integer products of a graph saturate on x86 without VNNI, and what comes out of them there.

Without VNNI (Intel before Cascade Lake, AMD before Zen 4) onnxruntime multiplies uint8 activations with int8 weights
by vpmaddubsw: of neighbors k and k + 1 (k even) along the summed axis, a[k] * w[k] + a[k + 1] * w[k + 1] is cut to 16
bits before it is added in 32 (microsoft/onnxruntime issues 6004 and 14642). A graph whose int8 weights allow such a
pair beyond 16 bits answers otherwise there; stored as uint8 (unsigned_weights.py) the same weights do not. Int8
activations are turned into uint8 by a session without `session.qdqisint8allowed`: they count as uint8, plus 128.

Convolutions sum taps one after the other, the channels of each tap in order. A depthwise convolution is computed by
a kernel of its own, which widens first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

LOWEST, HIGHEST = -(1 << 15), (1 << 15) - 1
LARGEST_ACTIVATION = 255
CHUNK = 1 << 22  # pairs of products that are computed at a time
# Integer operators: the places of activation, its zero point and weight among the inputs.
PLACES = {
    "MatMulInteger": (0, 2, 1),
    "ConvInteger": (0, 2, 1),
    "MatMulIntegerToFloat": (0, 4, 1),
    "QLinearMatMul": (0, 2, 3),
    "QLinearConv": (0, 2, 3),
    "QGemm": (0, 2, 3),
}
DYNAMIC = "DynamicQuantizeMatMul"  # quantizes a float activation itself
MULTIPLYING = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Product:
    """A product of quantized activations with a constant int8 weight.

    weights: int16 [groups, K, N], neighbors along K as the kernel pairs them.
    activation: the tensor of quantized activations; None where the operator quantizes them itself.
    zero_point: the name of its zero point, which a convolution pads with.
    window: a convolution's attributes; None of a matrix product.
    """

    name: str
    operator: str
    weights: Array
    activation: str | None
    zero_point: str
    window: dict[str, Any] | None = field(default=None)


@dataclass(frozen=True)
class Saturation:
    """A product that saturates: by its name and operator, the share of its pairs that do (None: not computed)."""

    name: str
    operator: str
    share: float | None = None

    def __str__(self) -> str:
        part = "" if self.share is None else f", {self.share:.2%} of its pairs"
        return f"{self.name} ({self.operator}{part})"


def saturating_layers(model: ModelProto | Path, inputs: dict[str, Array] | None = None) -> list[Saturation]:
    """The products of a graph that saturate on x86 without VNNI.

    Args:
        inputs: by name, what the graph is run on: the products of these activations alone are looked at. Without
            them, a weight counts whose pairs saturate with some uint8 activations: those that never do pass.
    """
    graph = onnx.load(str(model)) if isinstance(model, Path) else model
    suspects = [product for product in products(graph) if may_saturate(product.weights)]
    if inputs is None or not suspects:
        return [Saturation(product.name, product.operator) for product in suspects]
    seen = activations(graph, suspects, inputs)
    found = []
    for product in suspects:
        if product.activation is None:
            found.append(Saturation(product.name, product.operator))
            continue
        share = saturating_share(product, seen[product.activation], seen.get(product.zero_point))
        if share:
            found.append(Saturation(product.name, product.operator, share))
    return found


def require_exact(path: Path) -> None:
    """Refuse a graph that would answer otherwise on a processor without VNNI.

    Raises:
        RuntimeError: a product can saturate.
    """
    if found := saturating_layers(path):
        raise RuntimeError(
            f"{len(found)} integer products of {path.name} saturate on x86 without VNNI, such as {found[0]}: their "
            "weights must be stored as uint8"
        )


def saturated_product(activations: Array, weights: Array) -> Array:
    """uint8 [M, K] times int8 [K, N] as vpmaddubsw and vpmaddwd compute it: int32 [M, N]."""
    return np.clip(pairs(activations, weights), LOWEST, HIGHEST).sum(axis=1, dtype=np.int32)


def pairs(activations: Array, weights: Array) -> Array:
    """Sums of two products each, int32 [M, ceil(K / 2), N]; an odd K is filled up with a product of zeros."""
    odd = activations.shape[1] % 2
    a = np.pad(activations.astype(np.int32), ((0, 0), (0, odd)))
    w = np.pad(weights.astype(np.int32), ((0, odd), (0, 0)))
    return a[:, 0::2, None] * w[None, 0::2] + a[:, 1::2, None] * w[None, 1::2]


def may_saturate(weights: Array) -> bool:
    """Whether some uint8 activations saturate a pair of [groups, K, N]: its positive or its negative weights do."""
    wide = np.pad(weights.astype(np.int32), ((0, 0), (0, weights.shape[1] % 2), (0, 0)))
    above, below = np.maximum(wide, 0), np.minimum(wide, 0)
    highest = LARGEST_ACTIVATION * (above[:, 0::2] + above[:, 1::2]).max(initial=0)
    lowest = LARGEST_ACTIVATION * (below[:, 0::2] + below[:, 1::2]).min(initial=0)
    return bool(highest > HIGHEST or lowest < LOWEST)


def products(model: ModelProto) -> Iterator[Product]:
    """Every product with a constant int8 weight, of a QDQ graph or of integer operators."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        read = read_by(node, producers)
        if read is None or read[2] not in constants or constants[read[2]].data_type != onnx.TensorProto.INT8:
            continue
        activation, zero_point, name, flipped = read
        weight = numpy_helper.to_array(constants[name])
        weight = weight.T if flipped else weight
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        convolves = "Conv" in node.op_type
        if convolves and is_depthwise(weight, settings):
            continue
        found = by_group(weight, settings) if convolves else as_columns(weight, settings)
        title = node.name or node.output[0]
        yield Product(title, node.op_type, found, activation, zero_point, settings if convolves else None)


def read_by(node: NodeProto, producers: dict[str, NodeProto]) -> tuple[str | None, str, str, bool] | None:
    """Of an integer product: names of activation, its zero point and weight, and whether the weight is transposed."""
    if node.op_type == DYNAMIC:
        return None, "", node.input[1], False
    if node.op_type in PLACES:
        activation, zero_point, weight = PLACES[node.op_type]
        named = node.input[zero_point] if len(node.input) > zero_point else ""
        return node.input[activation], named, node.input[weight], False
    if node.op_type not in MULTIPLYING:
        return None
    data, weight_of, flipped = producers.get(node.input[0]), producers.get(node.input[1]), False
    if weight_of is not None and weight_of.op_type == "Transpose":
        weight_of, flipped = producers.get(weight_of.input[0]), True
    if any(part is None or part.op_type != "DequantizeLinear" for part in (data, weight_of)):
        return None
    assert data is not None
    assert weight_of is not None
    return data.input[0], data.input[2] if len(data.input) > 2 else "", weight_of.input[0], flipped


def is_depthwise(weight: Array, settings: dict[str, Any]) -> bool:
    return weight.shape[1] == 1 and weight.shape[0] == settings.get("group", 1)


def by_group(weight: Array, settings: dict[str, Any]) -> Array:
    """A convolution's weight [out, in / groups, ...] as [groups, K, out / groups], a tap's channels in order."""
    groups = settings.get("group", 1)
    apart = weight.reshape(groups, -1, *weight.shape[1:])
    return np.moveaxis(apart, 2, -1).reshape(groups, apart.shape[1], -1).swapaxes(1, 2).astype(np.int16)


def as_columns(weight: Array, settings: dict[str, Any]) -> Array:
    """A matrix as [stacked, K, N]."""
    wide = weight.swapaxes(-1, -2) if settings.get("transB") else weight
    return wide.reshape(-1, *wide.shape[-2:]).astype(np.int16)


def activations(model: ModelProto, wanted: list[Product], inputs: dict[str, Array]) -> dict[str, Array]:
    """What the named tensors of quantized activations and zero points hold, as exact arithmetic gives them.

    onnxruntime runs the graph without optimizations, where a QDQ graph computes in float.
    """
    import onnxruntime

    names = {name for product in wanted for name in (product.activation, product.zero_point) if name}
    copied = ModelProto()
    copied.CopyFrom(model)
    given = {entry.name for entry in copied.graph.output} | {entry.name for entry in copied.graph.input}
    copied.graph.output.extend(ValueInfoProto(name=name) for name in sorted(names - given))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copied.SerializeToString(), options, providers=["CPUExecutionProvider"])
    order = sorted(names)
    return dict(zip(order, session.run(order, inputs), strict=True))


def saturating_share(product: Product, activation: Array, zero_point: Array | None) -> float:
    """The share of pairs of products beyond 16 bits, of activations [..., K] or images [batch, channels, ...]."""
    middle = 0 if zero_point is None else int(np.asarray(zero_point).reshape(-1)[0])
    shift = 128 if activation.dtype == np.int8 else 0
    seen = activation.astype(np.int32) + shift
    if product.window is None:
        rows = seen.reshape(1, -1, seen.shape[-1])
    else:
        rows = taps(seen, product.weights.shape[0], product.window, middle + shift)
    beyond = total = 0
    for group, weights in enumerate(product.weights):
        mine = rows[group % len(rows)]
        step = max(1, CHUNK // max(1, weights.size))
        for start in range(0, len(mine), step):
            found = pairs(mine[start : start + step], weights)
            beyond += int(np.count_nonzero((found < LOWEST) | (found > HIGHEST)))
            total += found.size
    return beyond / max(1, total)


def taps(images: Array, groups: int, settings: dict[str, Any], middle: int) -> Array:
    """What a convolution's window sees: [groups, positions, K] of images [batch, channels, height, width]."""
    kernel = settings["kernel_shape"]
    dilations = settings.get("dilations", [1] * len(kernel))
    strides = settings.get("strides", [1] * len(kernel))
    pads = settings.get("pads", [0] * 2 * len(kernel))
    sides = [(pads[axis], pads[axis + len(kernel)]) for axis in range(len(kernel))]
    padded = np.pad(images, ((0, 0), (0, 0), *sides), constant_values=middle)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + len(kernel)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
        places = np.arange(0, windows.shape[2 + axis], stride)
        windows = windows.take(places, 2 + axis).take(np.arange(0, reach[axis], dilation), 2 + len(kernel) + axis)
    batch, channels, *_ = windows.shape
    positions = windows.reshape(batch, groups, channels // groups, -1, int(np.prod(kernel)))
    return positions.transpose(1, 0, 3, 4, 2).reshape(groups, -1, int(np.prod(kernel)) * (channels // groups))
