"""What `WeightOnly` writes: shards of matrices on their grids, and the folder that they make."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.checkpoint import INDEX, header
from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import UserError
from hfcompress.folders.end_tokens import copy_beside
from hfcompress.folders.files import place
from hfcompress.folders.record import write_json
from hfcompress.ops.grid import Grid, Quantized

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from torch import Tensor


def nearest(checkpoint: Any, name: str, grid: Grid) -> "dict[str, Tensor]":
    """RTN of a matrix: rows are read, rounded and packed while others are still being read."""
    import torch

    from hfcompress.architectures.quantized_model import packed_tensors
    from hfcompress.ops.rtn import CHUNK_ROWS, rtn

    rows, _ = checkpoint.shape(f"{name}.weight")
    chunks = [slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS)]

    def packed(chunk: slice) -> "dict[str, Tensor]":
        quantized = rtn(checkpoint.read(f"{name}.weight", chunk), grid)
        return packed_tensors(name, require_finite(quantized, checkpoint, name))

    tensors: dict[str, Tensor] = {}
    with single_threads() as pool:
        for chunk, parts in zip(chunks, pool.map(packed, chunks), strict=True):
            for part, values in parts.items():
                if part not in tensors:
                    tensors[part] = torch.empty((rows, values.shape[1]), dtype=values.dtype)
                tensors[part][chunk] = values
    return tensors


@contextmanager
def single_threads() -> "Iterator[ThreadPoolExecutor]":
    """As many threads as torch computes with, and in each of them torch computes with that one."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def require_finite(quantized: "Quantized", checkpoint: Any, name: str) -> "Quantized":
    """A weight of NaN or Inf shows in its group's scale: nothing else need be looked through.

    Raises:
        UserError: naming the tensor.
    """
    largest = 65504  # what float16 holds: an infinite scale is clamped to it
    if not quantized.scales.isfinite().all() or float(quantized.scales.abs().max()) >= largest:
        raise UserError(f"{checkpoint.folder}: {name}.weight holds NaN or Inf; the model is damaged, make it again")
    return quantized


def quantized_rows(shard: Path, grids: dict[str, Grid]) -> Any:
    """A function from token ids [windows, tokens] to the rows of the quantized embedding."""
    import torch
    from safetensors.torch import load_file

    from hfcompress.architectures.decoder_stack import EMBEDDING
    from hfcompress.ops.packing import unpack

    stored, grid = load_file(shard), grids[EMBEDDING]

    def look_up(ids: Any) -> "Tensor":
        rows = torch.from_numpy(ids)
        wanted, place = rows.unique(return_inverse=True)
        scales = stored[f"{EMBEDDING}.scales"][wanted]
        zeros = torch.full(scales.shape, grid.middle, dtype=torch.uint8)
        if not grid.symmetric:
            zeros = unpack(stored[f"{EMBEDDING}.zeros"][wanted], grid.bits, scales.shape[1])
        packed = stored[f"{EMBEDDING}.codes"][wanted]
        codes = unpack(packed, grid.bits, packed.shape[1] * 8 // grid.bits)
        return Quantized(codes, scales, zeros, grid).dequantize()[place]

    return look_up


def plain(checkpoint: Any, prefix: str, written: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors of a layer that are on no grid (norms, biases), as they are stored."""
    matrices = {name.rpartition(".")[0] for name in written if name.endswith(".codes")}
    return {
        name: as_stored(checkpoint, name)
        for name in checkpoint.places
        if name.startswith(prefix) and name not in written and name.removesuffix(".weight") not in matrices
    }


def as_stored(checkpoint: Any, name: str) -> "Tensor":
    """A tensor in its own type.

    Raises:
        UserError: it holds NaN or Inf.
    """
    from hfcompress.architectures.decoder_stack import finite

    stored: Tensor = checkpoint.read(name)
    return finite(checkpoint, name).to(stored.dtype)


def require_room(work: Path, checkpoint: Any, grids: dict[str, Grid]) -> None:
    """Refuse before anything is written when the disk has no room for the result.

    Args:
        work: where the shards are written.

    Raises:
        UserError: with both figures.
    """
    weights = {name: checkpoint.shape(f"{name}.weight") for name in grids}
    needed = sum(rows * columns * grids[n].bits_per_weight(columns) / 8 for n, (rows, columns) in weights.items())
    written = sum(file.stat().st_size for file in work.glob("*.safetensors"))
    free = shutil.disk_usage(work).free
    if needed - written > free:
        room = f"{free / 1e6:,.0f} MB free, and {(needed - written) / 1e6:,.0f} MB are to be written"
        raise UserError(f"{work.parents[1]} has {room}")


def bits_per_weight(checkpoint: Any, grids: dict[str, Grid]) -> float:
    """Average over all matrices, scales included."""
    shapes = {name: checkpoint.shape(f"{name}.weight") for name in grids}
    total = sum(rows * columns for rows, columns in shapes.values())
    return sum(r * c * grids[name].bits_per_weight(c) for name, (r, c) in shapes.items()) / total


def finish(model: Path, out: Path, files: list[Path], grids: dict[str, Grid]) -> None:
    """The shards in their place, the index, the grids, the config and the tokenizer's files."""
    from hfcompress.architectures.quantized_model import SURGERY

    files = [place(file, out) for file in files]
    places = {name: file.name for file in files for name in header(file)}
    total = sum(file.stat().st_size for file in files)
    write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    write_json(out / SURGERY, {"format": "packed", "grids": {name: vars(grid) for name, grid in grids.items()}})
    shutil.copyfile(model / "config.json", out / "config.json")
    copy_beside(model, out)
    load_tokenizer(model).save_pretrained(out)
