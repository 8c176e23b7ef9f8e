"""An image classifier as model.onnx in fp32, from pixel_values [batch, 3, height, width] to logits."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from hfcompress.errors import CheckFailed
from hfcompress.formats import onnx_export
from hfcompress.formats.onnx_export import OPSET, Array
from hfcompress.formats.unsigned_weights import store_unsigned
from hfcompress.tasks.image_input import channels_of

PARITY = 1e-4  # of the largest logit
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


class ImageLogits(torch.nn.Module):
    """The classifier as a function of one tensor."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=pixel_values).logits


def export_images(network: Any, out: Path, size: tuple[int, int]) -> float:
    """Write model.onnx for images of this height and width (the padding is made for them), in batches of any number.

    Returns: the largest difference of logits between torch and onnxruntime, on noise.
    """
    channels = channels_of(network.config.to_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that the trace makes constant
        torch.onnx.export(
            ImageLogits(network.eval()).eval(),
            (torch.from_numpy(noise(2, size, channels)),),
            str(out / "model.onnx"),
            input_names=["pixel_values"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        )
    return require_parity(network, out / "model.onnx", noise(3, size, channels))


def require_parity(network: Any, path: Path, pixel_values: Array) -> float:
    """The largest difference of logits between torch and onnxruntime on images [batch, 3, height, width].

    Raises:
        CheckFailed: it is more than 1e-4 of the largest logit.
    """
    from hfcompress.formats.runtimes.sessions import onnx_session

    (found,) = onnx_session(path, threads=1).run(["logits"], {"pixel_values": pixel_values})
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixel_values)).logits.numpy()
    distance = float(np.abs(found - expected).max())
    if not distance <= PARITY * float(np.abs(expected).max()):
        raise CheckFailed(
            f"the exported graph's logits differ by {distance:.2g} from the model's; "
            "its weights are too large for float32 sums; lower the learning rates, or give another --base"
        )
    return distance


def export_fake_quantized(
    network: Any, path: Path, size: tuple[int, int], integers: dict[str, Array], scales: dict[str, Array]
) -> None:
    """Write a fake-quantized classifier as QDQ ONNX with integer weights (see `onnx_graph.export`).

    onnxruntime's basic optimizations are made once, in the file: the padding that TensorFlow's MobileNets add before
    a convolution becomes the convolution's own, constants are folded, biases become int32.
    """
    axes = {"pixel_values": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with onnx_export.light_weights(network):
            example = torch.from_numpy(noise(2, size))
            model = onnx_export.without_weights(
                ImageLogits(network.eval()).eval(), (example,), ("pixel_values",), axes
            )
    raw = path.with_name("unoptimized.onnx")
    onnx_export.write_graph(model, network, ("pixel_values",), raw, integers, scales, signed=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(raw), options, providers=["CPUExecutionProvider"])
    raw.unlink()
    model = onnx.load(str(path))
    quantize_gemm_biases(model)
    store_unsigned(model)  # last: onnxruntime makes int32 biases beside int8 weights alone
    onnx.save(model, str(path))


def quantize_gemm_biases(model: onnx.ModelProto) -> None:
    """Biases of linear layers as int32 in units of input scale times weight scale: else the product runs in float.

    (onnxruntime does the same by itself for convolutions.)
    """
    constants = onnx_export.constant_values(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in [n for n in model.graph.node if n.op_type == "Gemm" and n.input[2] in constants]:
        name = node.input[2]
        scale = np.multiply(*(constants[producers[source].input[1]] for source in node.input[:2])).astype(np.float32)
        integers = np.rint(constants[name] / scale).astype(np.int32)
        arrays = {f"{name}_int32": integers, f"{name}_scale": scale, f"{name}_zero_point": np.zeros_like(integers)}
        onnx_export.add_initializers(model, arrays)
        node.input[2] = f"{name}_dequantized"
        dequantize = helper.make_node("DequantizeLinear", list(arrays), [node.input[2]], name=f"{name}/DQ", axis=0)
        model.graph.node.insert(0, dequantize)
        kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def require_integer_kernels(path: Path) -> dict[str, int]:
    """How often each kind of kernel runs in onnxruntime's optimized graph.

    Raises:
        CheckFailed: a convolution or a matrix product stayed in float.
    """
    kernels = Counter(node.op_type for node in onnx_export.optimized_nodes(path))
    if floats := [kind for kind in FLOAT_KERNELS if kernels[kind]]:
        raise CheckFailed(
            f"{kernels[floats[0]]} {floats[0]} of {path.name} run in float: {dict(kernels)}; "
            "give another --base: onnxruntime has no integer kernel for a layer of this one"
        )
    return dict(sorted(kernels.items()))


def noise(count: int, size: tuple[int, int], channels: int = 3) -> Array:
    return np.random.default_rng(0).standard_normal((count, channels, *size)).astype(np.float32)
