"""TensorRT's documented rules for Q/DQ graphs, checked without a GPU: what its parser refuses, or cannot fuse.

Sources, all in NVIDIA's TensorRT documentation:
[1] "Explicit Quantization" (inference library), sections "Quantized Weights", "ONNX Support" and
    "Q/DQ Layer-Placement Recommendations";
[2] C++ API reference of IQuantizeLayer and IDequantizeLayer;
[3] "Working with Quantized Types", supported data types.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from hfcompress.errors import UserError
from hfcompress.formats.onnx_export import Array, constant_values, readers_of

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FUSED = ("BatchNormalization", "Relu", "Clip")
LEAST_OPSET = 13


@dataclass(frozen=True)
class Rule:
    """A name, what it demands, and where it is documented."""

    name: str
    text: str
    source: str


OPSET = Rule("opset", "QuantizeLinear with an axis is known from opset 13 on", "[1] ONNX Support")
ZERO_POINT = Rule("zero point", "quantization is symmetric: every zero point is 0", "[2] zeroPt, [3]")
TYPES = Rule("types", "quantized tensors are int8, also those that are dequantized (no uint8, no int32 bias)", "[3]")
SCALE = Rule("scale", "scales are positive constants: one of an activation, one or one a channel of a weight", "[2]")
AXIS = Rule("axis", "weights have scales per output channel: axis 0 of a Conv, 1 of a ConvTranspose", "[2]")
CONSTANT = Rule("constant weights", "quantized weights are constants behind a DequantizeLinear", "[1] Weights")
PAIRS = Rule("pairs", "an int8 tensor is read by DequantizeLinear alone", "[1] Q/DQ processing, [3]")
INPUTS = Rule("inputs", "all inputs of a weighted operator are quantized, or none", "[1] Placement 1")
FUSION = Rule("fusion", "no Q/DQ between an operator and its BatchNormalization, ReLU or Clip", "[1] Placement 3")
RESIDUAL = Rule("residual", "a residual that a convolution is added to is quantized", "[1] Placement 4")
RULES = (OPSET, ZERO_POINT, TYPES, SCALE, AXIS, CONSTANT, PAIRS, INPUTS, FUSION, RESIDUAL)


@dataclass(frozen=True)
class Violation:
    """A rule, and the node that breaks it."""

    rule: Rule
    node: str

    def __str__(self) -> str:
        return f"{self.node} breaks TensorRT's rule of {self.rule.name}: {self.rule.text}"


def require(model: ModelProto, file: str) -> None:
    """Refuse a graph that TensorRT would not take, or not run as it is meant.

    Raises:
        UserError: with the first rule that is broken, the node, and how many more are.
    """
    found = list(violations(model))
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise UserError(f"{file} has no QuantizeLinear: it is no explicitly quantized model")
    if found:
        more = f"; {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(f"{file}: {found[0]}{more}")


def violations(model: ModelProto) -> Iterator[Violation]:
    """Every node that breaks a rule, rule by rule."""
    graph = Graph(model)
    if next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")) < LEAST_OPSET:
        yield Violation(OPSET, "the model")
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from graph.quantizer(node)
        elif graph.reads_integers(node):
            yield Violation(PAIRS, label(node))
        if node.op_type in WEIGHTED:
            yield from graph.weighted(node)
        elif node.op_type in FUSED and graph.weighted_behind_pair(node.input[0]):
            yield Violation(FUSION, label(node))
        elif node.op_type == "Add" and graph.is_float_residual(node):
            yield Violation(RESIDUAL, label(node))


class Graph:
    """Who writes and who reads what."""

    def __init__(self, model: ModelProto) -> None:
        self.constants = constant_values(model)
        self.readers = readers_of(model)
        self.producers = {output: node for node in model.graph.node for output in node.output}

    def quantizer(self, node: NodeProto) -> Iterator[Violation]:
        """Zero point, types and scale of a QuantizeLinear or DequantizeLinear."""
        scale = self.constants.get(node.input[1])
        zero_point = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if len(node.input) > 2 and (zero_point is None or np.any(zero_point)):
            yield Violation(ZERO_POINT, label(node))
        kind = zero_point.dtype if zero_point is not None else self.default_type(node)
        if kind != np.int8:
            yield Violation(TYPES, label(node))
        weight = self.is_weight(node)
        if scale is None or np.any(scale <= 0) or (scale.size > 1 and not weight):
            yield Violation(SCALE, label(node))
        if node.op_type == "QuantizeLinear" and any(
            reader.op_type != "DequantizeLinear" for reader in self.readers.get(node.output[0], [])
        ):
            yield Violation(PAIRS, label(node))

    def default_type(self, node: NodeProto) -> np.dtype[np.generic]:
        """Without a zero point: a constant's own type; QuantizeLinear makes uint8."""
        constant = self.constants.get(node.input[0])
        return constant.dtype if node.op_type == "DequantizeLinear" and constant is not None else np.dtype(np.uint8)

    def is_weight(self, node: NodeProto) -> bool:
        """Whether a constant is quantized or dequantized here."""
        if node.op_type == "DequantizeLinear" and (producer := self.producers.get(node.input[0])) is not None:
            node = producer if producer.op_type == "QuantizeLinear" else node
        return node.input[0] in self.constants

    def reads_integers(self, node: NodeProto) -> bool:
        """Whether a node other than Q and DQ reads int8 or uint8, as a Gather of an int8 table does."""
        return any(
            name in self.constants and self.constants[name].dtype in (np.int8, np.uint8) for name in node.input if name
        ) or (node.op_type == "Cast" and self.reads_integers_of(node.input[0]))

    def reads_integers_of(self, name: str) -> bool:
        producer = self.producers.get(name)
        return producer is not None and producer.op_type == "Gather" and self.reads_integers(producer)

    def dequantizer(self, name: str) -> NodeProto | None:
        producer = self.producers.get(name)
        if producer is not None and producer.op_type == "Transpose":  # of a weight, as torch exports a Linear
            producer = self.producers.get(producer.input[0])
        return producer if producer is not None and producer.op_type == "DequantizeLinear" else None

    def weighted(self, node: NodeProto) -> Iterator[Violation]:
        """Both inputs quantized or none, the weights constant, their scales along the output channels."""
        data, weight = (self.dequantizer(name) for name in node.input[:2])
        if (data is None) != (weight is None):
            yield Violation(INPUTS, label(node))
        if weight is None or data is None:
            return
        if not self.is_weight(weight):
            if node.op_type != "MatMul":  # of two activations, as in attention
                yield Violation(CONSTANT, label(node))
            return
        if self.constants[weight.input[1]].size > 1 and self.axis(weight) != self.wanted_axis(node):
            yield Violation(AXIS, label(weight))

    def axis(self, dequantize: NodeProto) -> int:
        rank = self.stored(dequantize).ndim
        given = next((attribute.i for attribute in dequantize.attribute if attribute.name == "axis"), 1)
        return int(given % rank)

    def stored(self, dequantize: NodeProto) -> Array:
        """The constant that is dequantized, perhaps behind a QuantizeLinear."""
        name = dequantize.input[0]
        return self.constants[name if name in self.constants else self.producers[name].input[0]]

    def wanted_axis(self, node: NodeProto) -> int:
        transposed = self.producers[node.input[1]].op_type == "Transpose"
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Conv" or (node.op_type == "Gemm" and settings.get("transB")):
            return 0
        return 0 if node.op_type == "MatMul" and transposed else 1

    def weighted_behind_pair(self, name: str) -> bool:
        """Whether a tensor is a weighted operator's output that was quantized and dequantized."""
        dequantize = self.producers.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return False
        quantize = self.producers.get(dequantize.input[0])
        return quantize is not None and quantize.op_type == "QuantizeLinear" and self.is_weighted(quantize.input[0])

    def is_weighted(self, name: str) -> bool:
        node = self.producers.get(name)
        return node is not None and node.op_type in WEIGHTED and self.dequantizer(node.input[1]) is not None

    def is_float_residual(self, node: NodeProto) -> bool:
        """Whether a quantized convolution's output is added to a tensor that is not quantized (and no constant)."""
        if any(name in self.constants for name in node.input):
            return False  # a bias
        convolutions = [name for name in node.input if self.is_convolved(name)]
        return bool(convolutions) and not any(self.dequantizer(name) for name in node.input)

    def is_convolved(self, name: str) -> bool:
        producer = self.producers.get(name)
        return producer is not None and producer.op_type in ("Conv", "ConvTranspose") and self.is_weighted(name)


def label(node: NodeProto) -> str:
    return f"{node.op_type} ({node.name or node.output[0]})"


def trtexec(model: ModelProto, file: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """The command that builds an engine, for TensorRT 11, where every network is strongly typed.

    Args:
        shapes: of the inputs whose axes are open.
    """
    opened = {
        entry.name for entry in model.graph.input if any(dim.dim_value < 1 for dim in entry.type.tensor_type.shape.dim)
    }
    given = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items() if name in opened)
    line = f"trtexec --onnx={file} --saveEngine={file.removesuffix('.onnx')}.engine"
    return f"{line} --shapes={given}" if given else line


def is_symmetric(model: ModelProto) -> bool:
    """Whether activations are int8 around 0: what QAT calls the target tensorrt."""
    constants = constant_values(model)
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return all(len(q.input) > 2 and constants[q.input[2]].dtype == np.int8 for q in quantizers)
