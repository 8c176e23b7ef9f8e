"""What an ONNX file holds: weights count as parameters, scales and zero points do not, and types tell the truth."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hfcompress.formats.size import sizes


def write(folder: Path, weight: np.ndarray) -> Path:
    """One Linear of 6 x 4: per-column scales and zero points beside an integer weight, nothing beside a float one."""
    folder.mkdir()
    tensors, nodes, name = [numpy_helper.from_array(weight, "w")], [], "w"
    if weight.dtype == np.int8:
        tensors.append(numpy_helper.from_array(np.ones(4, np.float32), "steps"))
        tensors.append(numpy_helper.from_array(np.zeros(4, np.int8), "zeros"))
        nodes.append(helper.make_node("DequantizeLinear", ["w", "steps", "zeros"], ["real"], axis=1))
        name = "real"
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", d]) for n, d in (("x", 6), ("y", 4))]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)), folder / "model.onnx")
    return folder


def test_an_integer_weight_counts_once_and_its_scales_do_not(tmp_path: Path) -> None:
    found = sizes(write(tmp_path / "int8", np.ones((6, 4), np.int8)))
    assert found["parameters"] == 24
    assert found["dtypes"] == {"float32": 16, "int8": 28}


def test_a_weight_left_in_float_is_seen_in_the_types(tmp_path: Path) -> None:
    found = sizes(write(tmp_path / "float", np.ones((6, 4), np.float32)))
    assert found["parameters"] == 24
    assert found["dtypes"] == {"float32": 96}


def test_records_and_scratch_are_not_shipped(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", np.ones((6, 4), np.float32))
    before = sizes(folder)
    (folder / "record.json").write_text("{}")
    (folder / "work").mkdir()
    (folder / "work" / "checkpoint.safetensors").write_bytes(b"not even a header")
    assert sizes(folder) == before
    (folder / "tokenizer.json").write_text("{}")
    assert sizes(folder)["bytes"] == before["bytes"] + 2
