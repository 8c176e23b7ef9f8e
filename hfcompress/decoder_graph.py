"""A packed decoder as ONNX: the graph written node by node, its weights streamed into one file beside it.

onnxruntime's own operators do the work: MatMulNBits reads packed integers, GroupQueryAttention holds the key-value
cache and turns queries and keys, GatherBlockQuantized looks up rows of a packed embedding. Their layouts are that of
ops/packing.py, so that codes are copied as they lie; a tied head reads the embedding's own bytes. Inputs and outputs
are named as onnxruntime-genai wants them.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.matmul_nbits import EMBEDDING_BITS, MATRIX_BITS, block_size, stored_bits
from hfcompress.ops.grid import Grid
from hfcompress.packed import PackedModel, head_size

if TYPE_CHECKING:
    from hfcompress.ops.grid import Quantized

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
MODEL, DATA = "model.onnx", "model.onnx.data"
PAGE = 4096
MICROSOFT = "com.microsoft"

Array = np.ndarray[Any, Any]


class GraphWriter:
    """Nodes and tensors of a graph; large tensors go to the data file at once, in pages of their own."""

    def __init__(self, folder: Path) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.file = folder / f"{DATA}.part"
        self.stream = self.file.open("wb")

    def node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Add a node; its first output's name."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def small(self, name: str, array: Array) -> str:
        """A tensor that lies in model.onnx itself."""
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def large(self, name: str, array: Array) -> str:
        """A tensor that lies in the data file."""
        self.stream.write(bytes(-self.stream.tell() % PAGE))
        offset = self.stream.tell()
        self.stream.write(np.ascontiguousarray(array).data)
        return self.at(name, offset, array.shape, array.dtype)

    def at(self, name: str, offset: int, shape: tuple[int, ...], dtype: Any) -> str:
        """A tensor whose bytes lie in the data file already."""
        from onnx import TensorProto, helper

        tensor = TensorProto(
            name=name,
            dims=shape,
            data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
            data_location=TensorProto.EXTERNAL,
        )
        length = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)
        return name

    def offset_of(self, name: str) -> int:
        """Where a tensor lies in the data file."""
        tensor = next(tensor for tensor in self.tensors if tensor.name == name)
        return int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))

    def save(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Flush the data, then write model.onnx: without it the folder is no model."""
        import onnx
        from onnx import helper

        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        self.file.replace(self.file.with_name(DATA))
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(self.file.with_name(MODEL)))


def write_decoder(folder: Path, packed: PackedModel, *, context: int, accuracy_level: int) -> list[str]:
    """Write model.onnx and model.onnx.data into `folder`.

    Args:
        context: positions that the rotary tables have;
        accuracy_level: what MatMulNBits rounds its inputs to: 4 int8, 1 float32, 0 its own choice.

    The cache is float32: with a float16 one onnxruntime casts all of it there and back for every token
    (decoder_cache.py makes it int8).

    Returns: the matrices whose bits the operators do not have, and that are stored with more.

    Raises:
        UserError: another architecture, or a grid that cannot be expressed.
    """
    import torch

    require_supported(packed)
    config, graph = packed.config, GraphWriter(folder)
    widened: list[str] = []
    cos, sin = rotary_tables(packed, context)
    graph.large("cos_cache", cos)
    graph.large("sin_cache", sin)
    lengths(graph)
    hidden = embedding(graph, packed, widened)
    norms = {name: packed.tensor(name).to(torch.float32).numpy() for name in packed.plain_names()}
    epsilon = float(config.get("rms_norm_eps", 1e-6))
    residual = ""
    for index in range(int(config["num_hidden_layers"])):
        prefix = f"model.layers.{index}."
        normed, residual = norm(graph, hidden, residual, prefix + "input_layernorm", norms, epsilon)
        attended = attention(graph, packed, prefix, normed, accuracy_level, widened)
        normed, residual = norm(graph, attended, residual, prefix + "post_attention_layernorm", norms, epsilon)
        hidden = gated(graph, packed, prefix + "mlp.", normed, accuracy_level, widened)
    normed, _ = norm(graph, hidden, residual, "model.norm", norms, epsilon)
    head(graph, packed, normed, accuracy_level, widened)
    graph.save(*signature(config))
    return widened


def require_supported(packed: PackedModel) -> None:
    named = (packed.config.get("architectures") or ["none"])[0]
    if named not in ARCHITECTURES:
        raise UserError(f"{packed.folder} is a {named}; the ONNX decoder is written for {', '.join(ARCHITECTURES)}")
    if any(name.endswith(".bias") for name in packed.plain_names()):
        raise UserError(f"{packed.folder} has biases, which the ONNX decoder is not written for")


