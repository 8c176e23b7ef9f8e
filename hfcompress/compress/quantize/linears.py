"""quantize_linears: the linear layers of any causal LM as integers, in a folder that stock transformers loads.

For architectures that the layer-by-layer stages do not know: no calibration text is needed, so nothing need be known
but which tensors belong to a `torch.nn.Linear`. Embeddings, the head and everything else stay as they are.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.loading import empty_model, saved_names
from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import OptionError, UnknownShape, shown
from hfcompress.folders.end_tokens import copy_beside
from hfcompress.folders.files import place
from hfcompress.folders.record import write_json
from hfcompress.formats.bits_claimed import require_share
from hfcompress.ops.grid import BITS, GROUP_SIZES, Grid
from hfcompress.stage import TENSORS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfcompress.architectures.checkpoint import Checkpoint
    from hfcompress.ops.grid import Quantized


@dataclass(frozen=True)
class QuantizeLinears:
    """Round every linear layer but the head, a matrix at a time, into compressed-tensors' format."""

    algorithm: Literal["rtn", "hqq"] = "hqq"
    """rtn (nearest) or hqq (half-quadratic): those that need no calibration text."""
    bits: int = 4
    group_size: int = 64
    """Columns that share a scale; 0 is the whole row, as where it does not divide a matrix's columns."""
    symmetric: bool = False

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TENSORS, "compressed-tensors")

    def __post_init__(self) -> None:
        for name, value, known in (("bits", self.bits, BITS), ("group_size", self.group_size, GROUP_SIZES)):
            if value not in known:
                raise OptionError(name, "choose from {known}", value, known=shown(known))

    def __call__(self, out: Path, *, model: Path, disk_mb: float | None = None) -> dict[str, Any]:
        """Write the folder, a shard after the other; shards that are there from a run that was killed are kept.

        Args:
            disk_mb: what the folder may take, in MB.

        Raises:
            UserError: the model cannot be read, holds NaN, has less than half of its weights in linear layers, or will
                not fit on the disk.
        """
        from transformers import AutoModelForCausalLM

        from hfcompress.architectures.checkpoint import INDEX, Checkpoint, header, write_shard
        from hfcompress.formats.compressed_tensors import config

        checkpoint = Checkpoint(model)
        network = empty_model(model, AutoModelForCausalLM)
        modules, transposed = linear_modules(checkpoint, network)
        linears = {name: self.grid(checkpoint, name) for name in modules}
        shapes = {name: place.shape for name, place in checkpoint.places.items()}
        why = ""
        if transposed:
            why = f"{transposed[0]} and others are transformers' Conv1D, which compressed-tensors does not hold"
        share = require_share(model, shapes, {f"{name}.weight" for name in linears}, self.bits, why)
        print(f"{share:.1%} of the weights in {self.bits} bits, the others as they were", file=sys.stderr)
        self.require_disk(checkpoint, linears, disk_mb)
        by_file: dict[str, list[str]] = {}
        for name, lies in checkpoint.places.items():
            by_file.setdefault(lies.file.name, []).append(name)
        work = out / "work"
        work.mkdir(exist_ok=True)
        for file, names in by_file.items():
            if not (work / file).is_file():
                tensors = self.tensors(checkpoint, names, linears)
                saved = saved_names(network, tensors)
                write_shard(work / file, {saved[name]: tensor for name, tensor in tensors.items()})
            place(work / file, out)
        places = {name: file for file in by_file for name in header(out / file)}
        total = sum((out / file).stat().st_size for file in by_file)
        if len(by_file) > 1:
            write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        write_json(out / "config.json", checkpoint.config | {"quantization_config": config(linears)})
        copy_beside(model, out)
        load_tokenizer(model).save_pretrained(out)
        return {"matrices": len(linears), "share_of_weights": round(share, 4), "file_bytes": total}

    def require_disk(self, checkpoint: "Checkpoint", linears: dict[str, Grid], disk_mb: float | None) -> None:
        """Refuse before anything is rounded when the weights alone will take more than they may.

        Raises:
            UserError: with what they will take, and what no bits change.
        """
        if disk_mb is None:
            return
        weights = {name: checkpoint.shape(f"{name}.weight") for name in linears}
        packed = sum(r * c * linears[name].bits_per_weight(c) / 8 for name, (r, c) in weights.items())
        others = sum(
            place.bytes for name, place in checkpoint.places.items() if name.removesuffix(".weight") not in linears
        )
        if packed + others > 1e6 * disk_mb:
            raise OptionError(
                "budget.disk_mb",
                "{n} bits make {all:.2f} MB, of which {others:.2f} MB are no linear layers; raise it, or give fewer "
                "{bits} or a larger {group_size}",
                disk_mb,
                n=self.bits,
                all=(packed + others) / 1e6,
                others=others / 1e6,
            )

    def grid(self, checkpoint: "Checkpoint", module: str) -> Grid:
        return Grid(self.bits, self.group_size, self.symmetric).fitting(checkpoint.shape(f"{module}.weight")[1])

    def tensors(self, checkpoint: "Checkpoint", names: list[str], linears: dict[str, Grid]) -> "dict[str, Tensor]":
        """What a shard holds: linear layers packed, the rest as it was."""
        from hfcompress.formats.compressed_tensors import pack_quantized

        found: dict[str, Tensor] = {}
        for name in names:
            module = name.removesuffix(".weight")
            if name.endswith(".weight") and module in linears:
                parts = pack_quantized(self.quantized(checkpoint, name, linears[module]))
                found |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
            else:
                found[name] = checkpoint.read(name)
        return found

    def quantized(self, checkpoint: "Checkpoint", name: str, grid: Grid) -> "Quantized":
        from hfcompress.architectures.decoder_stack import finite
        from hfcompress.ops.hqq import hqq
        from hfcompress.ops.rtn import rtn

        weight = finite(checkpoint, name)
        return rtn(weight, grid) if self.algorithm == "rtn" else hqq(weight, grid)

    def predict(self, **inputs: Any) -> Any:
        raise UnknownShape("linear layers alone are rounded, and their share of a model is not predicted: run it")


def linear_modules(checkpoint: "Checkpoint", network: "PreTrainedModel") -> tuple[list[str], list[str]]:
    """Return the modules whose weight a `torch.nn.Linear` multiplies by, without the head, and the Conv1D modules."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = network.get_output_embeddings()
    named = [(name, module) for name, module in network.named_modules() if f"{name}.weight" in checkpoint]
    linears = [name for name, module in named if isinstance(module, torch.nn.Linear) and module is not head]
    return linears, [name for name, module in named if isinstance(module, Conv1D)]
