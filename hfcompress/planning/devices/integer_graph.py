"""An int8 network as a list of operations: what a microcontroller runs, with shapes and, from ONNX, with numbers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from hfcompress.errors import UserError
from hfcompress.formats.onnx_export import Array, constant_values, read_model, readers_of

KINDS = ("Conv", "Gemm", "Add", "GlobalAveragePool", "MaxPool", "Relu", "Clip")
VIEWS = ("Flatten", "Reshape")  # the same bytes under another shape
Window = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Operation:
    """One kernel call on one image: reads tensors [channels, height, width] and writes one.

    `pads` are top, left, bottom, right. `windows` says which part of each input is read, `place` which part of the
    output is written; None is all of it. `flash` counts int8 weights, int32 biases and a float32 scale a channel.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1
    macs_per_value: int = 0
    flash: int = 0
    windows: tuple[Window | None, ...] = ()
    place: Window | None = None

    def reach(self, axis: int) -> int:
        """Input rows (axis 0) or columns (1) that one output value sees."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1


@dataclass(frozen=True)
class Quantization:
    """real = scale * (integer - zero_point)"""

    scale: float
    zero_point: int
    dtype: Any


@dataclass(frozen=True)
class Parameters:
    """The numbers of an operation.

    weight is [out, in / group, height, width] int8 with a scale an output channel, bias [out] is float.
    `low` and `high` are the bounds of a fused ReLU or Clip, in real numbers.
    """

    weight: Array | None = None
    weight_scale: Array | None = None
    bias: Array | None = None
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True)
class IntegerGraph:
    """Operations in the order in which they run, shapes without the batch, and bytes of one value of a tensor.

    `external` tensors are read from outside the SRAM, piece by piece, and take nothing of it.
    """

    input: str
    output: str
    operations: tuple[Operation, ...]
    shapes: dict[str, tuple[int, ...]]
    widths: dict[str, int] = field(default_factory=dict)
    external: frozenset[str] = frozenset()
    quantization: dict[str, Quantization] = field(default_factory=dict)
    parameters: dict[str, Parameters] = field(default_factory=dict)

    def bytes(self, tensor: str) -> int:
        return 0 if tensor in self.external else math.prod(self.shapes[tensor]) * self.widths.get(tensor, 1)

    @property
    def flash(self) -> int:
        """Bytes of all constants; code and the graph's description are not counted."""
        return sum({operation.name: operation.flash for operation in self.operations}.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(operation.macs_per_value * self.values(operation) for operation in self.operations)

    def values(self, operation: Operation) -> int:
        """How many values an operation computes."""
        channels, *size = self.shapes[operation.output]
        return channels * math.prod(operation.place[2:] if operation.place else size)


def read_onnx(path: Path, resolution: int | None = None) -> IntegerGraph:
    """The graph of a QDQ model: every operation between a DequantizeLinear and a QuantizeLinear is an integer one.

    Args:
        path: a model from pixel_values [batch, 3, height, width] to logits.
        resolution: height and width, where the file leaves them open.

    Raises:
        UserError: an operator that is not known here, an operator that runs in float, an open height or width, or a
            resolution that is not the file's: its padding is made for its own.
    """
    return Reader(read_model(path), path.name, resolution).graph()


class Reader:
    """Walks the nodes of a QDQ model once."""

    def __init__(self, model: ModelProto, name: str, resolution: int | None) -> None:
        self.file = name
        self.model = with_sizes(model, resolution, name)
        self.constants = constant_values(self.model)
        self.readers = readers_of(self.model)
        self.producers = {output: node for node in self.model.graph.node for output in node.output}
        self.outputs = {entry.name for entry in self.model.graph.output}
        self.shapes = inferred_shapes(self.model)
        self.quantization: dict[str, Quantization] = {}
        self.widths: dict[str, int] = {}
        self.parameters: dict[str, Parameters] = {}
        self.integer_of: dict[str, str] = {}  # a float tensor -> the integer tensor that stands for it
        self.fused: set[str] = set()

    def graph(self) -> IntegerGraph:
        (entry,) = self.model.graph.input
        self.follow(entry.name)
        first = self.integer_of[entry.name]
        operations = tuple(self.operations())
        if not operations or self.model.graph.output[0].name not in self.integer_of:
            raise UserError(f"{self.file}: no integer operation leads to {self.model.graph.output[0].name}")
        last = self.integer_of[self.model.graph.output[0].name]
        shapes = {name: self.shapes[name] for name in {first} | {operation.output for operation in operations}}
        return IntegerGraph(
            first, last, operations, shapes, self.widths, frozenset(), self.quantization, self.parameters
        )

    def operations(self) -> Iterator[Operation]:
        for node in self.model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant") or node.output[0] in self.fused:
                continue
            if node.op_type not in (*KINDS, *VIEWS):
                raise UserError(
                    f"{self.file}: the operator {node.op_type} ({node.name or node.output[0]}) is not one that is "
                    f"planned for a microcontroller; known are {', '.join((*KINDS, *VIEWS))}"
                )
            source = self.source(node, 0)
            if node.op_type in VIEWS and self.is_same_view(node, source):
                continue
            yield self.operation(node, source)

    def operation(self, node: NodeProto, source: str) -> Operation:
        inputs = (source, self.source(node, 1)) if node.op_type == "Add" else (source,)
        name = node.name or node.output[0]
        weighted = node.op_type in ("Conv", "Gemm")
        found = self.weights(node) if weighted else Parameters()
        end, (low, high) = self.end(node)
        self.parameters[name] = replace(found, low=low, high=high)
        output = self.follow(end)
        settings: dict[str, Any] = {}
        if node.op_type in ("Conv", "MaxPool"):
            settings = window_settings(node, self.file)
        if found.weight is not None:
            elements, channels = found.weight.size, len(found.weight)
            settings |= {"macs_per_value": elements // channels, "flash": elements + 8 * channels}
        kind = "Clip" if node.op_type in ("Relu", *VIEWS) else node.op_type  # a view under another scale
        return Operation(kind, name, inputs, output, **settings)

    def source(self, node: NodeProto, index: int) -> str:
        """The integer tensor behind an input."""
        name = node.input[index]
        producer = self.producers.get(name)
        if producer is not None and producer.op_type == "DequantizeLinear" and producer.input[0] in self.quantization:
            name = producer.input[0]
        elif name not in self.integer_of or self.integer_of[name] == name:
            raise UserError(
                f"{self.file}: {node.op_type} ({node.name or node.output[0]}) runs in float: its input {name} is not "
                "dequantized from an integer tensor; give a static int8 QDQ model"
            )
        return self.integer_of.get(name, name)

    def follow(self, name: str) -> str:
        """Note how a float tensor is quantized behind its operation; the graph's output may stay float."""
        quantizers = [node for node in self.readers.get(name, []) if node.op_type == "QuantizeLinear"]
        others = [node for node in self.readers.get(name, []) if node.op_type != "QuantizeLinear"]
        if name in self.outputs or not quantizers:
            if name not in self.outputs or others:
                raise UserError(f"{self.file}: {name} is not quantized: its readers run in float")
            self.integer_of[name], self.widths[name] = name, 4
            return name
        found = [self.constant_quantization(node) for node in quantizers]
        if others or any(item != found[0] for item in found):
            raise UserError(f"{self.file}: {name} is read both in float and in integers, or in two scales")
        integer = quantizers[0].output[0]
        self.quantization[integer] = found[0]
        self.integer_of[name] = integer
        self.shapes[integer] = self.shapes[name]
        for node in quantizers:
            self.quantization[node.output[0]] = found[0]
            self.integer_of[node.output[0]] = integer
            for reader in self.readers.get(node.output[0], []):
                self.integer_of[reader.output[0]] = integer  # its DequantizeLinear, perhaps the graph's output
        return integer

    def constant_quantization(self, node: NodeProto) -> Quantization:
        scale, zero_point = self.constants[node.input[1]], self.constants[node.input[2]]
        if scale.size != 1:
            raise UserError(f"{self.file}: {node.input[0]} is an activation with a scale for each channel")
        return Quantization(float(scale.item()), int(zero_point.item()), zero_point.dtype)

    def end(self, node: NodeProto) -> tuple[str, tuple[float, float]]:
        """The float tensor behind an operation and the ReLU or Clip that is fused to it, and their bounds."""
        readers = self.readers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip") and node.output[0] not in self.outputs:
            self.fused.add(readers[0].output[0])
            return readers[0].output[0], self.bounds(readers[0])
        return node.output[0], self.bounds(node)

    def bounds(self, node: NodeProto) -> tuple[float, float]:
        if node.op_type == "Relu":
            return 0.0, np.inf
        if node.op_type != "Clip":
            return -np.inf, np.inf
        low, high = ([*node.input[1:3], "", ""])[:2]
        return (
            float(self.constants[low].item()) if low else -np.inf,
            float(self.constants[high].item()) if high else np.inf,
        )

    def is_same_view(self, node: NodeProto, source: str) -> bool:
        """Whether a Flatten keeps scale and zero point; then it is no operation at all."""
        output = self.follow(node.output[0])
        if self.quantization.get(output) != self.quantization[source]:
            return False
        for name, integer in list(self.integer_of.items()):
            if integer == output:
                self.integer_of[name] = source
        return True

    def weights(self, node: NodeProto) -> Parameters:
        weight, scale = self.dequantized(node, 1)
        if node.op_type == "Gemm":
            settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            if not settings.get("transB"):
                weight = np.ascontiguousarray(weight.T)
            weight = weight[:, :, None, None]
        bias = np.zeros(len(weight), np.float32)
        if len(node.input) > 2:
            name = node.input[2]
            if name in self.constants:
                bias = self.constants[name]
            else:
                integers, bias_scale = self.dequantized(node, 2)
                bias = integers * bias_scale.astype(np.float64)  # float32 would not hold all of int32
        return Parameters(weight, np.broadcast_to(scale, (len(weight),)), bias)

    def dequantized(self, node: NodeProto, index: int) -> tuple[Array, Array]:
        """Integers, counted from their zero point, and scale of a constant behind a DequantizeLinear."""
        producer = self.producers.get(node.input[index])
        if producer is None or producer.op_type != "DequantizeLinear" or producer.input[0] not in self.constants:
            raise UserError(
                f"{self.file}: the weights of {node.op_type} ({node.name or node.output[0]}) are not int8 constants"
            )
        integers = self.constants[producer.input[0]]
        zero_points = self.constants[producer.input[2]] if len(producer.input) > 2 else np.zeros((), integers.dtype)
        if np.any(zero_points):  # a microcontroller stores what unsigned_weights.py raised as int8 again
            axis = next((attribute.i for attribute in producer.attribute if attribute.name == "axis"), 1)
            shape = [-1 if place == axis and zero_points.size > 1 else 1 for place in range(integers.ndim)]
            integers = (integers.astype(np.int32) - zero_points.reshape(shape).astype(np.int32)).astype(np.int8)
        return integers, np.asarray(self.constants[producer.input[1]], np.float32)


def window_settings(node: NodeProto, file: str) -> dict[str, Any]:
    """kernel, stride, dilation, pads and group from a Conv's or a MaxPool's attributes."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if found.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or len(found["kernel_shape"]) != 2:
        raise UserError(f"{file}: {node.op_type} ({node.name}): only two-dimensional windows with pads are known")
    if found.get("ceil_mode"):
        raise UserError(f"{file}: {node.op_type} ({node.name}): ceil_mode is not known")
    return {
        "kernel": tuple(found["kernel_shape"]),
        "stride": tuple(found.get("strides", (1, 1))),
        "dilation": tuple(found.get("dilations", (1, 1))),
        "pads": tuple(found.get("pads", (0, 0, 0, 0))),
        "group": found.get("group", 1),
    }


def with_sizes(model: ModelProto, resolution: int | None, file: str) -> ModelProto:
    """One image of a known size at the input."""
    if len(model.graph.input) != 1:
        raise UserError(f"{file}: a network with one input, pixel_values, can be planned, this one has others")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if len(dims) != 4:
        raise UserError(f"{file}: pixel_values must be [batch, channels, height, width]")
    dims[0].dim_value = 1
    for dim in dims[2:]:
        if resolution is not None and dim.dim_value not in (0, resolution):
            raise UserError(f"{file} was exported for {dim.dim_value} pixels; export it again for {resolution}")
        if dim.dim_value < 1 and resolution is None:
            raise UserError(f"{file}: height and width are open; say for which resolution it is to be planned")
        dim.dim_value = dim.dim_value or resolution
    del model.graph.value_info[:]  # inferred at another size
    for dim in model.graph.output[0].type.tensor_type.shape.dim[:1]:
        dim.dim_value = 1
    return model


def inferred_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape without the batch."""
    inferred = onnx.shape_inference.infer_shapes(model)
    entries = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {
        entry.name: tuple(dim.dim_value for dim in entry.type.tensor_type.shape.dim)[1:]
        for entry in entries
        if entry.type.HasField("tensor_type")
    }
