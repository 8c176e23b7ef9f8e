"""Explicit-QDQ ONNX for TensorRT: symmetric int8 activations, float biases, Q/DQ where its documentation wants it."""

from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto, NodeProto, helper

from hfcompress.formats.onnx_export import (
    Array,
    add_initializers,
    constant_values,
    drop_unused,
    readers_of,
    replace_input,
)
from hfcompress.formats.unsigned_weights import store_unsigned

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

QUANTIZED = ["Conv", "Gemm", "MatMul", "Add"]


def quantize_for_tensorrt(model: Path, pixel_values: Iterable[Array]) -> ModelProto:
    """A static int8 model of an fp32 image classifier, by onnxruntime's quantizer.

    Inputs of convolutions, linear layers and additions are quantized, outputs are not, weights have a scale an output
    channel, and of an addition behind a convolution the residual alone is quantized, so that TensorRT can fuse
    convolution, addition and ReLU.

    Args:
        model: model.onnx in fp32, from pixel_values to logits.
        pixel_values: calibration batches [batch, 3, height, width].
    """
    found = static_qdq(
        model,
        pixel_values,
        symmetric=True,
        op_types_to_quantize=QUANTIZED,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT dequantizes no int32
            "OpTypesToExcludeOutputQuantization": QUANTIZED,
        },
    )
    quantize_residuals_alone(found)
    return found


def static_qdq(
    model: Path,
    pixel_values: Iterable[Array],
    *,
    symmetric: bool,
    calibration: str = "minmax",
    extra_options: dict[str, Any] | None = None,
    **settings: Any,
) -> ModelProto:
    """onnxruntime's static quantization, per channel, with QDQ nodes.

    Args:
        pixel_values: calibration batches; for a histogram the activations of one at a time are in memory.
        symmetric: int8 weights and activations, for TensorRT; else both are stored as uint8 (unsigned_weights.py).
        calibration: minmax, or by a histogram of each tensor: percentile (99.999) or entropy.
        extra_options, settings: more of `quantize_static`'s.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    one_at_a_time = {} if calibration == "minmax" else {"CalibStridedMinMax": 1}  # it strides whatever the method
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # the quantizer prints about its histograms
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(str(model), str(prepared))  # folds batch normalization and constant padding
        quantize_static(
            str(prepared),
            str(quantized),
            batch_reader(list(pixel_values)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[calibration],
            extra_options=(extra_options or {}) | one_at_a_time,
            **settings,
        )
        found = onnx.load(str(quantized))
    if not symmetric:
        store_unsigned(found)
    del found.graph.value_info[:]  # 2% of a MobileNetV2's file: whoever reads the shapes in between infers them anew
    return found


def batch_reader(batches: list[Array]) -> "CalibrationDataReader":
    """What onnxruntime reads calibration batches from, all of them or a range."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.set_range(0, len(batches))

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.left, None)
            return None if batch is None else {"pixel_values": batch}

    return Reader()


def quantize_residuals_alone(model: ModelProto) -> None:
    """Take the Q/DQ pair from between a convolution and the addition of its output to a residual."""
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in [n for n in model.graph.node if n.op_type == "Add"]:
        pairs = [pair_of(producers, name) for name in node.input]
        for i in (1, 0):  # the convolution is the later of the two as a rule
            pair = pairs[i]
            if pair is not None and all(pairs) and producers[pair.input[0]].op_type == "Conv":
                node.input[i] = pair.input[0]
                break
    drop_unused(model)


def pair_of(producers: dict[str, NodeProto], name: str) -> NodeProto | None:
    """The QuantizeLinear behind a DequantizeLinear's output, where a node's output is quantized."""
    dequantize = producers.get(name)
    quantize = producers.get(dequantize.input[0]) if dequantize and dequantize.op_type == "DequantizeLinear" else None
    is_pair = quantize is not None and quantize.op_type == "QuantizeLinear" and quantize.input[0] in producers
    return quantize if is_pair else None


def dequantize_embeddings_whole(model: ModelProto) -> None:
    """Gather behind DequantizeLinear: the form of an int8 embedding that TensorRT takes.

    `onnx_graph.fold_embedding` gathers int8 rows and multiplies them by gathered scales, so that onnxruntime never
    dequantizes the whole table; TensorRT reads int8 by DequantizeLinear alone.
    """
    constants = constant_values(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in [n for n in model.graph.node if n.op_type == "Mul"]:
        cast, scales = (producers.get(name) for name in node.input)
        rows = producers.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        if rows is None or scales is None or rows.op_type != "Gather" or scales.op_type != "Gather":
            continue
        table = rows.input[0]
        add_initializers(model, {f"{table}_row_scale": constants[scales.input[0]].reshape(-1)})
        whole = f"{table}_dequantized"
        nodes = [
            helper.make_node("DequantizeLinear", [table, f"{table}_row_scale"], [whole], name=f"{table}/DQ", axis=0),
            helper.make_node("Gather", [whole, rows.input[1]], [f"{whole}_rows"], name=f"{table}/Rows", axis=0),
        ]
        place = list(model.graph.node).index(node)
        replace_input(model, node.output[0], f"{whole}_rows")
        for new in reversed(nodes):
            model.graph.node.insert(place, new)
    drop_unused(model)
    used = set(readers_of(model))
    kept: list[Any] = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
