"""A packed model as one GGUF file, llama.cpp's format: the same integers in llama.cpp's blocks of 32.

A block holds 32 neighbours of a row and a float16 scale d, which may be negative; groups of 64, 128 or a whole row
repeat theirs in every block. What each grid becomes, and how exactly:

symmetric 8 bits      Q8_0  d * int8, code - 128                       exact
symmetric 4, 3, 2     Q4_0  d * (q - 8), q = code - middle + 8         exact; 2 and 3 bits take the room of 4
asymmetric 4, 3, 2    Q4_1  d * q + m, m = -d * zero as a float16      off by zero * d / 2^11 at most
asymmetric 8          F16   no block has a zero of 8 bits              off by 2^-11 of the value at most
columns not 32 * n    F32   a block would run over the row's end       exact

The k-quants have types of 2 and 3 bits, but with the scales of 16 or 32 neighbours rounded to 4 or 6 bits of one scale
of 256: groups of 128 or fewer cannot be expressed in them.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, blocks: ggml/src/ggml-common.h of llama.cpp.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.architectures import DECODERS
from hfcompress.architectures.decoder import LlamaCpp
from hfcompress.architectures.decoders import (
    DecoderKind,
    architecture,
    decoder_of,
    head_size,
    kind_of,
    kv_heads,
    norm_epsilon,
    rope_base,
    rope_type,
    rotary_share,
)
from hfcompress.architectures.pretrained import stock_config
from hfcompress.architectures.quantized_model import PackedModel
from hfcompress.errors import UserError, needs
from hfcompress.folders.files import whole_path
from hfcompress.formats.gguf_tokenizer import add_tokenizer
from hfcompress.ops.grid import Grid, Quantized

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

ROPE_FACTORS = "rope_freqs.weight"
NO_CAP = 1e6  # llama.cpp divides by a cap: of so large a one c * tanh(x / c) is x to a float's last bit
BLOCK = 32
HALF_STEP = 2.0**-11  # float16's rounding, of the value
HALF_SMALLEST = 2.0**-25  # and at the least, below its normal numbers


def require_gguf() -> Any:
    """The gguf package.

    Raises:
        UserError: it is not installed.
    """
    needs("gguf")
    import gguf

    return gguf


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its name there, its type, the module or tensor it comes from, the order of its rows."""

    name: str
    type: str
    source: str
    shape: tuple[int, ...]
    order: "torch.Tensor | None" = None


def write(packed: PackedModel, file: Path) -> list[Entry]:
    """Write the file, a tensor at a time in memory; it is there whole or not at all.

    Raises:
        UserError: the model or its tokenizer is not one that llama.cpp computes.
    """
    gguf = require_gguf()

    require_supported(packed.folder, packed.config)
    found = entries(packed)
    with whole_path(file) as part:
        writer = gguf.GGUFWriter(part, graph(packed.config).graph)
        describe(writer, packed.config, found)
        add_tokenizer(writer, packed.folder, int(packed.config["vocab_size"]))
        for entry in found:
            kind = gguf.GGMLQuantizationType[entry.type]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            count = int(np.prod(entry.shape)) // block * size
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), count, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in found:
            writer.write_tensor_data(data(packed, entry))
        writer.close()
    return found


def require_supported(model: Path | str, config: dict[str, Any]) -> None:
    """Refuse what llama.cpp would compute otherwise.

    Args:
        model: its folder, or other words for it in the message.

    Raises:
        UserError: naming what.
    """
    named, decoder = architecture(config), DECODERS.get(str(config.get("model_type")))
    known = [each.class_name for each in DECODERS.values() if each.llama_cpp]
    if named not in known or decoder is None:
        raise UserError(f"{model} is a {named}; GGUF export knows {', '.join(known)}")
    kind, found = kind_of(config), graph(config)
    if kind.activation != kind.usual_activation:
        raise UserError(f"{model} has hidden_act {kind.activation}; llama.cpp computes {kind.usual_activation}")
    if (turned := rope_type(config)) not in found.rope_types:
        raise UserError(
            f"{model} has rope_type {turned}; GGUF export of a {named} knows {', '.join(found.rope_types)}"
        )
    scalar = decoder.value(config, "query_pre_attn_scalar")
    if scalar is not None and float(scalar) != (size := attention_divisor(config)):
        raise UserError(f"{model} has query_pre_attn_scalar {scalar}; llama.cpp divides by the root of {size}")
    if reason := not_in_graph(config, kind):
        raise UserError(f"{model} has {reason}; leave gguf out of --formats")


