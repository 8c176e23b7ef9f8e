"""What a model folder really holds: bytes, parameters and types, read from the files' headers."""

import json
import math
import struct
from pathlib import Path
from typing import Any

from hfcompress.errors import needs
from hfcompress.folders.foreign_files import read_object
from hfcompress.folders.guard import read_config
from hfcompress.folders.weights import header, unread_weights
from hfcompress.formats import format_of

NOT_SHIPPED = {"record.json", "measurements.json", "predictions.npz", "autotune.json"}
# Stored, and no parameters: statistics of batch norms, positions, and the masks of old checkpoints.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "position_ids", "masked_bias", "inv_freq")
EMBEDDING_PARTS = (".embeddings.", "embedding_hidden_mapping_in")
SAFETENSORS_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}
SAFETENSORS_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def sizes(folder: Path) -> dict[str, Any]:
    """Bytes a user must ship, parameters, and bytes by type of a model folder.

    Returns: bytes (all files but records), parameters (elements of weights; scales and zero points of quantized
        weights do not count), dtypes (name -> bytes of tensors).
    """
    files = shipped_files(folder)
    parameters, dtypes = 0, dict[str, int]()
    packed, found = packed_bits(folder), format_of(folder)
    for file in files:
        if not file.match(found.weights):
            continue
        for _, (elements, dtype, bits, is_weight) in found.tensors(file, packed):
            dtypes[dtype] = dtypes.get(dtype, 0) + elements * bits // 8
            parameters += elements if is_weight else 0
    return {
        "bytes": sum(file.stat().st_size for file in files),
        "parameters": parameters,
        "dtypes": dict(sorted(dtypes.items())),
    }


def shipped_files(folder: Path) -> list[Path]:
    """Return the files that whoever runs the model needs: no records, and no weights that are not read.

    A stage's scratch (work), while its folder is being made, does not count either.
    """
    unread = unread_weights(folder)
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.name not in NOT_SHIPPED
        and file not in unread
        and file.relative_to(folder).parts[0] != "work"
    ]


def integer_bytes(dtypes: dict[str, int]) -> int:
    """Bytes of 8-bit integers among bytes by type: int8, and uint8 with zero points of 128."""
    return dtypes.get("int8", 0) + dtypes.get("uint8", 0)


def embedding_bytes(folder: Path) -> int:
    """What an encoder's embeddings take: tables, scales, their LayerNorm, and the projection of factorized ones."""
    found = format_of(folder)
    named = [entry for file in found.files(folder) for entry in found.tensors(file, {})]
    ours = [entry for name, entry in named if any(part in name for part in EMBEDDING_PARTS)]
    return sum(elements * bits // 8 for elements, _, bits, _ in ours)


def packed_bits(folder: Path) -> dict[str, int]:
    """Module -> bits of its packed integers, for our quantized form or compressed-tensors'."""
    if (folder / "surgery.json").is_file():
        grids = read_object(folder / "surgery.json").get("grids", {})
        return {name: grid["bits"] for name, grid in grids.items()}
    found = read_config(folder) if (folder / "config.json").is_file() else {}
    groups = found.get("quantization_config", {}).get("config_groups", {})
    return {name: group["weights"]["num_bits"] for group in groups.values() for name in group["targets"]}


def packed_tensor(name: str, shape: list[int], bits: int, packed: dict[str, int]) -> tuple[int, str, int, bool] | None:
    """What a part of a packed matrix holds; None for any other tensor."""
    module, _, part = name.rpartition(".")
    if module not in packed or part == "weight":
        return None
    if part in ("codes", "weight_packed"):
        return math.prod(shape) * bits // packed[module], f"int{packed[module]}", packed[module], True
    return math.prod(shape), {16: "float16", 8: "uint8", 32: "int32", 64: "int64"}[bits], bits, False


def named_tensors(file: Path, packed: dict[str, int] | None = None) -> list[tuple[str, tuple[int, str, int, bool]]]:
    """The same, each with the tensor's name."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return [
        (
            name,
            packed_tensor(name, entry["shape"], SAFETENSORS_BITS[entry["dtype"]], packed or {})
            or (
                math.prod(entry["shape"]),
                SAFETENSORS_NAMES[entry["dtype"]],
                SAFETENSORS_BITS[entry["dtype"]],
                not name.endswith(BUFFERS),
            ),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    ]


def safetensors_parts(file: Path) -> list[tuple[str, int, int]]:
    """(tensor, parameters, bytes) of each tensor; a buffer that is stored counts no parameters, as in torch."""
    return [
        (name, 0 if name.endswith(BUFFERS) else math.prod(place.shape), place.bytes)
        for name, place in header(file).items()
    ]


def named_initializers(file: Path) -> list[tuple[str, tuple[int, str, int, bool]]]:
    """The same, each with the tensor's name.

    A scale or zero point is what stands at the second or later place of a Q/DQ or integer operator, or is named so.
    """
    import onnx
    from onnx import TensorProto

    model = onnx.load(str(file), load_external_data=False)
    constants = [
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    helpers = quantization_parameters(model)
    nbits = nbits_weights(model)
    found = []
    places = set()
    for tensor in [*model.graph.initializer, *constants]:
        place = tuple(sorted((entry.key, entry.value) for entry in tensor.external_data if entry.key != "length"))
        if place and place in places:  # a tied head reads the embedding's bytes
            continue
        places.add(place)
        if tensor.name in nbits:
            elements, bits = nbits[tensor.name]
            found.append((tensor.name, (elements, f"int{bits}", bits, True)))
            continue
        dtype = TensorProto.DataType.Name(tensor.data_type).lower()
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        is_weight = bool(tensor.dims) and tensor.name not in helpers and dtype not in ("int64", "bool")
        name = {"float": "float32", "double": "float64"}.get(dtype, dtype)
        found.append((tensor.name, (math.prod(tensor.dims), name, bits, is_weight)))
    return found


def nbits_weights(model: Any) -> dict[str, tuple[int, int]]:
    """Initializer -> (weights, bits) of the packed matrices that MatMulNBits and GatherBlockQuantized read."""
    found = {}
    sizes_of = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            found[node.input[1]] = (attributes["N"] * attributes["K"], attributes.get("bits", 4))
        elif node.op_type == "GatherBlockQuantized" and node.input[0] in sizes_of:
            bits = attributes.get("bits", 4)
            found.setdefault(node.input[0], (sizes_of[node.input[0]] * 8 // bits, bits))
    return found


def named_gguf_tensors(file: Path) -> list[tuple[str, tuple[int, str, int, bool]]]:
    """The same, each with the tensor's name."""
    needs("gguf")
    import gguf

    found = []
    for tensor in gguf.GGUFReader(file).tensors:
        kind, bits = tensor.tensor_type.name.lower(), int(8 * tensor.n_bytes // tensor.n_elements)
        found.append((str(tensor.name), (int(tensor.n_elements), kind, bits, True)))
    return found


def quantization_parameters(model: Any) -> set[str]:
    """Names of initializers that are scales or zero points."""
    names: set[str] = set()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            names.update(node.input[1:])
        elif node.op_type in ("MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"):
            names.update(node.input[2:])
        elif node.op_type == "MatMulNBits":
            names.update(node.input[2:4])
        elif node.op_type == "GatherBlockQuantized":
            names.update(node.input[2:])
        elif node.op_type == "MatMulIntegerToFloat":
            names.update(node.input[2:6])
    names.update(t.name for t in model.graph.initializer if t.name.endswith(("_scale", "_zero_point")))
    return names