def rotary_tables(packed: PackedModel, context: int) -> tuple[Array, Array]:
    """cos and sin of every position, float32 [context, head size / 2], from the stock model's own rotary module."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(packed.folder)
    with torch.device("meta"):
        rotary = AutoModelForCausalLM.from_config(config).model.rotary_emb
    rotary = type(rotary)(config=config)
    cos, sin = rotary(torch.zeros(1), torch.arange(context).unsqueeze(0))
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous().numpy(), sin[0, :, :half].contiguous().numpy()


def lengths(graph: GraphWriter) -> None:
    """From the attention mask [batch, total]: what GroupQueryAttention wants to know of the cache."""
    from onnx import TensorProto

    graph.small("one", np.array([1], np.int64))
    graph.small("second", np.array(1, np.int64))
    graph.node("ReduceSum", ["attention_mask", "one"], ["mask_sum"], keepdims=0)
    graph.node("Sub", ["mask_sum", "one"], ["last_place"])
    graph.node("Cast", ["last_place"], ["seqlens_k"], to=TensorProto.INT32)
    graph.node("Shape", ["attention_mask"], ["mask_shape"])
    graph.node("Gather", ["mask_shape", "second"], ["total"], axis=0)
    graph.node("Cast", ["total"], ["total_sequence_length"], to=TensorProto.INT32)


def norm(
    graph: GraphWriter, name: str, residual: str, module: str, norms: dict[str, Array], epsilon: float
) -> tuple[str, str]:
    """RMSNorm of a state, added to the residual stream before; returns the normed state and the new residual."""
    weight = graph.small(f"{module}.weight", norms[f"{module}.weight"])
    if not residual:
        graph.node("SimplifiedLayerNormalization", [name, weight], [module], epsilon=epsilon, axis=-1, stash_type=1)
        return module, name
    outputs = [module, "", "", f"{module}.residual"]
    graph.node("SkipSimplifiedLayerNormalization", [name, residual, weight], outputs, MICROSOFT, epsilon=epsilon)
    return module, f"{module}.residual"


def attention(
    graph: GraphWriter, packed: PackedModel, prefix: str, normed: str, accuracy_level: int, widened: list[str]
) -> str:
    """Projections, rotary embedding, cache and attention of a layer."""
    config, index = packed.config, int(prefix.split(".")[2])
    q, k, v = (
        matmul(graph, packed, f"{prefix}self_attn.{name}_proj", normed, accuracy_level, widened) for name in "qkv"
    )
    past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
    caches = ["seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"]
    graph.node(
        "GroupQueryAttention",
        [q, k, v, *past, *caches],
        [f"{prefix}attended", f"present.{index}.key", f"present.{index}.value"],
        MICROSOFT,
        num_heads=int(config["num_attention_heads"]),
        kv_num_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
        do_rotary=1,
        local_window_size=int(config.get("sliding_window") or -1),
    )
    return matmul(graph, packed, f"{prefix}self_attn.o_proj", f"{prefix}attended", accuracy_level, widened)


def gated(
    graph: GraphWriter, packed: PackedModel, prefix: str, normed: str, accuracy_level: int, widened: list[str]
) -> str:
    """down(silu(gate(x)) * up(x))."""
    gate = matmul(graph, packed, f"{prefix}gate_proj", normed, accuracy_level, widened)
    up = matmul(graph, packed, f"{prefix}up_proj", normed, accuracy_level, widened)
    graph.node("QuickGelu", [gate], [f"{prefix}silu"], MICROSOFT, alpha=1.0)  # x * sigmoid(1.0 * x), in one kernel
    graph.node("Mul", [f"{prefix}silu", up], [f"{prefix}gated"])
    return matmul(graph, packed, f"{prefix}down_proj", f"{prefix}gated", accuracy_level, widened)


def matmul(
    graph: GraphWriter, packed: PackedModel, module: str, read: str, accuracy_level: int, widened: list[str]
) -> str:
    """A packed linear layer."""
    quantized = expressible(packed.quantized(module), MATRIX_BITS, module, widened)
    names, block = matrix_tensors(graph, module, quantized)
    return matmul_node(graph, module, read, names, quantized, block, accuracy_level)


def matmul_node(
    graph: GraphWriter, module: str, read: str, names: list[str], quantized: "Quantized", block: int, level: int
) -> str:
    rows, columns = quantized.codes.shape
    return graph.node(
        "MatMulNBits",
        [read, *names],
        ["logits" if module == "lm_head" else module],
        MICROSOFT,
        K=columns,
        N=rows,
        bits=quantized.grid.bits,
        block_size=block,
        accuracy_level=level,
    )


def matrix_tensors(graph: GraphWriter, module: str, quantized: "Quantized") -> tuple[list[str], int]:
    """Codes uint8 [rows, blocks, bytes], scales float32 [rows * blocks] and, if not symmetric, zeros of a matrix."""
    from hfcompress.ops.packing import pack

    rows, columns = quantized.codes.shape
    bits, group = quantized.grid.bits, columns // quantized.scales.shape[1]
    block = block_size(group)
    repeat = group // block
    codes = pack(quantized.codes, bits).numpy().reshape(rows, columns // block, block * bits // 8)
    scales = quantized.scales.float().repeat_interleave(repeat, 1)
    names = [
        graph.large(f"{module}.codes", codes),
        graph.large(f"{module}.scales", scales.numpy().reshape(-1)),
    ]
    if not quantized.grid.symmetric:
        zeros = pack(quantized.zeros.repeat_interleave(repeat, 1), bits)
        names.append(graph.large(f"{module}.zeros", zeros.numpy().reshape(-1)))
    return names, block


def expressible(quantized: "Quantized", known: tuple[int, ...], module: str, widened: list[str]) -> "Quantized":
    """The same values with bits that an operator has: 3 as 4, by codes and zeros as far from the middle."""
    from hfcompress.ops.grid import Quantized

    grid = quantized.grid
    if grid.bits in known:
        return quantized
    widened.append(module)
    wide = Grid(stored_bits(grid.bits, known), grid.group_size, grid.symmetric)
    shift = wide.middle - grid.middle
    return Quantized(quantized.codes + shift, quantized.scales, quantized.zeros + shift, wide)


def embedding(graph: GraphWriter, packed: PackedModel, widened: list[str]) -> str:
    """Rows of the packed embedding, looked up and dequantized."""
    quantized = expressible(packed.quantized("model.embed_tokens"), EMBEDDING_BITS, "model.embed_tokens", widened)
    rows, columns = quantized.codes.shape
    bits = quantized.grid.bits
    names, block = matrix_tensors(graph, "model.embed_tokens", quantized)
    codes = graph.at("model.embed_tokens.rows", graph.offset_of(names[0]), (rows, columns * bits // 8), np.uint8)
    scales = graph.at("model.embed_tokens.row_scales", graph.offset_of(names[1]), (rows, columns // block), np.float32)
    inputs = [codes, "input_ids", scales]
    if not quantized.grid.symmetric:
        width = (columns // block * bits + 7) // 8
        inputs.append(graph.at("model.embed_tokens.row_zeros", graph.offset_of(names[2]), (rows, width), np.uint8))
    if not packed.tied:  # what only the head would read
        graph.tensors = [tensor for tensor in graph.tensors if tensor.name not in names]
    return graph.node(
        "GatherBlockQuantized", inputs, ["embedded"], MICROSOFT, bits=bits, block_size=block,
        gather_axis=0, quantize_axis=1,
    )  # fmt: skip


def head(graph: GraphWriter, packed: PackedModel, normed: str, accuracy_level: int, widened: list[str]) -> None:
    """Logits: lm_head, or the embedding's bytes once more."""
    if not packed.tied:
        matmul(graph, packed, "lm_head", normed, accuracy_level, widened)
        return
    quantized = expressible(packed.quantized("model.embed_tokens"), EMBEDDING_BITS, "model.embed_tokens", [])
    parts = ["codes", "scales"] + ([] if quantized.grid.symmetric else ["zeros"])
    names = [f"model.embed_tokens.{part}" for part in parts]
    block = block_size(quantized.codes.shape[1] // quantized.scales.shape[1])
    matmul_node(graph, "lm_head", normed, names, quantized, block, accuracy_level)


def signature(config: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs as onnxruntime-genai names them."""
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info as value

    kv_heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        value("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", "tokens", int(config["vocab_size"])])]
    for index in range(int(config["num_hidden_layers"])):
        for part in ("key", "value"):
            shape = ["batch", kv_heads, "past", head_size(config)]
            inputs.append(value(f"past_key_values.{index}.{part}", TensorProto.FLOAT, shape))
            shape = ["batch", kv_heads, "total", head_size(config)]
            outputs.append(value(f"present.{index}.{part}", TensorProto.FLOAT, shape))
    return inputs, outputs
