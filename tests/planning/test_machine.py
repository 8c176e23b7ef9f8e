"""The timed parts are what a model runs: the same arithmetic, integer kernels in int8, the predictor's session."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from hfcompress.formats import onnx_export
from hfcompress.formats.runtimes import sessions
from hfcompress.planning import machine
from hfcompress.planning.machine import Graph, Machine, embeddings_graph, layer_graph

HIDDEN, HEADS, INTERMEDIATE = 64, 4, 96


def run(graph: Graph, x: np.ndarray, folder: Path) -> np.ndarray:
    path = graph.save(folder / "part.onnx", x.ndim)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_the_layer_computes_what_a_bert_layer_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=HIDDEN, num_attention_heads=HEADS, intermediate_size=INTERMEDIATE)
    config._attn_implementation = "eager"
    layer = BertLayer(config).eval()
    attention = layer.attention.self
    graph = layer_graph(HIDDEN, HEADS, INTERMEDIATE, integer=False)
    for name, linear in {
        "query": attention.query,
        "key": attention.key,
        "value": attention.value,
        "output": layer.attention.output.dense,
        "wide": layer.intermediate.dense,
        "narrow": layer.output.dense,
    }.items():
        graph.values[f"{name}_weight"] = np.ascontiguousarray(linear.weight.detach().numpy().T)
        graph.values[f"{name}_bias"] = linear.bias.detach().numpy()
    x = torch.randn(2, 7, HIDDEN)
    with torch.inference_mode():
        made = layer(x)
    expected = (made[0] if isinstance(made, tuple) else made).numpy()  # a tuple by transformers below 5
    # transformers' LayerNorm has epsilon 1e-12, ONNX's default is 1e-5: no difference in time
    np.testing.assert_allclose(run(graph, x.numpy(), tmp_path), expected, atol=1e-4)


def test_all_six_linear_layers_of_the_int8_layer_run_in_integer_kernels(tmp_path: Path) -> None:
    integer = layer_graph(HIDDEN, HEADS, INTERMEDIATE, integer=True).save(tmp_path / "int8.onnx", 3)
    floating = layer_graph(HIDDEN, HEADS, INTERMEDIATE, integer=False).save(tmp_path / "fp32.onnx", 3)
    assert onnx_export.integer_kernels(integer) == 6
    assert onnx_export.integer_kernels(floating) == 0


def test_embeddings_have_the_hidden_size(tmp_path: Path) -> None:
    assert run(embeddings_graph(HIDDEN), np.zeros((2, 5), np.float32), tmp_path).shape == (2, 5, HIDDEN)


def test_parts_run_in_the_session_that_models_are_measured_in(monkeypatch: pytest.MonkeyPatch) -> None:
    threads_seen = []
    original = sessions.onnx_session

    def seen(path: Path, threads: int) -> object:
        threads_seen.append(threads)
        return original(path, threads)

    monkeypatch.setattr(sessions, "onnx_session", seen)
    monkeypatch.setattr(machine, "CACHE_BYTES", 8_000)
    small = Machine(threads=1)
    assert small.layer_ms(1, 8, HIDDEN, HEADS, INTERMEDIATE, 8) >= 0
    assert small.embeddings_ms(1, 8, HIDDEN) > 0
    assert threads_seen == [1, 1, 1]  # the layer, an empty call, the embeddings


def test_each_part_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def seconds(self: Machine, graph: Graph, shape: tuple[int, ...]) -> float:
        timed.append(shape)
        return 0.001 * len(graph.nodes)

    monkeypatch.setattr(Machine, "_seconds", seconds)
    fast = Machine(threads=1)
    first = fast.layer_ms(2, 16, HIDDEN, HEADS, INTERMEDIATE, 32)
    assert fast.layer_ms(2, 16, HIDDEN, HEADS, INTERMEDIATE, 32) == first
    assert len(timed) == 2  # the layer and an empty call
    assert fast.layer_ms(2, 16, HIDDEN, HEADS, INTERMEDIATE, 8) != first
    assert timed[0] == (2, 16, HIDDEN)


def test_what_a_call_costs_is_counted_once_a_model_not_once_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "_seconds", lambda self, graph, shape: 0.005 if len(graph.nodes) > 1 else 0.002)
    fast = Machine(threads=1)
    assert fast.layer_ms(1, 8, HIDDEN, HEADS, INTERMEDIATE, 32) == pytest.approx(3)
    assert fast.embeddings_ms(1, 8, HIDDEN) == pytest.approx(5)
