"""The process that is measured is the one a lean server would run, in the session that is timed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfcompress.formats.memory import fresh_process

SIDE, LAYERS = 1024, 12  # 12.6 MB of int8 weights, 50 MB if they unfold to float

SERVE = """
import json, sys
from pathlib import Path
from hfcompress.formats import memory
found = memory.serve_onnx(Path(sys.argv[1]), 32, 1)
heavy = {"torch", "transformers", "datasets", "evaluate", "sklearn", "scipy"}
print(json.dumps([found, sorted(heavy & {name.split(".")[0] for name in sys.modules})]))
"""

SESSION = """
import sys
from pathlib import Path
import numpy as np
from hfcompress.formats.memory import rss_mb
from hfcompress.formats.runtimes.sessions import onnx_session
import onnxruntime
bare = rss_mb()
file, side, ours = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "ours"
session = onnx_session(file, 1) if ours else onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones((4, side), np.float32)})
print(rss_mb() - bare)
"""


def python(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_an_onnx_model_is_served_without_torch(exported: Path) -> None:
    import json

    found, heavy = json.loads(python(SERVE, exported))
    assert heavy == []
    assert found["peak_rss_mb"] >= found["bare_rss_mb"] > 0


def test_the_parent_hears_what_the_process_measured(exported: Path) -> None:
    found = fresh_process(exported, 32, 1)
    assert set(found) == {"peak_rss_mb", "bare_rss_mb", "load_ms"}
    assert found["peak_rss_mb"] >= found["bare_rss_mb"] > 0
    assert found["load_ms"] > 0


def test_a_fork_measures_what_a_process_of_its_own_does(tiny_model: Path) -> None:
    """The tests' own way; of the imports, which a fork has already, only what it touches is counted."""
    from hfcompress.formats import memory

    assert memory.fresh_process is not fresh_process
    alone, forked = fresh_process(tiny_model, 32, 1), memory.fresh_process(tiny_model, 32, 1)
    assert set(alone) == set(forked)
    assert forked["peak_rss_mb"] >= forked["bare_rss_mb"] > 0


def test_a_model_that_does_not_run_is_an_error_not_a_number(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RuntimeError, match="failed"):
        fresh_process(tmp_path, 32, 1)


def test_symmetric_int8_weights_stay_int8_in_memory(tmp_path: Path) -> None:
    """Without the session option that the timed session has, ONNX Runtime keeps a float copy of each."""
    onnx.save(symmetric_graph(), tmp_path / "model.onnx")
    ours, plain = (float(python(SESSION, tmp_path / "model.onnx", SIDE, whose)) for whose in ("ours", "plain"))
    assert ours < 0.9 * plain  # 0.65 where the kernel takes no pages back meanwhile


def test_memory_is_measured_in_the_session_that_is_timed(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    from hfcompress.formats import memory
    from hfcompress.formats.runtimes import sessions

    opened: list[Path] = []
    original = sessions.onnx_session
    monkeypatch.setattr(sessions, "onnx_session", lambda path, threads: opened.append(path) or original(path, threads))
    memory.serve_onnx(exported, 32, 1)
    assert opened == [exported / "model.onnx"]


def symmetric_graph() -> onnx.ModelProto:
    """Linear layers as TensorRT's form has them: int8 weights and activations, zero point 0."""
    rng = np.random.default_rng(0)
    weights = [rng.integers(-127, 127, (SIDE, SIDE)).astype(np.int8) for _ in range(LAYERS)]
    tensors = [numpy_helper.from_array(np.array(0.05, np.float32), "s"), numpy_helper.from_array(np.int8(0), "z")]
    nodes, x = [], "x"
    for i, weight in enumerate(weights):
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes += [
            helper.make_node("QuantizeLinear", [x, "s", "z"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"a{i}"]),
            helper.make_node("DequantizeLinear", [f"w{i}", "s", "z"], [f"b{i}"]),
            helper.make_node("MatMul", [f"a{i}", f"b{i}"], [f"y{i}"]),
        ]
        x = f"y{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIDE]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "linears", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
