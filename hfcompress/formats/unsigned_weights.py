"""int8 weights stored as uint8 with a zero point of 128: the same integers, and products that no x86 kernel saturates.

onnxruntime multiplies uint8 activations with int8 weights by vpmaddubsw where the processor has no VNNI: it adds two
products in 16 bits, where 255 * 127 * 2 does not fit (saturation.py computes what comes out). For uint8 weights it
widens both to 16 bits and adds in 32; with VNNI it turns them into int8 again when the model is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

Array = np.ndarray[Any, Any]

OFFSET = 128
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Integer operators: the places of their weight and of its zero point among the inputs.
PLACES = {
    "MatMulInteger": (1, 3),
    "ConvInteger": (1, 3),
    "DynamicQuantizeMatMul": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
    "QLinearMatMul": (3, 5),
    "QLinearConv": (3, 5),
    "QGemm": (3, 5),
}
DEQUANTIZED = (0, 2)  # of DequantizeLinear


@dataclass(frozen=True)
class SignedWeight:
    """An int8 initializer and the nodes that read it as a weight, with the places of weight and zero point in them."""

    name: str
    readers: tuple[tuple[NodeProto, tuple[int, int]], ...]


def store_unsigned(model: ModelProto) -> None:
    """Store every int8 weight of a matrix product or convolution as uint8, 128 added to it and to its zero point.

    A table whose rows are gathered stays int8: no kernel multiplies it. So does a weight that is read in both ways.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    replaced = set()
    for weight in signed_weights(model):
        array = numpy_helper.to_array(tensors[weight.name])
        name = f"{weight.name.removesuffix('_int8')}_uint8"
        model.graph.initializer.append(numpy_helper.from_array(raised(array), name))
        replaced.add(weight.name)
        for number, (node, (at, zero_at)) in enumerate(weight.readers):
            node.input[at] = name
            before = node.input[zero_at] if len(node.input) > zero_at else ""
            replaced.add(before)
            zeros = f"{name}_zero_point" if number == 0 else f"{name}_{number}_zero_point"
            values = raised(zero_points(model, node, before))
            model.graph.initializer.append(numpy_helper.from_array(values, zeros))
            node.input.extend([""] * (zero_at + 1 - len(node.input)))
            node.input[zero_at] = zeros
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in replaced or tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def store_file_unsigned(path: Path) -> None:
    """The same of a model.onnx and, where it has one, the data file beside it."""
    stored = onnx.load(str(path), load_external_data=False)
    places = {entry.value for t in stored.graph.initializer for entry in t.external_data if entry.key == "location"}
    model = onnx.load(str(path))
    store_unsigned(model)
    if not places:
        onnx.save(model, str(path))
        return
    (data,) = places
    (path.parent / data).unlink()  # save_model appends to it
    onnx.save_model(model, str(path), save_as_external_data=True, location=data)


def signed_weights(model: ModelProto) -> list[SignedWeight]:
    """The int8 initializers that are weights of products, in the order of their readers, and nothing else."""
    signed = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, SignedWeight] = {}
    for node in model.graph.node:
        places = DEQUANTIZED if node.op_type == "DequantizeLinear" else PLACES.get(node.op_type)
        name = node.input[places[0]] if places is not None and len(node.input) > places[0] else ""
        if name not in signed or name in found:
            continue
        ways = [places_of(reader, name, readers) for reader in readers[name]]
        if all(way is not None for way in ways):
            pairs = zip(readers[name], ways, strict=True)
            found[name] = SignedWeight(name, tuple((reader, way) for reader, way in pairs if way is not None))
    return list(found.values())


def places_of(node: NodeProto, weight: str, readers: dict[str, list[NodeProto]]) -> tuple[int, int] | None:
    """Where a node reads this weight and its zero point; None of one that does not read it as a weight."""
    if node.op_type == "DequantizeLinear" and node.input[0] == weight:
        return DEQUANTIZED if multiplies(node.output[0], readers) else None
    places = PLACES.get(node.op_type)
    return places if places is not None and node.input[places[0]] == weight else None


def multiplies(name: str, readers: dict[str, list[NodeProto]]) -> bool:
    """Whether products alone read a tensor as their weight, perhaps transposed."""
    found = readers.get(name, [])
    return bool(found) and all(
        (node.op_type in WEIGHTED and node.input[1] == name)
        or (node.op_type == "Transpose" and multiplies(node.output[0], readers))
        for node in found
    )


def zero_points(model: ModelProto, node: NodeProto, name: str) -> Array:
    """The zero points of a weight; where the node names none, zeros: one for each scale of a DequantizeLinear."""
    if name:
        return constant(model, name)
    scale = constant(model, node.input[1]) if node.op_type == "DequantizeLinear" else np.zeros(())
    return np.zeros(scale.shape, np.int8)


def constant(model: ModelProto, name: str) -> Array:
    """The value of an initializer or of a Constant node."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    (node,) = [node for node in model.graph.node if name in node.output]
    (value,) = [attribute.t for attribute in node.attribute if attribute.name == "value"]
    return numpy_helper.to_array(value)


def raised(integers: Array) -> Array:
    """int8 values plus 128, as uint8."""
    return (integers.astype(np.int16) + OFFSET).astype(np.uint8)
