"""A click model as ONNX, node by node: the lookups of its tables, and its towers. Nothing here needs torch."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hfcompress.architectures.click_inputs import LABELS
from hfcompress.architectures.click_spec import tower_layers
from hfcompress.formats.onnx_tables import MICROSOFT, Lookup, StoredTable, known_ids, look_up
from hfcompress.formats.unsigned_weights import store_unsigned

OPSET, IR_VERSION = 18, 8

Array = np.ndarray[Any, Any]


def write_click_graph(
    config: dict[str, Any], tables: dict[str, StoredTable], towers: dict[str, Array], path: Path
) -> None:
    """Write a graph: ids [batch] int64 by column and dense [batch, features] in, logits [batch, 2] out.

    Args:
        config: of the model's config.json.
        tables: by column.
        towers: weight [out, in] and bias [out] of every layer, as LAYER.weight and LAYER.bias; of int8 towers the
            weight is int8 (and stored as uint8), and LAYER.weight_scale [out], LAYER.input_scale and
            LAYER.input_zero_point (uint8) stand beside it.
    """
    onnx.save(click_graph(config, tables, towers), str(path))


def click_graph(config: dict[str, Any], tables: dict[str, StoredTable], towers: dict[str, Array]) -> ModelProto:
    """As `write_click_graph` writes it."""
    nodes, tensors, stacked = list[NodeProto](), list[TensorProto](), []
    for name, rows in config["columns"].items():
        graph = Lookup(f"tables.{name}")
        vector = look_up(graph, tables[name], known_ids(graph, name, rows, config["unknown"]))
        stacked.append(graph.node("Unsqueeze", vector, graph.number([1])))
        nodes += graph.nodes
        tensors += graph.tensors
    graph = Lookup("towers")
    add_towers(graph, config, towers, graph.node("Concat", *stacked, axis=1))
    inputs = [helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["batch", config["features"]])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"]) for name in config["columns"]]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])]
    tensors += graph.tensors + [numpy_helper.from_array(array, name) for name, array in towers.items()]
    made = helper.make_graph(nodes + graph.nodes, "clicks", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)
    store_unsigned(model)
    return model


def add_towers(graph: Lookup, config: dict[str, Any], towers: dict[str, Array], vectors: str) -> None:
    """As click_model.Towers: from "dense" and vectors [batch, columns, dim] to "logits" [batch, 2]."""
    layers, found = list(tower_layers(config)), "dense"
    for name in [layer for layer in layers if layer.startswith("bottom.")]:
        found = graph.node("Relu", linear(graph, towers, name, found))
    every = graph.node("Concat", graph.node("Unsqueeze", found, graph.number([1])), vectors, axis=1)
    products = graph.node("MatMul", every, graph.node("Transpose", every, perm=[0, 2, 1]))
    count = len(config["columns"]) + 1
    pairs = graph.number([a * count + b for a, b in combinations(range(count), 2)])
    picked = graph.node("Gather", graph.node("Flatten", products, axis=1), pairs, axis=1)
    found = graph.node("Concat", picked, graph.node("Flatten", every, axis=1), axis=1)
    *hidden, last = [layer for layer in layers if layer.startswith("top.")]
    for name in hidden:
        found = graph.node("Relu", linear(graph, towers, name, found))
    linear(graph, towers, last, found)
    graph.nodes[-1].output[0] = "logits"


def linear(graph: Lookup, towers: dict[str, Array], name: str, x: str) -> str:
    """x W' + b; in int8 both are quantized and dequantized, which onnxruntime turns into an integer product."""
    weight = f"{name}.weight"
    if f"{name}.input_scale" in towers:
        quantized = [f"{name}.input_scale", f"{name}.input_zero_point"]
        x = graph.node("DequantizeLinear", graph.node("QuantizeLinear", x, *quantized), *quantized)
        zero_point = graph.tensor(f"{name}.weight_zero_point", np.zeros(len(towers[weight]), dtype=np.int8))
        weight = graph.node("DequantizeLinear", weight, f"{name}.weight_scale", zero_point, axis=0)
    return graph.node("Gemm", x, weight, f"{name}.bias", transB=1)
