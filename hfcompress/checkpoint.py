"""A causal LM's safetensors, read tensor by tensor and row by row, so that it never has to fit in memory.

Files are read with plain reads and not mapped: the pages of a mapping count as resident memory of the process, and a
memory limit is what this is for.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError
from hfcompress.files import whole_path
from hfcompress.guard import check_index, read_config
from hfcompress.models import PICKLES

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8", "I64": "int64", "F64": "float64"}
DTYPES |= {"I8": "int8", "I32": "int32", "I16": "int16", "BOOL": "bool"}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: file, first byte, shape and type."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def itemsize(self) -> int:
        return {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}.get(self.dtype, 1)

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


class Checkpoint:
    """The tensors of a model folder by name.

    Raises:
        UserError: no config.json, weights that are a pickle, a shard that is missing, cut short or not what the index
            says, or code of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = read_config(folder)
        self.places: dict[str, Place] = {}
        for file in shards(folder):
            self.places |= header(file)
        self._check_index()

    def _check_index(self) -> None:
        if not (self.folder / INDEX).is_file():
            return
        for name, file in read_index(self.folder).items():
            if name not in self.places or self.places[name].file.name != file:
                raise UserError(
                    f"{self.folder / INDEX} places {name} in {file}, where it is not; fetch the model again"
                )

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._place(name).shape

    def read(self, name: str, rows: slice | None = None) -> "Tensor":
        """A tensor, or some of its rows, in the type that it is stored in."""
        import torch

        place = self._place(name)
        start, stop, _ = (rows or slice(None)).indices(place.shape[0] if place.shape else 1)
        shape = (stop - start, *place.shape[1:]) if place.shape else ()
        row = place.bytes // max(place.shape[0], 1) if place.shape else place.itemsize
        tensor = torch.empty((stop - start) * row, dtype=torch.uint8)
        with place.file.open("rb", buffering=0) as stream:
            stream.seek(place.offset + start * row)
            view, done = memoryview(tensor.numpy()), 0
            while done < len(view):
                count = stream.readinto(view[done:])
                if not count:
                    raise UserError(f"{place.file} is cut short; fetch or make it again")
                done += count
        return tensor.view(getattr(torch, DTYPES[place.dtype])).view(shape)

    def _place(self, name: str) -> Place:
        if name not in self.places:
            raise UserError(f"{self.folder} has no tensor {name}")
        return self.places[name]


def shards(folder: Path) -> list[Path]:
    """The files that hold the weights, in order."""
    if (folder / INDEX).is_file():
        names = sorted(set(read_index(folder).values()))
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing, which {INDEX} names; fetch the model again")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickled = next((name for name in PICKLES if (folder / name).exists()), None)
    if pickled:
        raise UserError(
            f"{folder / pickled} is a pickle, which can run code when read; convert it on a machine you trust: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(..., safe_serialization=True)"
        )
    raise UserError(f"{folder} has no weights (model.safetensors, or {INDEX} and its shards)")


def read_index(folder: Path) -> dict[str, str]:
    """Return tensor name -> file, of an index that was checked."""
    return check_index(folder / INDEX)


def header(file: Path) -> dict[str, Place]:
    """Tensor name -> place, from a safetensors file's header; nothing else is read.

    Raises:
        UserError: the file is cut short or damaged.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("the header is longer than the file")
            entries = json.loads(stream.read(length))
        places = {
            name: Place(file, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        for name, place in places.items():
            if place.dtype not in DTYPES:
                raise ValueError(f"{name} is {place.dtype}, which is not read")
            if place.offset + place.bytes > size or place.bytes != (
                entries[name]["data_offsets"][1] - entries[name]["data_offsets"][0]
            ):
                raise ValueError(f"{name} ends at byte {place.offset + place.bytes:,} of {size:,}")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise UserError(f"{file} is damaged or cut short ({error}); fetch or make it again") from None
    return places


def write_shard(file: Path, tensors: "dict[str, Tensor]") -> None:
    """Write a safetensors file that is there whole or not at all; see `whole_path`."""
    from safetensors.torch import save_file

    with whole_path(file) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata={"format": "pt"})
