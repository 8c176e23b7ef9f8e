"""What other tools make of a model's linear layers: neural-compressor's algorithms and onnxruntime's quantizers.

A matrix whose columns the group does not divide gets whole rows, here as in hfcompress, so that grids are alike. Bytes
are alike too: neural-compressor's AWQ is told what writes each matrix's inputs, to fold its scales in as ours are. By
itself it leaves a float32 multiplication in front of every matrix, which no delivery format has.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfcompress.ops.grid import Grid

Array = np.ndarray[Any, Any]
ORT = {"rtn": "rtn", "hqq": "hqq", "k_quant": "hqq"}  # onnxruntime's algorithms, and which of ours is of the same kind
ABSORBED = {
    "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.up_proj": "mlp.down_proj",
}


def loaded(model: Path) -> Any:
    """The model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32).eval()


def linears(network: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers within the decoder's layers, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }


def neural_compressor(model: Path, algorithm: str, grid: Grid, ids: torch.Tensor) -> Any:
    """Its quantization of the same linear layers; its HQQ is always asymmetric, with a zero in float."""
    from neural_compressor.torch.quantization import (
        AutoRoundConfig,
        AWQConfig,
        GPTQConfig,
        HQQConfig,
        RTNConfig,
        convert,
        prepare,
    )

    network = loaded(model)

    def config(of: Grid, columns: int) -> Any:
        common = {"bits": of.bits, "use_sym": of.symmetric, "group_size": of.group_size or -1}
        configs: dict[str, Callable[[], Any]] = {
            "rtn": lambda: RTNConfig(**common, use_layer_wise=False),
            "hqq": lambda: HQQConfig(bits=of.bits, group_size=of.group_size or columns, quant_zero=False),
            "gptq": lambda: GPTQConfig(**common, act_order=True),
            "awq": lambda: AWQConfig(**common, absorb_layer_dict=ABSORBED),
            "autoround": lambda: AutoRoundConfig(**common, iters=200, seqlen=ids.shape[1], use_layer_wise=False),
        }
        return configs[algorithm]()

    wanted = config(grid, 64)
    for name, module in linears(network).items():
        if not (fitting := grid.fitting(module.in_features)).group_size:
            wanted.set_local(name, config(fitting, module.in_features))
    prepared = prepare(network, wanted, example_inputs=ids[:1])
    if algorithm in ("gptq", "awq", "autoround"):
        with torch.no_grad():
            for window in ids:
                prepared(window.unsqueeze(0))
    return convert(prepared)


def onnxruntime(model: Path, algorithm: str, grid: Grid) -> Any:
    """The model with every matrix as onnxruntime's MatMulNBits quantizer rounds it, and its kernel reads it back."""
    network = loaded(model)
    with torch.no_grad():
        for module in linears(network).values():
            fitting = grid.fitting(module.in_features)
            weight = module.weight.numpy()
            found = k_quant(weight, fitting) if algorithm == "k_quant" else rounded(weight, algorithm, fitting)
            module.weight.copy_(torch.from_numpy(found))
    return network


def k_quant(weight: Array, grid: Grid) -> Array:
    """A matrix as the function behind onnxruntime's KQuantWeightOnlyQuantConfig rounds it; its zero is an integer.

    Any bits. Its graphs hold 4 and 8, and 4 only where a row has an even number of blocks (else: cannot reshape).
    """
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    codes, scales, zeros = quant_tensor_k_quant_cpu(weight, grid.bits, grid.group_size or weight.shape[1])
    return np.asarray(((codes - zeros) * scales).reshape(weight.shape), np.float32)


def rounded(weight: Array, algorithm: str, grid: Grid) -> Array:
    """A matrix [rows, columns] through a graph of one MatMul: the quantized graph multiplies the unit matrix by it."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

    rows, columns = weight.shape
    block = grid.group_size or 1 << (columns - 1).bit_length()  # a block as long as the row, or longer
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [columns, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [columns, rows])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    configs: dict[str, Callable[[], Any]] = {
        "rtn": lambda: quantizer.DefaultWeightOnlyQuantConfig(
            block_size=block, is_symmetric=grid.symmetric, accuracy_level=0, bits=grid.bits
        ),
        "hqq": lambda: quantizer.HQQWeightOnlyQuantConfig(block_size=block, bits=grid.bits),
    }
    found = quantizer.MatMulNBitsQuantizer(
        made, bits=grid.bits, block_size=block, is_symmetric=grid.symmetric, accuracy_level=0,
        algo_config=configs[algorithm](),
    )  # fmt: skip
    found.process()
    kinds = [node.op_type for node in found.model.model.graph.node]
    if kinds != ["MatMulNBits"]:
        raise RuntimeError(f"left as {' '.join(kinds)}")
    session = ort.InferenceSession(onnx.ModelProto.SerializeToString(found.model.model))
    read: Array = session.run(None, {"x": np.eye(columns, dtype=np.float32)})[0].T
    return read
