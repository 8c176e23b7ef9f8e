"""How fast this machine runs an encoder: one layer as a small ONNX graph, timed in onnxruntime.

What is timed is what will run: the same operators, shapes, threads and session options, fused and given to kernels by
onnxruntime itself. So a prediction needs no model of the processor.
"""

import time
from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hfcompress.evaluation.latency import default_threads

Array = np.ndarray[Any, Any]

WARM_UP = 2
RUNS = 9
LONGEST_S = 0.25  # of timed runs; a slower graph is run fewer times
CACHE_BYTES = 64_000_000  # more than a last-level cache: read between runs, so that weights come from memory
TABLE_ROWS = 512


class Machine:
    """Milliseconds of an encoder's parts, each measured when first asked for.

    Args:
        threads: intra-op threads; None for all cores.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or default_threads()
        self._known: dict[tuple[Any, ...], float] = {}

    def layer_ms(
        self,
        batch: int,
        tokens: int,
        hidden_size: int,
        heads: int,
        intermediate_size: int,
        bits: int,
        share: float = 1.0,
    ) -> float:
        """One encoder layer on [batch, tokens, hidden_size]; below 32 bits its linear layers are int8 (QDQ).

        A `share` below 1 makes each linear layer two factors with that share of its weights.
        """

        def measure() -> float:
            graph = layer_graph(hidden_size, heads, intermediate_size, bits < 32, share)
            return self._seconds(graph, (batch, tokens, hidden_size))

        key = ("layer", batch, tokens, hidden_size, heads, intermediate_size, bits < 32, share)
        seconds = self._once(key, measure)
        return max(0.0, 1e3 * (seconds - self._call_seconds))

    def embeddings_ms(self, batch: int, tokens: int, hidden_size: int) -> float:
        """Rows gathered and normalized, [batch, tokens] -> [batch, tokens, hidden_size], and the call itself."""
        seconds = self._once(
            ("embeddings", batch, tokens, hidden_size),
            lambda: self._seconds(embeddings_graph(hidden_size), (batch, tokens)),
        )
        return 1e3 * seconds

    def graph_ms(self, key: Hashable, graph: "Graph", shape: tuple[int, ...]) -> float:
        """Any graph on an input of this shape; `key` says which it is, so that it is measured once."""
        return max(0.0, 1e3 * (self._once((key,), lambda: self._seconds(graph, shape)) - self._call_seconds))

    @cached_property
    def _call_seconds(self) -> float:
        """What a call costs beside its kernels."""
        graph = Graph()
        graph.add("Identity", ["x"], "z")
        return self._seconds(graph, (1, 1))

    def _once(self, key: tuple[Any, ...], measure: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]

    def _seconds(self, graph: "Graph", shape: tuple[int, ...]) -> float:
        """Median time of a graph on an input of this shape, its weights not in the cache: other models ran before."""
        from hfcompress.formats.runtimes.sessions import onnx_session

        with TemporaryDirectory() as scratch:
            session = onnx_session(graph.save(Path(scratch) / "part.onnx", len(shape)), self.threads)
        feed = {"x": np.full(shape, 0.5, np.float32)}
        evict = np.ones(CACHE_BYTES // 8)
        times: list[float] = []
        for run in range(WARM_UP + RUNS):
            evict.sum()
            begun = time.perf_counter()
            session.run(None, feed)
            if run >= WARM_UP:  # the first calls allocate
                times.append(time.perf_counter() - begun)
            if sum(times) > LONGEST_S:
                break
        return float(np.median(times))


class Graph:
    """An ONNX graph from the float input "x" to the output "z", node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.values: dict[str, Array] = {}

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def value(self, name: str, array: Array) -> str:
        self.values[name] = array
        return name

    def save(self, path: Path, dimensions: int) -> Path:
        """Write it with all dimensions of the input dynamic: with fixed ones onnxruntime finds no integer kernels."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        names = [f"d{i}" for i in range(dimensions)]
        graph = helper.make_graph(
            self.nodes,
            "part",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, names)],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.values.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
        return path


def layer_graph(hidden_size: int, heads: int, intermediate_size: int, integer: bool, share: float = 1.0) -> Graph:
    """A BERT layer as the exporter writes it: attention, feed-forward, residuals, LayerNorm; weights are constant."""
    graph = Graph()
    read = quantized(graph, "x", integer)
    split = graph.value("split", np.array([0, 0, heads, hidden_size // heads]))
    scale = graph.value("scale", np.array((hidden_size // heads) ** -0.25, np.float32))  # half of it on each side
    for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        rows = linear(graph, name, read, hidden_size, hidden_size, integer, share)
        graph.add("Reshape", [rows, split], f"{name}_heads")
        graph.add("Transpose", [f"{name}_heads"], f"{name}_turned", perm=order)
    graph.add("Mul", ["query_turned", scale], "query_scaled")
    graph.add("Mul", ["key_turned", scale], "key_scaled")
    graph.add("MatMul", ["query_scaled", "key_scaled"], "scores")
    graph.add("Add", ["scores", graph.value("mask", np.zeros((1, 1, 1, 1), np.float32))], "masked")
    graph.add("Softmax", ["masked"], "probabilities", axis=-1)
    graph.add("MatMul", ["probabilities", "value_turned"], "contexts")
    graph.add("Transpose", ["contexts"], "contexts_turned", perm=[0, 2, 1, 3])
    graph.add("Reshape", ["contexts_turned", graph.value("join", np.array([0, 0, hidden_size]))], "joined")
    attended = linear(graph, "output", quantized(graph, "joined", integer), hidden_size, hidden_size, integer, share)
    middle = residual_norm(graph, attended, "x", "middle", hidden_size)
    wide = linear(graph, "wide", quantized(graph, middle, integer), hidden_size, intermediate_size, integer, share)
    active = quantized(graph, gelu(graph, wide), integer)
    narrow = linear(graph, "narrow", active, intermediate_size, hidden_size, integer, share)
    residual_norm(graph, narrow, middle, "z", hidden_size)
    return graph


def embeddings_graph(hidden_size: int) -> Graph:
    """Rows of a table, one added to another, LayerNorm."""
    from onnx import TensorProto

    graph = Graph()
    graph.add("Cast", ["x"], "ids", to=TensorProto.INT64)
    graph.add("Gather", [graph.value("table", np.full((TABLE_ROWS, hidden_size), 0.01, np.float32)), "ids"], "rows")
    residual_norm(graph, "rows", "rows", "z", hidden_size)
    return graph


def quantized(graph: Graph, name: str, integer: bool) -> str:
    """The tensor through QuantizeLinear and DequantizeLinear, as uint8; unchanged in a float graph."""
    if not integer:
        return name
    scale, zero = graph.value("q_scale", np.array(0.03, np.float32)), graph.value("q_zero", np.array(128, np.uint8))
    graph.add("QuantizeLinear", [name, scale, zero], f"{name}_q")
    return graph.add("DequantizeLinear", [f"{name}_q", scale, zero], f"{name}_dq")


def linear(graph: Graph, name: str, read: str, inputs: int, outputs: int, integer: bool, share: float = 1.0) -> str:
    """A Linear [.., inputs] -> [.., outputs] with bias, two factors for a share below 1."""
    if share < 1:
        rank = max(1, round(share * inputs * outputs / (inputs + outputs)))
        read = quantized(graph, product(graph, f"{name}_down", read, inputs, rank, integer), integer)
        inputs = rank
    found = product(graph, name, read, inputs, outputs, integer)
    bias = graph.value(f"{name}_bias", np.zeros(outputs, np.float32))
    return graph.add("Add", [bias, found], f"{name}_sum")


def product(graph: Graph, name: str, read: str, inputs: int, outputs: int, integer: bool) -> str:
    """[.., inputs] times a weight: 8 bits with a scale for each output, or float."""
    if integer:
        weight = graph.add(
            "DequantizeLinear",
            [
                graph.value(f"{name}_uint8", np.full((inputs, outputs), 131, np.uint8)),
                graph.value(f"{name}_scale", np.full(outputs, 0.01, np.float32)),
                graph.value(f"{name}_zero", np.full(outputs, 128, np.uint8)),
            ],
            f"{name}_weight",
            axis=1,
        )
    else:
        weight = graph.value(f"{name}_weight", np.full((inputs, outputs), 0.01, np.float32))
    return graph.add("MatMul", [read, weight], f"{name}_product")


def gelu(graph: Graph, name: str) -> str:
    """x / 2 * (1 + erf(x / sqrt 2)), as the exporter spells it and onnxruntime fuses it."""
    constants = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    root, one, half = (graph.value(key, np.array(number, np.float32)) for key, number in constants.items())
    graph.add("Div", [name, root], "gelu_scaled")
    graph.add("Erf", ["gelu_scaled"], "gelu_erf")
    graph.add("Add", ["gelu_erf", one], "gelu_shifted")
    graph.add("Mul", [name, "gelu_shifted"], "gelu_product")
    return graph.add("Mul", ["gelu_product", half], "gelu")


def residual_norm(graph: Graph, name: str, beside: str, output: str, size: int) -> str:
    """LayerNorm of a sum."""
    weight = graph.value(f"{output}_norm_weight", np.ones(size, np.float32))
    bias = graph.value(f"{output}_norm_bias", np.zeros(size, np.float32))
    graph.add("Add", [name, beside], f"{output}_residual")
    return graph.add("LayerNormalization", [f"{output}_residual", weight, bias], output, axis=-1)
