"""A causal LM on a device: its numbers, where each byte of its memory goes, and what they rest on.

`plan` tells it from a shape; `expected` counts the bytes of a decoder that was written.
"""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.budget import predicted_verdicts
from hfcompress.formats.matmul_nbits import BLOCK_BITS, FILE_SCALE_BITS, PAGE
from hfcompress.planning.devices.memory import (
    HERE,
    NUMBERS,
    PLAIN_BYTES,
    Device,
    decode_ms,
    device,
    first_token_ms,
    fits,
    resident_bytes,
)

if TYPE_CHECKING:
    from hfcompress.planning.plan import Compared, Plan

# Bytes of a decoder's ONNX folder that are no tensors, measured on written ones: nodes and names, and config files.
GRAPH_BYTES, LAYER_BYTES, CONFIG_BYTES, PIECE_BYTES = 3_000, 6_500, 4_000, 70
UNITS = {"memory_bandwidth": "GB/s", "usable_memory": "GB", "sustained": "of the bandwidth", "compute": "GFLOP/s"}


def compare_decoders(plan: "Plan", asked: "Compared") -> None:
    """Fill a plan's rows, verdicts, memory and advice: bytes from the shape, time from the device's bandwidth."""
    on, context, name = device(plan.on, asked.measure.threads), asked.measure.context, asked.candidate.name
    plan.rows = [
        {"name": model.name, "stage": model.stage, "format": "language"}
        | prediction(model.shape, on, context)
        | {"shape": dataclasses.asdict(replace(model.shape, config=None, folder=None))}
        for model in asked.models
    ]
    plan.verdicts = predicted_verdicts(asked.budget, name, plan.predictions[name])
    plan.memory = memory(asked.candidate.shape, on, context)
    plan.advice = lines(name, plan.memory)


def bytes_on(shape: LanguageShape, on: Device, context: int) -> dict[str, float]:
    """Resident bytes by what they hold; on this machine the model is served from Python, elsewhere without it."""
    return resident_bytes(shape, context, interpreter=on.name == HERE)


def prediction(shape: LanguageShape, on: Device, context: int) -> dict[str, Any]:
    """parameters, disk_mb, ram_mb, latency_ms (a token), first_token_ms; no ratio: nothing to count it from."""
    resident = bytes_on(shape, on, context)
    return {
        "parameters": shape.parameters,
        "disk_mb": disk_bytes(shape) / 1e6,
        "ram_mb": sum(resident.values()) / 1e6,
        "latency_ms": decode_ms(shape, on, context),
        "latency_ratio": None,
        "first_token_ms": first_token_ms(shape, on, context),
    }


def disk_bytes(shape: LanguageShape) -> float:
    """Return the bytes of all matrices, norms and biases in a file; of an ONNX decoder a tied head is stored once."""
    if shape.resident_bits is None:
        resident = resident_bytes(shape, 1)
        return resident["weights"] + resident["embedding"]
    matrices = shape.parameters - shape.plain_parameters
    return matrices * onnx_file_bits(shape.weight_bits) / 8 + shape.plain_parameters * PLAIN_BYTES


def onnx_file_bits(weight_bits: float) -> float:
    """About what matrices of so many bits, float16 scales of groups of 128 included, take in an ONNX file."""
    return weight_bits + (FILE_SCALE_BITS - 16) / 128


def beside_matrices(shape: LanguageShape, context: int) -> float:
    """Return the bytes of an ONNX decoder's folder that are no matrices: norms, rotary tables, cache scales, graph,
    tokenizer and config.

    Args:
        context: positions that the rotary tables have.
    """
    tables = PLAIN_BYTES * min(context, shape.context) * shape.head_dim + 2 * PAGE
    scales = PLAIN_BYTES * 2 * shape.layers * shape.kv_heads * shape.head_dim
    tokenizer = PIECE_BYTES * shape.vocab if shape.tokenizer_bytes is None else shape.tokenizer_bytes
    graph = GRAPH_BYTES + LAYER_BYTES * shape.layers + CONFIG_BYTES
    return shape.plain_parameters * PLAIN_BYTES + tables + scales + tokenizer + graph


def memory(shape: LanguageShape, on: Device, context: int) -> dict[str, Any]:
    """What of a model is resident on a device, in bytes, and whether that may be."""
    resident = bytes_on(shape, on, context)
    return {
        "device": on.name,
        "context": context,
        "bytes": {name: round(value) for name, value in resident.items() if value},
        "sum": round(sum(resident.values())),
        "usable": round(on.usable_memory * 1e9),
        "fits": fits(shape, on, context),
        "numbers": {name: getattr(on, name) for name in NUMBERS},
        "sources": on.sources,
        "estimated": list(on.estimated),
    }


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """`memory` of the model of that name as text."""
    answer = "fits" if found["fits"] else "DOES NOT FIT"
    rows = [f"Resident memory of {name} on {found['device']} at {found['context']:,} tokens, MB:"]
    rows += [f"  {part.replace('_', ' '):14} {value / 1e6:>9,.1f}" for part, value in found["bytes"].items()]
    rows.append(f"  {'sum':14} {found['sum'] / 1e6:>9,.1f} of {found['usable'] / 1e6:,.0f} usable: {answer}")
    rows.append(f"{found['device']} (* estimated):")
    for number, value in found["numbers"].items():
        star = "*" if number in found["estimated"] else " "
        unit, source = UNITS[number], found["sources"][number]
        rows.append(f" {star}{number.replace('_', ' '):16} {value:>8.4g} {unit:16} {source}")
    return rows


def expected(folder: Path, context: int) -> dict[str, float]:
    """Bytes that an ONNX decoder keeps resident at so many tokens, counted from its graph, by what they hold.

    Its matrices as onnxruntime repacks them, its embedding (all rows: a long text touches nearly every page), the
    graph's own tensors, the cache; activations, runtime and interpreter as planning/devices/memory.py says.
    """
    import math

    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    sizes = {tensor.name: math.prod(tensor.dims) * tensor_bytes(tensor.data_type) for tensor in graph.initializer}
    found = {"weights": 0.0, "embedding": 0.0, "kv_cache": 0.0}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            options = {attribute.name: attribute.i for attribute in node.attribute}
            bits = options["bits"] + BLOCK_BITS / options["block_size"]
            found["weights"] += options["N"] * options["K"] * bits / 8
            for name in node.input[1:]:
                sizes.pop(name, None)
        elif node.op_type == "GatherBlockQuantized":
            found["embedding"] += sum(sizes.pop(name, 0) for name in node.input)
    found["weights"] += sum(sizes.values())  # norms, biases, rotary tables
    for entry in graph.input:
        if entry.name.startswith("past_key_values."):
            _, heads, _, size = (axis.dim_value for axis in entry.type.tensor_type.shape.dim)
            found["kv_cache"] += heads * size * context * tensor_bytes(entry.type.tensor_type.elem_type)
    others = resident_bytes(LanguageShape.read(folder), context)
    return found | {name: others[name] for name in ("activations", "runtime", "interpreter")}


def tensor_bytes(data_type: int) -> int:
    """Bytes of an element of an ONNX type."""
    from onnx import helper

    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)
