"""A packed decoder as ONNX: the graph written node by node, its weights streamed into one file beside it.

onnxruntime's own operators do the work: MatMulNBits reads packed integers, GroupQueryAttention holds the key-value
cache and turns queries and keys, GatherBlockQuantized looks up rows of a packed embedding. Their layouts are that of
ops/packing.py, so that codes are copied as they lie; a tied head reads the embedding's own bytes. Inputs and outputs
are named as onnxruntime-genai wants them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.matmul_nbits import EMBEDDING_BITS, MATRIX_BITS, block_size, stored_bits
from hfcompress.ops.packing import pack
from hfcompress.packed import PackedModel, head_size

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
MODEL, DATA = "model.onnx", "model.onnx.data"
PAGE = 4096
MICROSOFT = "com.microsoft"
BIAS = 5  # MatMulNBits' input of that number is the bias
K_SCALE, V_SCALE = 12, 13  # and GroupQueryAttention's inputs of those

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
    norms = {n: packed.tensor(n).to(torch.float32).numpy() for n in packed.plain_names() if n.endswith("norm.weight")}
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
    kinds = set(packed.config.get("layer_types") or [])
    if len(kinds) > 1:
        raise UserError(f"{packed.folder} mixes {' and '.join(sorted(kinds))}, which the ONNX decoder does not do")


def sliding_window(config: dict[str, Any]) -> int | None:
    """Tokens that attention looks back at; None for all. Qwen2 names a window that it does not use."""
    used = config.get("use_sliding_window", True) and "full_attention" not in (config.get("layer_types") or [])
    return int(config["sliding_window"]) if used and config.get("sliding_window") else None


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
    if f"{prefix}self_attn.q_norm.weight" in packed.checkpoint:
        q, k = (
            norm_heads(graph, packed, f"{prefix}self_attn.{part}_norm", read) for part, read in (("q", q), ("k", k))
        )
    graph.node(
        "GroupQueryAttention",
        [q, k, v, *past, *caches],
        [f"{prefix}attended", f"present.{index}.key", f"present.{index}.value"],
        MICROSOFT,
        num_heads=int(config["num_attention_heads"]),
        kv_num_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
        do_rotary=1,
        local_window_size=sliding_window(config) or -1,
    )
    return matmul(graph, packed, f"{prefix}self_attn.o_proj", f"{prefix}attended", accuracy_level, widened)


def norm_heads(graph: GraphWriter, packed: PackedModel, module: str, read: str) -> str:
    """RMSNorm of each head, as Qwen3 has it before the rotation (the CPU's attention operator does not do it itself).

    read: a state [batch, tokens, heads * head size].
    """
    size, weight = head_size(packed.config), packed.tensor(f"{module}.weight").float().numpy()
    graph.small(f"{module}.weight", weight)
    apart = graph.small(f"{module}.apart", np.array([0, 0, -1, size], np.int64))
    joined = graph.small(f"{module}.joined", np.array([0, 0, -1], np.int64))
    graph.node("Reshape", [read, apart], [f"{module}.heads"])
    graph.node(
        "SimplifiedLayerNormalization", [f"{module}.heads", f"{module}.weight"], [f"{module}.normed"],
        epsilon=float(packed.config["rms_norm_eps"]), axis=-1, stash_type=1,
    )  # fmt: skip
    return graph.node("Reshape", [f"{module}.normed", joined], [module])


def gated(
    graph: GraphWriter, packed: PackedModel, prefix: str, normed: str, accuracy_level: int, widened: list[str]
) -> str:
    """down(silu(gate(x)) * up(x))."""
    gate = matmul(graph, packed, f"{prefix}gate_proj", normed, accuracy_level, widened)
    up = matmul(graph, packed, f"{prefix}up_proj", normed, accuracy_level, widened)
    graph.node("QuickGelu", [gate], [f"{prefix}silu"], MICROSOFT, alpha=1.0)  # x * sigmoid(1.0 * x), in one kernel
    graph.node("Mul", [f"{prefix}silu", up], [f"{prefix}gated"])
    return matmul(graph, packed, f"{prefix}down_proj", f"{prefix}gated", accuracy_level, widened)


@dataclass(frozen=True)
class Stored:
    """A matrix as an operator reads it.

    codes: uint8 [rows, packed columns]; scales: float32 [rows, groups]; zeros: uint8 [rows, packed groups] or None.
    """

    codes: "Tensor"
    scales: "Tensor"
    zeros: "Tensor | None"
    bits: int
    columns: int

    @property
    def group(self) -> int:
        return self.columns // self.scales.shape[1]

    @property
    def block(self) -> int:
        return block_size(self.group, self.bits)


def stored(packed: PackedModel, module: str, known: tuple[int, ...], widened: list[str]) -> Stored:
    """A packed matrix, its codes as they lie; where an operator lacks the bits, the same values with more of them."""
    import torch

    grid, columns = packed.grids[module], packed.columns(module)
    scales = packed.checkpoint.read(f"{module}.scales").float()
    if grid.bits in known:
        zeros = None if grid.symmetric else repeated_zeros(packed.zeros(module, scales), grid.bits, columns)
        return Stored(packed.checkpoint.read(f"{module}.codes"), scales, zeros, grid.bits, columns)
    widened.append(module)
    quantized, bits = packed.quantized(module), stored_bits(grid.bits, known)
    shift = (1 << (bits - 1)) - grid.middle  # codes and zeros stay as far from the middle as they were
    zeros = None if grid.symmetric else repeated_zeros(quantized.zeros + shift, bits, columns)
    return Stored(pack((quantized.codes + shift).to(torch.uint8), bits), scales, zeros, bits, columns)


def repeated_zeros(zeros: "Tensor", bits: int, columns: int) -> "Tensor":
    """A zero for each of the operators' blocks, packed."""
    group = columns // zeros.shape[1]
    return pack(zeros.repeat_interleave(group // block_size(group, bits), 1), bits)


def matmul(
    graph: GraphWriter, packed: PackedModel, module: str, read: str, accuracy_level: int, widened: list[str]
) -> str:
    """A packed linear layer."""
    matrix = stored(packed, module, MATRIX_BITS, widened)
    names = matrix_tensors(graph, module, matrix)
    if f"{module}.bias" in packed.checkpoint:
        bias = graph.small(f"{module}.bias", packed.tensor(f"{module}.bias").float().numpy())
        names += [""] * (BIAS - 1 - len(names)) + [bias]
    return matmul_node(graph, module, read, names, matrix, accuracy_level)


def matmul_node(graph: GraphWriter, module: str, read: str, names: list[str], matrix: Stored, level: int) -> str:
    return graph.node(
        "MatMulNBits",
        [read, *names],
        ["logits" if module == "lm_head" else module],
        MICROSOFT,
        K=matrix.columns,
        N=matrix.codes.shape[0],
        bits=matrix.bits,
        block_size=matrix.block,
        accuracy_level=level,
    )


def matrix_tensors(graph: GraphWriter, module: str, matrix: Stored) -> list[str]:
    """Codes uint8 [rows, blocks, bytes], scales float32 [rows * blocks] and, if not symmetric, zeros of a matrix."""
    rows, block = matrix.codes.shape[0], matrix.block
    codes = matrix.codes.view(rows, matrix.columns // block, block * matrix.bits // 8)
    scales = matrix.scales.repeat_interleave(matrix.group // block, 1)
    names = [
        graph.large(f"{module}.codes", codes.numpy()),
        graph.large(f"{module}.scales", scales.numpy().reshape(-1)),
    ]
    if matrix.zeros is not None:
        names.append(graph.large(f"{module}.zeros", matrix.zeros.numpy().reshape(-1)))
    return names


def embedding(graph: GraphWriter, packed: PackedModel, widened: list[str]) -> str:
    """Rows of the packed embedding, looked up and dequantized."""
    matrix = stored(packed, "model.embed_tokens", EMBEDDING_BITS, widened)
    rows, block = matrix.codes.shape[0], matrix.block
    names = matrix_tensors(graph, "model.embed_tokens", matrix)
    codes = graph.at("model.embed_tokens.rows", graph.offset_of(names[0]), tuple(matrix.codes.shape), np.uint8)
    shape = (rows, matrix.columns // block)
    scales = graph.at("model.embed_tokens.row_scales", graph.offset_of(names[1]), shape, np.float32)
    inputs = [codes, "input_ids", scales]
    if matrix.zeros is not None:
        width = tuple(matrix.zeros.shape)
        inputs.append(graph.at("model.embed_tokens.row_zeros", graph.offset_of(names[2]), width, np.uint8))
    if not packed.tied:  # what only the head would read
        graph.tensors = [tensor for tensor in graph.tensors if tensor.name not in names]
    return graph.node(
        "GatherBlockQuantized", inputs, ["embedded"], MICROSOFT, bits=matrix.bits, block_size=block,
        gather_axis=0, quantize_axis=1,
    )  # fmt: skip


def head(graph: GraphWriter, packed: PackedModel, normed: str, accuracy_level: int, widened: list[str]) -> None:
    """Logits: lm_head, or the embedding's bytes once more."""
    if not packed.tied:
        matmul(graph, packed, "lm_head", normed, accuracy_level, widened)
        return
    matrix = stored(packed, "model.embed_tokens", EMBEDDING_BITS, [])
    parts = ["codes", "scales"] + ([] if matrix.zeros is None else ["zeros"])
    names = [f"model.embed_tokens.{part}" for part in parts]
    matmul_node(graph, "lm_head", normed, names, matrix, accuracy_level)


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
