"""A click model as ONNX: its towers traced from torch, the lookups of its tables written node by node before them."""

from pathlib import Path

import torch
from onnx import ModelProto, TensorProto, helper

from hfcompress.click_model import ClickModel, Towers
from hfcompress.embedding_graph import MICROSOFT, Lookup, known_ids, look_up
from hfcompress.onnx_graph import (
    fold_casts,
    fold_integers,
    fold_transposes,
    merge_equal_quantizers,
    without_weights,
    write,
)
from hfcompress.ops.fake_quant import FakeQuantLinear, integer_rows, row_scales

TOWER_INPUTS = ("dense", "vectors")


def export_clicks(network: ClickModel, out: Path) -> None:
    """Write model.onnx: ids [batch] int64 by column and dense [batch, features] in, logits [batch, 2] out."""
    network.eval()
    model = trace_towers(network.towers, network.config["features"], network.config["dim"])
    if network.config.get("int8_towers"):
        layers = {n: m for n, m in network.towers.named_modules() if isinstance(m, FakeQuantLinear)}
        fold_integers(
            model,
            {f"{n}.weight": integer_rows(m.weight).numpy() for n, m in layers.items()},
            {f"{n}.weight": row_scales(m.weight).numpy() for n, m in layers.items()},
        )
        fold_casts(model)
        merge_equal_quantizers(model)
    parameters = {entry.name for entry in model.graph.input} - set(TOWER_INPUTS)
    transposed = fold_transposes(model, parameters)
    used = {name for node in model.graph.node for name in node.input}
    state = network.towers.state_dict()
    del model.graph.input[:]
    model.graph.input.append(
        helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["batch", network.config["features"]])
    )
    add_tables(model, network)
    write(model, {n: (state[n].detach(), n in transposed) for n in sorted(parameters & used)}, out / "model.onnx")


def trace_towers(towers: Towers, features: int, dim: int) -> ModelProto:
    """The graph of the towers, its weights inputs that are named as in their state dict."""
    example = (torch.ones(3, features), torch.ones(3, towers.columns, dim))
    axes = {name: {0: "batch"} for name in (*TOWER_INPUTS, "logits")}
    return without_weights(towers, example, TOWER_INPUTS, axes)


def add_tables(model: ModelProto, network: ClickModel) -> None:
    """Put the lookups before the towers: every column's ids become an input, "vectors" is what they give."""
    nodes, stacked = [], []
    for name, rows in network.columns.items():
        graph = Lookup(f"tables.{name}")
        ids = known_ids(graph, name, rows, network.config["unknown"])
        vector = look_up(graph, network.tables[name], ids)
        stacked.append(graph.node("Unsqueeze", vector, graph.number([1])))
        nodes += graph.nodes
        model.graph.initializer.extend(graph.tensors)
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"]))
    nodes.append(helper.make_node("Concat", stacked, ["vectors"], name="vectors", axis=1))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
