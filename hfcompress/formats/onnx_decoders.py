"""A packed decoder as ONNX: the graph written node by node, its weights streamed into one file beside it.

onnxruntime's own operators do the work: MatMulNBits reads packed integers, GroupQueryAttention holds the key-value
cache and turns queries and keys, GatherBlockQuantized looks up rows of a packed embedding. Their layouts are that of
ops/packing.py, so that codes are copied as they lie; a tied head reads the embedding's own bytes. Inputs and outputs
are named as onnxruntime-genai wants them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.architectures.decoder import GELU, GELU_TANH, SILU
from hfcompress.architectures.decoders import DecoderKind, head_size, kv_heads, norm_epsilon, require_graph
from hfcompress.architectures.pretrained import stock_config
from hfcompress.architectures.quantized_model import PackedModel, rotations, without_weights
from hfcompress.formats.matmul_nbits import EMBEDDING_BITS, MATRIX_BITS, block_size, stored_bits
from hfcompress.formats.onnx_writer import MICROSOFT, GraphWriter
from hfcompress.ops.packing import pack

if TYPE_CHECKING:
    from torch import Tensor

BIAS = 5  # MatMulNBits' input of that number is the bias
K_SCALE, V_SCALE = 12, 13  # and GroupQueryAttention's inputs of those

Array = np.ndarray[Any, Any]


def write_decoder(folder: Path, packed: PackedModel, *, context: int, accuracy_level: int) -> list[str]:
    """Write model.onnx and model.onnx.data into `folder`.

    Args:
        context: positions that the rotary tables have;
        accuracy_level: what MatMulNBits rounds its inputs to: 4 int8, 1 float32, 0 its own choice.

    The cache is float32: with a float16 one onnxruntime casts all of it there and back for every token
    (formats/int8_cache.py makes it int8).

    Returns: the matrices whose bits the operators do not have, and that are stored with more.

    Raises:
        UserError: another architecture, or a grid that cannot be expressed.
    """
    kind = require_graph(packed.config, context)
    config, graph = packed.config, GraphWriter(folder)
    widened: list[str] = []
    for name, table in rotary_tables(packed, context).items():
        graph.large(name, table)
    lengths(graph)
    hidden = embedding(graph, packed, kind.embedding_scale, widened)
    norms = {n: norm_weight(packed, n, kind) for n in packed.plain_names() if n.endswith("norm.weight")}
    epsilon = norm_epsilon(config)
    residual = ""
    for index in range(int(config["num_hidden_layers"])):
        prefix = f"model.layers.{index}."
        normed, residual = norm(graph, hidden, residual, prefix + "input_layernorm", norms, epsilon)
        hidden = attention(graph, packed, kind, prefix, normed, accuracy_level, widened)
        if kind.norms_after:
            hidden, _ = norm(graph, hidden, "", prefix + "post_attention_layernorm", norms, epsilon)
        hidden = scaled(graph, hidden, kind.residual_scale, prefix + "attention_scaled")
        normed, residual = norm(graph, hidden, residual, prefix + kind.mlp_norm, norms, epsilon)
        hidden = gated(graph, packed, kind, prefix + "mlp.", normed, accuracy_level, widened)
        if kind.norms_after:
            hidden, _ = norm(graph, hidden, "", prefix + "post_feedforward_layernorm", norms, epsilon)
        hidden = scaled(graph, hidden, kind.residual_scale, prefix + "mlp_scaled")
    normed, _ = norm(graph, hidden, residual, "model.norm", norms, epsilon)
    head(graph, packed, kind, normed, accuracy_level, widened)
    graph.save(*signature(config))
    return widened


def norm_weight(packed: PackedModel, name: str, kind: DecoderKind) -> Array:
    """What a norm multiplies by, float32."""
    weight: Array = packed.tensor(name).float().numpy()
    return np.asarray(weight + kind.norm_offset, np.float32)


def rotary_tables(packed: PackedModel, context: int) -> dict[str, Array]:
    """cos and sin of every position, float32 [context, turned part of a head / 2], by the stock model's own modules.

    Gemma 3's layers with a window have tables of their own.
    """
    import torch

    made = without_weights(stock_config(packed.folder))
    found = {}
    for local, cos_sin in rotations(made, torch.zeros(1), torch.arange(context).unsqueeze(0)).items():
        for part, table in zip(("cos", "sin"), cos_sin, strict=True):
            name = f"{'local_' * local}{part}_cache"
            found[name] = table[0, :, : table.shape[-1] // 2].contiguous().numpy()
    return found


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
    graph: GraphWriter,
    packed: PackedModel,
    kind: DecoderKind,
    prefix: str,
    normed: str,
    accuracy_level: int,
    widened: list[str],
) -> str:
    """Projections, rotary embedding, cache and attention of a layer."""
    config, index = packed.config, int(prefix.split(".")[2])
    names = [name.rpartition(".")[2] for name in kind.groups[0]]
    read = [matmul(graph, packed, f"{prefix}self_attn.{name}", normed, accuracy_level, widened) for name in names]
    if f"{prefix}self_attn.q_norm.weight" in packed.checkpoint:
        read[:2] = [
            norm_heads(graph, packed, kind, f"{prefix}self_attn.{part}_norm", state)
            for part, state in zip("qk", read[:2], strict=True)
        ]
    if kind.fused:  # the operator takes queries, keys and values as one
        read += ["", ""]
    past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
    local = "local_" if kind.local_rotary[index] else ""
    caches = ["seqlens_k", "total_sequence_length"]
    if kind.rotated[index]:
        caches += [f"{local}cos_cache", f"{local}sin_cache"]
    scale = {} if kind.attention_scale is None else {"scale": kind.attention_scale}
    graph.node(
        "GroupQueryAttention",
        [*read, *past, *caches],
        [f"{prefix}attended", f"present.{index}.key", f"present.{index}.value"],
        MICROSOFT,
        num_heads=int(config["num_attention_heads"]),
        kv_num_heads=kv_heads(config),
        do_rotary=int(kind.rotated[index]),
        local_window_size=kind.windows[index] or -1,
        softcap=kind.attention_softcap,
        **scale,
    )
    return matmul(graph, packed, f"{prefix}self_attn.o_proj", f"{prefix}attended", accuracy_level, widened)


def norm_heads(graph: GraphWriter, packed: PackedModel, kind: DecoderKind, module: str, read: str) -> str:
    """RMSNorm of each head before the rotation: Qwen3, Gemma 3 (the CPU's attention operator does not do it itself).

    read: a state [batch, tokens, heads * head size].
    """
    size = head_size(packed.config)
    graph.small(f"{module}.weight", norm_weight(packed, f"{module}.weight", kind))
    apart = graph.small(f"{module}.apart", np.array([0, 0, -1, size], np.int64))
    joined = graph.small(f"{module}.joined", np.array([0, 0, -1], np.int64))
    graph.node("Reshape", [read, apart], [f"{module}.heads"])
    graph.node(
        "SimplifiedLayerNormalization", [f"{module}.heads", f"{module}.weight"], [f"{module}.normed"],
        epsilon=norm_epsilon(packed.config), axis=-1, stash_type=1,
    )  # fmt: skip
    return graph.node("Reshape", [f"{module}.normed", joined], [module])


def gated(
    graph: GraphWriter,
    packed: PackedModel,
    kind: DecoderKind,
    prefix: str,
    normed: str,
    accuracy_level: int,
    widened: list[str],
) -> str:
    """down(act(gate(x)) * up(x))."""
    if kind.fused:
        both = matmul(graph, packed, f"{prefix}gate_up_proj", normed, accuracy_level, widened)
        gate, up = f"{prefix}gate", f"{prefix}up"
        graph.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
    else:
        gate = matmul(graph, packed, f"{prefix}gate_proj", normed, accuracy_level, widened)
        up = matmul(graph, packed, f"{prefix}up_proj", normed, accuracy_level, widened)
    acted = f"{prefix}acted"
    if kind.activation == SILU:
        graph.node("QuickGelu", [gate], [acted], MICROSOFT, alpha=1.0)  # x * sigmoid(1.0 * x), in one kernel
    else:
        graph.node("Gelu", [gate], [acted], approximate={GELU: "none", GELU_TANH: "tanh"}[kind.activation])
    graph.node("Mul", [acted, up], [f"{prefix}gated"])
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
    """A packed linear layer; its module names its output."""
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
        [module],
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


def embedding(graph: GraphWriter, packed: PackedModel, scale: float, widened: list[str]) -> str:
    """Rows of the packed embedding, looked up and dequantized, and multiplied by `scale`."""
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
    graph.node(
        "GatherBlockQuantized", inputs, ["embedded"], MICROSOFT, bits=matrix.bits, block_size=block,
        gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    return scaled(graph, "embedded", scale, "scaled")


def scaled(graph: GraphWriter, name: str, scale: float, result: str) -> str:
    """Return `result`, a state multiplied by a number; the state's own `name` where that is 1."""
    if scale == 1.0:
        return name
    return graph.node("Mul", [name, graph.small(f"{result}.scale", np.array(scale, np.float32))], [result])


def head(
    graph: GraphWriter, packed: PackedModel, kind: DecoderKind, normed: str, accuracy_level: int, widened: list[str]
) -> None:
    """Logits: lm_head, or the embedding's bytes once more, divided and capped (c * tanh(x / c)) as the model does."""
    if packed.tied:
        matrix = stored(packed, "model.embed_tokens", EMBEDDING_BITS, [])
        parts = ["codes", "scales"] + ([] if matrix.zeros is None else ["zeros"])
        names = [f"model.embed_tokens.{part}" for part in parts]
        products = matmul_node(graph, "lm_head", normed, names, matrix, accuracy_level)
    else:
        products = matmul(graph, packed, "lm_head", normed, accuracy_level, widened)
    products = scaled(graph, products, 1 / kind.logit_divisor, "lm_head.divided")
    if kind.logit_softcap:
        cap = graph.small("logit_softcap", np.array(kind.logit_softcap, np.float32))
        graph.node("Div", [products, cap], ["lm_head.small"])
        graph.node("Tanh", ["lm_head.small"], ["lm_head.tanh"])
        graph.node("Mul", ["lm_head.tanh", cap], ["lm_head.capped"])
    graph.nodes[-1].output[0] = "logits"


def signature(config: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs as onnxruntime-genai names them."""
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info as value

    inputs = [
        value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        value("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", "tokens", int(config["vocab_size"])])]
    for index in range(int(config["num_hidden_layers"])):
        for part in ("key", "value"):
            shape = ["batch", kv_heads(config), "past", head_size(config)]
            inputs.append(value(f"past_key_values.{index}.{part}", TensorProto.FLOAT, shape))
            shape = ["batch", kv_heads(config), "total", head_size(config)]
            outputs.append(value(f"present.{index}.{part}", TensorProto.FLOAT, shape))
    return inputs, outputs
