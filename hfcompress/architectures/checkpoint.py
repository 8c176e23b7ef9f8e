"""A causal LM's safetensors, read tensor by tensor and row by row, so that it never has to fit in memory.

Files are read with plain reads and not mapped: the pages of a mapping count as resident memory of the process, and a
memory limit is what this is for.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.loading import loaded_places
from hfcompress.errors import UserError
from hfcompress.folders.files import whole_path
from hfcompress.folders.guard import read_config
from hfcompress.folders.weights import (
    DTYPES,
    INDEX,
    Place,
    header,
    require_plain_tensors,
    require_unquantized,
    stored_tensors,
    weight_files,
)

if TYPE_CHECKING:
    from torch import Tensor

SURGERY = "surgery.json"
__all__ = ["INDEX", "Checkpoint", "header", "weight_files", "write_shard"]


class Checkpoint:
    """The tensors of a model folder by name, as transformers would load them (weights.py, loading.py).

    `ignored` names the tensors in the files that it would leave out.

    Raises:
        UserError: no config.json, weights that are a pickle, quantized before, missing, cut short, or of other names
            or sizes than config.json says; a shard that is not what the index says; or code of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = read_config(folder)
        self.ignored: list[str] = []
        require_unquantized(folder, self.config)
        self.places: dict[str, Place] = stored_tensors(folder)
        if not (folder / SURGERY).is_file():
            require_plain_tensors(folder, self.places)
            self.places, self.ignored = loaded_places(folder, self.places)

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


def write_shard(file: Path, tensors: "dict[str, Tensor]") -> None:
    """Write a safetensors file that is there whole or not at all; see `whole_path`."""
    from safetensors.torch import save_file

    with whole_path(file) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata={"format": "pt"})