def attention_divisor(config: dict[str, Any]) -> int:
    """Return the number by whose root llama.cpp divides attention: with some layers not the head's size."""
    if int(config["num_hidden_layers"]) == graph(config).scalar_of_even_heads_at:
        return int(config["hidden_size"]) // int(config["num_attention_heads"])
    return head_size(config)


def not_in_graph(config: dict[str, Any], kind: DecoderKind) -> str | None:
    """Return what llama.cpp's graph of the architecture does not compute, as words; None where it computes all."""
    found, decoder = graph(config), decoder_of(config)
    name, even = found.graph, int(config["hidden_size"]) // int(config["num_attention_heads"])
    if not found.own_head and not decoder.value(config, "tie_word_embeddings"):
        return f"a head of its own (tie_word_embeddings false), where llama.cpp's {name} reads the embedding"
    if not found.output_bias and decoder.value(config, "attention_bias"):
        return f"attention_bias true, and llama.cpp's {name} adds no bias to attention's output"
    if not found.mlp_bias and decoder.value(config, "mlp_bias"):
        return f"mlp_bias true, and llama.cpp's {name} adds no bias to the MLP"
    if found.even_heads and head_size(config) != even:
        return f"head_dim {head_size(config)}, where llama.cpp's {name} takes hidden_size / heads, {even}"
    every = found.unrotated_every
    if kind.rotated != tuple(not every or bool((i + 1) % every) for i in range(len(kind.rotated))):
        computed = f"all layers but every {every}th" if every else "all layers"
        return f"no_rope_layers of its own, where llama.cpp's {name} rotates {computed}"
    return None


def graph(config: dict[str, Any]) -> LlamaCpp:
    """Return what computes this architecture in llama.cpp, which has it (see `require_supported`)."""
    found = decoder_of(config).llama_cpp
    assert found is not None
    return found


def describe(writer: Any, config: dict[str, Any], found: list[Entry]) -> None:
    """The model's shape, under GGUF's keys for its architecture."""
    gguf = require_gguf()
    context = describe_graph(writer, graph(config), kind_of(config), config["max_position_embeddings"])
    head = head_size(config)
    writer.add_context_length(context)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(kv_heads(config))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(int(head * rotary_share(config)))
    writer.add_rope_freq_base(rope_base(config))
    writer.add_layer_norm_rms_eps(norm_epsilon(config))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kinds = [entry.type for entry in found if len(entry.shape) == 2]
    most = max(sorted(set(kinds)), key=kinds.count)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if most == "F32" else f"MOSTLY_{most}"])


def describe_graph(writer: Any, computes: LlamaCpp, kind: DecoderKind, context: int) -> int:
    """Add the keys that some graphs alone read.

    Returns: the tokens for which the graph computes the model: beyond a window that it does not know the answers
    would be another model's.
    """
    windows: tuple[int | None, ...] = (None,) * len(kind.windows)
    if every := computes.unwindowed_every:
        window = kind.smallest_window or context
        windows = tuple(window if (i + 1) % every else None for i in range(len(kind.windows)))
        writer.add_sliding_window(window)
    if computes.softcaps:
        writer.add_attn_logit_softcapping(kind.attention_softcap or NO_CAP)
        writer.add_final_logit_softcapping(kind.logit_softcap or NO_CAP)
    if computes.multipliers:
        writer.add_embedding_scale(kind.embedding_scale)
        writer.add_residual_scale(kind.residual_scale)
        writer.add_logit_scale(kind.logit_divisor)
        if kind.attention_scale is not None:
            writer.add_attention_scale(kind.attention_scale)
    return min(context, kind.smallest_window) if kind.smallest_window and kind.windows != windows else context


def entries(packed: PackedModel) -> list[Entry]:
    """Every tensor of the file: the matrices, in the order of the model's modules, and the rest."""
    gguf = require_gguf()
    architecture = gguf.MODEL_ARCH[graph(packed.config).graph.upper()]
    names = gguf.get_tensor_name_map(architecture, packed.config["num_hidden_layers"])
    found = []
    for source in (*packed.grids, *packed.plain_names()):
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UserError(f"{packed.folder} has a tensor {source}, which a GGUF file of its architecture has not")
        shape: tuple[int, ...]
        if source in packed.grids:
            shape = (packed.checkpoint.shape(f"{source}.codes")[0], packed.columns(source))
            name, kind = f"{name}.weight", block_type(packed.grids[source], shape[1])
        else:
            shape, kind = packed.checkpoint.shape(source), "F32"
        found.append(Entry(name, kind, source, shape, rope_order(source, packed.config)))
    if (factors := rope_factors(packed)) is not None:
        found.append(Entry(ROPE_FACTORS, "F32", ROPE_FACTORS, factors.shape))
    return found


