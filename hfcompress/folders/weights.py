"""Which files and tensors transformers would load from a model folder, read from the files' headers alone.

Every reader of weights asks this module, whether it reads row by row, by transformers, or counts bytes.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError
from hfcompress.folders.guard import check_index

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")
# Files of weights by their ends: what transformers does not read of these is neither counted nor copied.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".ckpt")
GRAPH_SUFFIXES = (".onnx", ".onnx_data", ".onnx.data", ".gguf", ".tflite", ".xml")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8", "I64": "int64", "F64": "float64"}
DTYPES |= {"I8": "int8", "I32": "int32", "I16": "int16", "BOOL": "bool"}
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
# Side files in which tools wrote what transformers now writes into config.json's quantization_config.
SIDE_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
    "quanto_qmap.json": "quanto",
}
METHODS = {
    "bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "compressed-tensors": "compressed-tensors",
    "fp8": "float8", "fbgemm_fp8": "float8", "mxfp4": "MXFP4", "hqq": "HQQ", "torchao": "torchao",
    "quanto": "quanto", "modelopt": "ModelOpt", "mlx": "MLX",
}  # fmt: skip
# Ends of tensor names that only quantized modules have.
MARKS = {
    ".quant_map": "bitsandbytes", ".SCB": "bitsandbytes", ".qweight": "GPTQ or AWQ", ".weight_packed":
    "compressed-tensors", ".weight_scale_inv": "float8", ".codes": "packed by hfcompress", "_blocks": "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: file, first byte, shape and type."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def itemsize(self) -> int:
        return ITEM_BYTES.get(self.dtype, 1)

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers loads, in order: model.safetensors, else the index's shards.

    Raises:
        UserError: there is none, a shard is missing, or the index is refused (guard.check_index).
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = sorted(set(check_index(folder / INDEX).values()))
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing, which {INDEX} names; fetch the model again")
        return [folder / name for name in names]
    raise UserError(no_weights(folder))


def no_weights(folder: Path) -> str:
    """What a folder without weights that are read has instead, and what to do."""
    pickled = next((name for name in PICKLES if (folder / name).exists()), None)
    if pickled:
        return (
            f"{folder / pickled} is a pickle, which can run code when read; convert it on a machine you trust: "
            f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained(..., safe_serialization=True)"
        )
    if other := next(iter(sorted(folder.glob("*.gguf"))), None):
        return f"{other} is GGUF, which is already quantized or for llama.cpp alone; give the safetensors folder"
    if other := next((file for suffix in ("onnx", "tflite") for file in sorted(folder.glob(f"*.{suffix}"))), None):
        return f"{other} is an exported graph, without weights to train or round; give the folder it was exported from"
    if other := next(iter(sorted(folder.glob("*.safetensors"))), None):
        return f"{folder} has no {SINGLE} and no {INDEX}; transformers does not read {other.name}: rename it"
    return f"{folder} has no weights ({SINGLE}, or {INDEX} and its shards)"


def require_weights_or_none(folder: Path) -> None:
    """Refuse a folder whose only weights are of another runtime; one with a config.json alone can be planned.

    Raises:
        UserError: see `no_weights`.
    """
    others = any(file.suffix in (".onnx", ".gguf", ".tflite") or file.name in PICKLES for file in folder.iterdir())
    if others and not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise UserError(no_weights(folder))


def stored_tensors(folder: Path) -> dict[str, Place]:
    """Return the tensors that transformers finds in a folder, by the names in the files.

    Of shards these are the names in the index; where model.safetensors lies beside an index, the index is not read.

    Raises:
        UserError: see `weight_files` and `header`; the index places a tensor where it is not; two shards hold one.
    """
    files = weight_files(folder)
    found = {file.name: header(file) for file in files}
    if files == [folder / SINGLE]:
        return found[SINGLE]
    places = {}
    for name, file in check_index(folder / INDEX).items():
        if name not in found[file]:
            raise UserError(f"{folder / INDEX} places {name} in {file}, where it is not; fetch the model again")
        places[name] = found[file][name]
    return places


def header(file: Path) -> dict[str, Place]:
    """Return tensor name -> place, from a safetensors file's header; nothing else is read.

    Raises:
        UserError: the file is cut short or damaged, or was written for another framework than torch.
    """
    from safetensors import SafetensorError, safe_open

    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("the header is longer than the file")
            entries = json.loads(stream.read(length))
        metadata = entries.pop("__metadata__", None) or {}
        places = {
            name: Place(file, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
            for name, entry in entries.items()
        }
        for name, place in places.items():
            if place.dtype.startswith(("F8_", "F6_", "F4")):
                raise UserError(already_quantized(file.parent, "float8" if "8" in place.dtype else "float4", name))
            if place.dtype == "U32":
                raise UserError(already_quantized(file.parent, "MLX", name))
            if place.dtype not in DTYPES:
                raise ValueError(f"{name} is {place.dtype}, which is not read")
            stated = entries[name]["data_offsets"][1] - entries[name]["data_offsets"][0]
            if place.offset + place.bytes > size or place.bytes != stated or place.offset < 8 + length:
                raise ValueError(f"{name} ends at byte {place.offset + place.bytes:,} of {size:,}")
        with safe_open(file, framework="numpy"):  # transformers' reader wants the tensors to fill the file, too
            pass
    except (
        ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error, SafetensorError
    ) as error:  # fmt: skip
        raise UserError(f"{file} is damaged or cut short ({error}); fetch or make it again") from None
    if metadata.get("format", "pt") not in ("pt", "mlx"):
        raise UserError(f"{file} was written for {metadata['format']}, not torch; save the torch model there")
    return places


def unread_weights(folder: Path) -> set[Path]:
    """Return the files of weights that are not read by who loads the folder: pickles, stale shards, other copies.

    Where a graph lies at the top (*.onnx, *.gguf) the safetensors are such; else all weights that are not
    `weight_files` are. Empty for a folder without any of these.
    """
    graphs = [*folder.glob("*.onnx"), *folder.glob("*.gguf")]
    if not graphs and not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return set()
    read = set() if graphs else set(weight_files(folder))
    suffixes = WEIGHT_SUFFIXES if graphs else (*WEIGHT_SUFFIXES, *GRAPH_SUFFIXES)
    unread = {f for f in folder.rglob("*") if f.is_file() and f not in read and f.name.endswith(suffixes)}
    indexes = [*folder.glob("*.bin.index.json")]
    if graphs or (folder / SINGLE) in read:
        indexes += folder.glob("*.safetensors.index.json")
    return unread | set(indexes)


def already_quantized(folder: Path, method: str, where: str) -> str:
    """The line for a model that was quantized before."""
    return (
        f"{folder} is already quantized ({method}: {where}), and what was rounded cannot be rounded again; "
        "give the model that it was made from, in 16 or 32 bits"
    )


def require_unquantized(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a model whose weights another tool, or this one, has quantized, before anything is computed.

    Args:
        config: the folder's config.json.

    Raises:
        UserError: naming the method, where it is seen, and what to give instead.
    """
    if method := quantized_by(config):
        raise UserError(already_quantized(folder, *method))
    for name, tool in SIDE_FILES.items():
        if (folder / name).is_file():
            raise UserError(already_quantized(folder, tool, name))


def quantized_by(config: dict[str, Any]) -> tuple[str, str] | None:
    """Return (method, field) of a config.json that says that its weights are quantized; None where it does not."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for field in ("quantization_config", "compression_config", "quantization"):
            if isinstance(found := part.get(field), dict) and found:
                named = str(found.get("quant_method") or ("mlx" if field == "quantization" else "compressed-tensors"))
                return METHODS.get(named, named[:40]), f"{field} in config.json"
    return None


def require_plain_tensors(folder: Path, names: Any) -> None:
    """Refuse tensors under the names that only quantized modules have, whatever config.json says.

    Raises:
        UserError: naming one.
    """
    for name in names:
        for mark, method in MARKS.items():
            if name.endswith(mark):
                raise UserError(already_quantized(folder, method, name))
