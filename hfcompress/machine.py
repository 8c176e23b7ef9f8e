"""How fast this machine runs the parts of an encoder: each part as a tiny ONNX graph, timed in onnxruntime.

What is timed is what will run: the same kernels, shapes and threads. So a prediction needs no model of the processor.
"""

import time
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

Node = tuple[str, list[str], str, dict[str, Any]]  # operator, inputs, output, attributes

RUNS = 9
SLOWEST_S = 0.25  # a part that takes longer is timed fewer times


class Machine:
    """Milliseconds of the parts of a layer, measured when first asked for.

    Args:
        threads: intra-op threads; None for all cores.
    """

    def __init__(self, threads: int | None = None) -> None:
        from hfcompress.evaluation.latency import default_threads

        self.threads = threads or default_threads()
        self.linear_ms = lru_cache(maxsize=None)(self._linear_ms)
        self.attention_ms = lru_cache(maxsize=None)(self._attention_ms)
        self.gelu_ms = lru_cache(maxsize=None)(self._gelu_ms)
        self.norm_ms = lru_cache(maxsize=None)(self._norm_ms)

    def _linear_ms(self, tokens: int, inputs: int, outputs: int, bits: int) -> float:
        """A Linear [tokens, inputs] -> [tokens, outputs] with bias; in 8 bits with the quantization of its input."""
        weight = np.random.default_rng(0).normal(size=(inputs, outputs)).astype(np.float32)
        bias = np.zeros(outputs, np.float32)
        if bits == 32:
            nodes: list[Node] = [("MatMul", ["x", "w"], "y", {}), ("Add", ["y", "b"], "z", {})]
            return self._time(nodes, {"w": weight, "b": bias}, {"x": (1, tokens, inputs)})
        values = {
            "w": np.clip(np.round(weight * 30), -127, 127).astype(np.int8),
            "b": bias,
            "ws": np.full(outputs, 1 / 30, np.float32),
            "wz": np.zeros(outputs, np.int8),
            "s": np.array(0.03, np.float32),
            "z0": np.array(128, np.uint8),
        }
        nodes = [
            ("QuantizeLinear", ["x", "s", "z0"], "q", {}),
            ("DequantizeLinear", ["q", "s", "z0"], "d", {}),
            ("DequantizeLinear", ["w", "ws", "wz"], "wd", {"axis": 1}),
            ("MatMul", ["d", "wd"], "y", {}),
            ("Add", ["y", "b"], "z", {}),
        ]
        return self._time(nodes, values, {"x": (1, tokens, inputs)})

    def _attention_ms(self, tokens: int, heads: int, head_size: int) -> float:
        """Scores, softmax and contexts of all heads, with the transposes around them."""
        values: dict[str, Any] = {
            "shape": np.array([1, tokens, heads, head_size]),
            "back": np.array([1, tokens, heads * head_size]),
            "scale": np.array(head_size**-0.5, np.float32),
            "mask": np.zeros((1, 1, 1, tokens), np.float32),
        }
        nodes: list[Node] = []
        for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            nodes += [
                ("Reshape", [name, "shape"], f"{name}r", {}),
                ("Transpose", [f"{name}r"], f"{name}t", {"perm": order}),
            ]
        nodes += [
            ("MatMul", ["qt", "kt"], "a", {}),
            ("Mul", ["a", "scale"], "b", {}),
            ("Add", ["b", "mask"], "c", {}),
            ("Softmax", ["c"], "p", {"axis": -1}),
            ("MatMul", ["p", "vt"], "o", {}),
            ("Transpose", ["o"], "ot", {"perm": [0, 2, 1, 3]}),
            ("Reshape", ["ot", "back"], "z", {}),
        ]
        return self._time(nodes, values, dict.fromkeys("qkv", (1, tokens, heads * head_size)))

    def _gelu_ms(self, tokens: int, size: int) -> float:
        values = {"r": np.array(2**0.5, np.float32), "one": np.array(1, np.float32), "half": np.array(0.5, np.float32)}
        nodes: list[Node] = [
            ("Div", ["x", "r"], "a", {}),
            ("Erf", ["a"], "e", {}),
            ("Add", ["e", "one"], "f", {}),
            ("Mul", ["x", "f"], "g", {}),
            ("Mul", ["g", "half"], "z", {}),
        ]
        return self._time(nodes, values, {"x": (1, tokens, size)})

    def _norm_ms(self, tokens: int, size: int) -> float:
        """The residual sum and its LayerNorm."""
        values = {"w": np.ones(size, np.float32), "b": np.zeros(size, np.float32)}
        nodes: list[Node] = [("Add", ["x", "y"], "s", {}), ("LayerNormalization", ["s", "w", "b"], "z", {"axis": -1})]
        return self._time(nodes, values, {"x": (1, tokens, size), "y": (1, tokens, size)})

    @cached_property
    def call_ms(self) -> float:
        """What a call costs beside its kernels."""
        return self._seconds([("Identity", ["x"], "z", {})], {}, {"x": (1, 1)}) * 1e3

    def _time(self, nodes: list[Node], values: dict[str, Any], inputs: dict[str, tuple[int, ...]]) -> float:
        return max(0.0, self._seconds(nodes, values, inputs) * 1e3 - self.call_ms)

    def _seconds(self, nodes: list[Node], values: dict[str, Any], inputs: dict[str, tuple[int, ...]]) -> float:
        """Median time of a graph: nodes are (operator, inputs, output, attributes), the last output is "z"."""
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            [helper.make_node(kind, reads, [output], **attributes) for kind, reads, output, attributes in nodes],
            "part",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"] * len(shape))
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in values.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            onnx.ModelProto.SerializeToString(model), options, providers=["CPUExecutionProvider"]
        )
        feed = {name: np.random.default_rng(1).normal(size=shape).astype(np.float32) for name, shape in inputs.items()}
        times: list[float] = []
        for run in range(RUNS + 2):
            begun = time.perf_counter()
            session.run(None, feed)
            if run >= 2:  # the first calls allocate
                times.append(time.perf_counter() - begun)
            if sum(times) > SLOWEST_S:
                break
        return float(np.median(times))