def data(packed: PackedModel, entry: Entry) -> Array:
    """A tensor's bytes as they lie in the file."""
    if entry.source == ROPE_FACTORS:
        factors = rope_factors(packed)
        assert factors is not None
        return factors
    if entry.source in packed.grids:
        return blocks(reordered(packed.quantized(entry.source), entry.order), entry.type)
    plain = packed.tensor(entry.source).float()
    if entry.source.endswith("norm.weight"):
        plain = plain + kind_of(packed.config).norm_offset
    return (plain if entry.order is None else plain[entry.order]).numpy()


def block_type(grid: Grid, columns: int) -> str:
    """The type that holds a grid; see this module's table."""
    if columns % BLOCK:
        return "F32"
    if grid.bits == 8:
        return "Q8_0" if grid.symmetric else "F16"
    return "Q4_0" if grid.symmetric else "Q4_1"


def blocks(quantized: Quantized, kind: str) -> Array:
    """A matrix in blocks: uint8 [rows, bytes], or float [rows, columns] where it has none."""
    grid = quantized.grid
    if kind in ("F32", "F16"):
        return quantized.dequantize().numpy().astype(np.float32 if kind == "F32" else np.float16)
    codes = quantized.codes.numpy()
    rows, columns = codes.shape
    repeats = columns // BLOCK // quantized.scales.shape[1]
    scales = np.repeat(quantized.scales.numpy(), repeats, axis=1)  # float16 [rows, blocks]
    header = [scales]
    if kind == "Q8_0":
        body = (codes ^ 128).reshape(rows, -1, BLOCK)  # code - 128 in two's complement
    elif kind == "Q4_0":
        body = nibbles(codes + np.uint8(8 - grid.middle))
    else:
        least = scales.astype(np.float32) * np.repeat(quantized.zeros.numpy(), repeats, axis=1)
        header.append((-least).astype(np.float16))
        body = nibbles(codes)
    parts = [part[:, :, None].view(np.uint8) for part in header]
    return np.concatenate([*parts, body], axis=2).reshape(rows, -1)


def nibbles(codes: Array) -> Array:
    """uint8 [rows, columns], values up to 15 -> uint8 [rows, blocks, 16]: byte i holds codes i (low) and i + 16."""
    halves = codes.reshape(codes.shape[0], -1, 2, BLOCK // 2)
    return halves[:, :, 0] | (halves[:, :, 1] << 4)


def rope_order(source: str, config: dict[str, Any]) -> "torch.Tensor | None":
    """Which row of a q or k projection comes where.

    transformers turns element i of a head together with element i + size / 2; some graphs of llama.cpp turn
    neighbors, and its other graphs do as transformers does.
    """
    import torch

    module = source.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    if module not in ("q_proj", "k_proj") or not graph(config).rotates_neighbors:
        return None
    heads = config["num_attention_heads"]
    if module == "k_proj":
        heads = kv_heads(config)
    return torch.arange(heads * head_size(config)).view(heads, 2, -1).transpose(1, 2).flatten()


def reordered(quantized: Quantized, order: "torch.Tensor | None") -> Quantized:
    """The same rows in another order."""
    if order is None:
        return quantized
    return Quantized(quantized.codes[order], quantized.scales[order], quantized.zeros[order], quantized.grid)


def rope_factors(packed: PackedModel) -> Array | None:
    """What each rotary frequency is divided by, float32 [head size / 2]; None where nothing is.

    transformers itself is asked for the frequencies: a file that holds their ratios needs no formula of its own.
    """
    if rope_type(packed.config) == "default":
        return None
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    size = head_size(packed.config)
    plain = rope_base(packed.config) ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    turned = LlamaRotaryEmbedding(config=stock_config(packed.folder)).inv_freq
    return (plain / turned.double().numpy()).astype(np.float32)


def allowed_error(quantized: Quantized, kind: str) -> Array:
    """How far the file's values may be from the packed model's, float32 [rows, groups]; see the table above."""
    scales, zeros = quantized.scales.float().numpy(), quantized.zeros.numpy()
    if kind == "Q4_1":
        return np.asarray(np.maximum(scales * zeros * HALF_STEP, HALF_SMALLEST * (zeros > 0)))
    if kind == "F16":
        return np.asarray(np.maximum(scales * quantized.grid.levels * HALF_STEP, HALF_SMALLEST))
    return np.zeros_like(scales)
