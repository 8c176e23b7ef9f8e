"""uint8 activations times int8 weights saturate without VNNI: found in a graph, and computed as the kernels do."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hfcompress.folders.record import environment, slow_integers
from hfcompress.formats.runtimes.sessions import onnx_session
from hfcompress.formats.saturation import require_exact, saturated_product, saturating_layers
from hfcompress.formats.unsigned_weights import store_file_unsigned, store_unsigned

ROWS, K, COLUMNS = 3, 37, 20  # an odd number of channels: the last one has no neighbor
KINDS = ("MatMul", "Gemm", "Conv", "Transpose", "MatMulInteger", "QLinearMatMul")


def codes(kind: str) -> Any:
    """Weights [K, COLUMNS] of the full range, half of them at one end, as trained ones seldom are."""
    random = np.random.default_rng(len(kind))
    return np.where(random.random((K, COLUMNS)) < 0.5, 127, random.integers(-127, 128, (K, COLUMNS))).astype(np.int8)


def graph(kind: str, weights: Any, *, zero_points: bool = True) -> onnx.ModelProto:
    """x [rows, K] (of a convolution [1, K, 1, rows]) in units of 1, times the weights in units of 1."""
    stored = weights[None].repeat(1, 0)[0].T[:, :, None, None] if kind == "Conv" else weights
    stored = np.ascontiguousarray(stored.T if kind in ("Gemm", "Transpose") else stored)
    axis = 1 if kind == "MatMul" else 0
    tensors: dict[str, Any] = {"one": np.float32(1), "zero": np.uint8(0), "w": stored, "wide": np.float32(300)}
    tensors["scales"] = np.ones(COLUMNS, np.float32)
    if zero_points:
        tensors["zeros"] = np.zeros(COLUMNS, np.int8)
    quantize = helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"])
    nodes = [quantize]
    if kind == "MatMulInteger":
        inputs = ["q", "w", "zero", "zeros"] if zero_points else ["q", "w", "zero"]
        nodes += [helper.make_node(kind, inputs, ["sums"], name="product")]
        nodes += [helper.make_node("Cast", ["sums"], ["z"], to=TensorProto.FLOAT)]
    elif kind == "QLinearMatMul":
        tensors["zeros"] = np.zeros(COLUMNS, np.int8)  # it cannot be left out
        inputs = ["q", "one", "zero", "w", "scales", "zeros", "wide", "zero"]
        nodes += [helper.make_node(kind, inputs, ["y"], name="product")]
        nodes += [helper.make_node("DequantizeLinear", ["y", "wide", "zero"], ["z"])]
    else:
        given = ["w", "scales", "zeros"] if zero_points else ["w", "scales"]
        nodes += [helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["dq"])]
        nodes += [helper.make_node("DequantizeLinear", given, ["dw"], axis=axis)]
        weight = "dw"
        if kind == "Transpose":
            nodes += [helper.make_node("Transpose", ["dw"], ["turned"], perm=[1, 0])]
            weight = "turned"
        name = "MatMul" if kind == "Transpose" else kind
        more = {"transB": 1} if kind == "Gemm" else {"kernel_shape": [1, 1]} if kind == "Conv" else {}
        nodes += [helper.make_node(name, ["dq", weight], ["product_out"], name="product", **more)]
        nodes += [helper.make_node("Identity", ["product_out"], ["z"])]
    shape = [1, K, 1, "rows"] if kind == "Conv" else ["rows", len(weights)]
    made = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def given(kind: str, activations: Any) -> dict[str, Any]:
    x = activations.astype(np.float32)
    return {"x": x.T[None, :, None, :] if kind == "Conv" else x}


def has_vnni() -> bool:
    return "vnni" in environment()["cpu"]


def test_a_pair_of_products_by_hand() -> None:
    """255 * 127 + 255 * 127 is 64,770, of which 32,767 are left; the next pair adds what it is."""
    row = np.array([[255, 255, 10, 20, 255]], np.uint8)
    column = np.array([[127], [127], [3], [-4], [-127]], np.int8)
    assert saturated_product(row, column).tolist() == [[32767 + 30 - 80 - 255 * 127]]
    assert saturated_product(row[:, :2], -column[:2]).tolist() == [[-32768]]
    exact = row.astype(np.int64) @ column
    assert exact.tolist() == [[2 * 32385 + 30 - 80 - 32385]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saturating_graph_is_found_and_the_same_integers_as_uint8_are_clean(tmp_path: Path, kind: str) -> None:
    model, x = graph(kind, codes(kind)), given(kind, np.full((ROWS, K), 255, np.uint8))
    assert [found.name for found in saturating_layers(model)] == ["product"]
    (found,) = saturating_layers(model, x)
    assert found.share is not None
    assert found.share > 0.2
    assert not saturating_layers(model, given(kind, np.full((ROWS, K), 100, np.uint8))), "small activations"
    assert not saturating_layers(graph(kind, codes(kind) // 2)), "seven bits"
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(RuntimeError, match=r"1 integer products of model\.onnx saturate on x86 without VNNI"):
        require_exact(tmp_path / "model.onnx")
    store_file_unsigned(tmp_path / "model.onnx")
    require_exact(tmp_path / "model.onnx")
    assert not saturating_layers(tmp_path / "model.onnx", x)


@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_uint8_weights_give_the_exact_product_on_this_processor(tmp_path: Path, kind: str, zero_points: bool) -> None:
    weights, activations = codes(kind), np.random.default_rng(0).integers(0, 256, (ROWS, K)).astype(np.uint8)
    model = graph(kind, weights, zero_points=zero_points)
    store_unsigned(model)
    assert not [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8]
    onnx.save(model, str(tmp_path / "model.onnx"))
    (found,) = onnx_session(tmp_path / "model.onnx", 1).run(["z"], given(kind, activations))
    exact = activations.astype(np.int64) @ weights.astype(np.int64)
    if kind == "QLinearMatMul":
        exact = 300 * np.clip(np.rint(exact / 300), 0, 255)
    assert np.array_equal(found[0, :, 0].T if kind == "Conv" else found, exact)


@pytest.mark.skipif(has_vnni(), reason="with VNNI products are added in 32 bits")
@pytest.mark.skipif("avx2" not in environment()["cpu"], reason="the kernels are those of x86 with AVX2")
@pytest.mark.parametrize("kind", ["MatMulInteger", "MatMul"])
def test_without_vnni_onnxruntime_gives_the_emulated_value(tmp_path: Path, kind: str) -> None:
    weights, activations = codes(kind), np.random.default_rng(0).integers(0, 256, (ROWS, K)).astype(np.uint8)
    onnx.save(graph(kind, weights), str(tmp_path / "model.onnx"))
    (found,) = onnx_session(tmp_path / "model.onnx", 1).run(["z"], given(kind, activations))
    emulated = saturated_product(activations, weights)
    assert np.array_equal(found, emulated)
    assert not np.array_equal(emulated, activations.astype(np.int64) @ weights.astype(np.int64))


def test_the_taps_of_a_convolution_are_what_it_sees(tmp_path: Path) -> None:
    """Grouped, strided, dilated and padded: only where a window is full of large values do pairs saturate."""
    weights = np.zeros((4, 2, 3, 3), np.int8)
    weights[:, :, 0, 0] = 127  # the two channels of the first tap are a pair
    tensors = {"one": np.float32(1), "middle": np.uint8(7), "w": weights, "s": np.ones(4, np.float32)}
    attributes: dict[str, Any] = {"group": 2, "kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "middle"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "middle"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["dw"], axis=0),
        helper.make_node("Conv", ["dq", "dw"], ["z"], name="conv", **attributes),
    ]
    made = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = np.zeros((1, 4, 6, 6), np.float32)
    x[0, 2:, 1, 1] = 240  # the second group's channels, at the place that the first tap of window (1, 1) sees
    (found,) = saturating_layers(model, {"x": x})
    assert found.share == pytest.approx(2 / (2 * 9 * 9 * 2))  # of 2 groups, 9 windows, 9 pairs, 2 outputs
    x[0, 3] = 0  # its neighbor is at zero, which is stored as 7
    assert not saturating_layers(model, {"x": x})
    x = np.zeros((1, 4, 6, 6), np.float32)
    x[0, 2:, 2, 2] = 240  # that tap sees odd places alone
    assert not saturating_layers(model, {"x": x})


def test_depthwise_weights_and_gathered_tables_are_no_such_products() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["dw"], axis=0),
        helper.make_node("Conv", ["dq", "dw"], ["y"], group=2, kernel_shape=[3, 3]),
        helper.make_node("DequantizeLinear", ["table", "one"], ["rows"]),
        helper.make_node("Gather", ["rows", "ids"], ["z"]),
    ]
    tensors = {
        "one": np.float32(1), "zero": np.uint8(0), "w": np.full((2, 1, 3, 3), 127, np.int8),
        "s": np.ones(2, np.float32), "table": np.full((3, 2), 127, np.int8), "ids": np.array([1]),
    }  # fmt: skip
    made = helper.make_graph(
        nodes,
        "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz"],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert not saturating_layers(model)
    store_unsigned(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["table"] == TensorProto.INT8
    assert kinds["w_uint8"] == TensorProto.UINT8


def test_a_data_file_beside_the_graph_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weights = np.tile(codes("MatMul"), (4, 1))
    model = graph("MatMul", weights)
    onnx.save_model(model, str(path), save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    before = (tmp_path / "model.onnx_data").stat().st_size
    store_file_unsigned(path)
    assert (tmp_path / "model.onnx_data").stat().st_size <= before
    require_exact(path)
    x = given("MatMul", np.full((ROWS, 4 * K), 255, np.uint8))
    assert np.array_equal(onnx_session(path, 1).run(["z"], x)[0][0], 255 * weights.astype(int).sum(0))


def test_a_reader_of_a_latency_is_told_where_eight_bits_are_not_fast() -> None:
    assert "hold for AMD EPYC (avx2)" in str(slow_integers("AMD EPYC (avx2)"))
    assert slow_integers("Intel Xeon (avx2 avx512f)") is not None
    assert slow_integers("AMD EPYC (avx2 avx512f avx512_vnni)") is None
    assert slow_integers("Intel Core (avx2 avx_vnni)") is None
    assert slow_integers("aarch64") is None
