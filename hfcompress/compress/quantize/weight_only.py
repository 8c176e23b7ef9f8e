"""weight_only: the matrices of a causal LM as 2 to 8 bit integers, one decoder layer in memory at a time."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.errors import UserError, require, require_numbers
from hfcompress.folders.end_tokens import copy_beside
from hfcompress.formats.bits_claimed import require_share
from hfcompress.ops.grid import BITS, GROUP_SIZES, Grid
from hfcompress.stage import TENSORS
from hfcompress.tasks.text_generation import CausalLM

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from torch import Tensor, nn

    from hfcompress.architectures.decoder_spec import LanguageShape
    from hfcompress.architectures.decoder_stack import DecoderStack, HiddenStates
    from hfcompress.ops.grid import Quantized
    from hfcompress.ops.hessian import SecondMoment

Algorithm = Literal["rtn", "hqq", "gptq", "awq", "autoround"]
CALIBRATED = ("gptq", "awq", "autoround")
READERS = {  # option -> the algorithms that read it
    "activation_order": ("gptq",),
    "damping": ("gptq",),
    "steps": ("autoround",),
    "seed": ("autoround",),
    "bf16": CALIBRATED,
}
# What a calibrated algorithm holds beside the process itself and a layer's second moments: float32 copies of the
# layer, and of the largest second moment (GPTQ factors one in place; the others need no copy).
LAYER_COPIES, MOMENT_COPIES = 1.0, 1.0
PROCESS_BYTES = 0.6e9


@dataclass(frozen=True)
class WeightOnly:
    """Quantize every matrix: embedding and head too. What is written is read by architectures/quantized_model.py."""

    algorithm: Algorithm = "gptq"
    """rtn (nearest), hqq (half-quadratic), gptq (Frantar 2022), awq (Lin 2023), autoround (Cheng 2023)."""
    bits: int = 4
    """Bits of every matrix, where no allotment says otherwise."""
    group_size: int = 128
    """Columns that share a scale, likewise; 0 is the whole row, as where it does not divide a matrix's columns."""
    symmetric: bool = True
    activation_order: bool = True
    """gptq: columns with large inputs first."""
    damping: float = 0.01
    """gptq: share of the mean diagonal that is added to it; raised until the matrix can be factored."""
    steps: int = 200
    """autoround: steps of signed gradient descent."""
    bf16: Literal["auto", "yes", "no"] = "auto"
    """gptq, awq, autoround: calibration text runs through the layers in bf16; auto where the CPU computes in it."""
    max_memory_gb: float | None = None
    """Resident memory (10^9 bytes) that this stage may take; it refuses before it begins when a layer cannot fit."""
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    def unused(self, inputs: dict[str, Any]) -> dict[str, str]:
        """See `stage.unused_options`."""
        found = {
            option: f"with --*.algorithm {self.algorithm}"
            for option, readers in READERS.items()
            if self.algorithm not in readers
        }
        if inputs.get("allotment") is not None:
            of_all = "for all matrices: the bits of each are chosen"
            found["bits"] = f"{of_all}; give --allot.bits"
            found["group_size"] = f"{of_all}; give --allot.group-sizes"
            found["symmetric"] = f"{of_all}; give --allot.symmetric or --allot.no-symmetric"
        return found

    def __post_init__(self) -> None:
        require_numbers(self)
        require(self, 1, "steps")
        if self.bits not in BITS:
            raise UserError(f"--weight-only.bits {self.bits}: choose from {' '.join(map(str, BITS))}")
        if self.group_size not in GROUP_SIZES:
            raise UserError(
                f"--weight-only.group-size {self.group_size}: choose from {' '.join(map(str, GROUP_SIZES))}"
            )
        if self.max_memory_gb is not None and not self.max_memory_gb > 0:
            raise UserError(f"--weight-only.max-memory-gb {self.max_memory_gb:g}: must be above 0")

    def __call__(self, out: Path, *, model: Path, task: CausalLM, allotment: Path | None = None) -> dict[str, Any]:
        """Write the packed model, a shard a layer; shards that are there from a run that was killed are kept.

        Raises:
            UserError: the model cannot be read, holds NaN, or does not fit in `max_memory_gb`.
        """
        from tqdm import tqdm

        from hfcompress.architectures.checkpoint import Checkpoint
        from hfcompress.architectures.decoder_stack import DecoderStack
        from hfcompress.folders.memory import MemoryLimit
        from hfcompress.training.trainer import progress_wanted

        checkpoint = Checkpoint(model)
        stack = DecoderStack(checkpoint)
        grids = self.grids(checkpoint, allotment)
        shapes = {name: place.shape for name, place in checkpoint.places.items()}
        require_share(model, shapes, {f"{name}.weight" for name in grids}, max(g.bits for g in grids.values()))
        work = out / "work"
        work.mkdir(exist_ok=True)
        require_room(work, checkpoint, grids)
        limit = MemoryLimit(self.max_memory_gb, "--weight-only.max-memory-gb")
        limit.require(self.needed_bytes(stack))
        errors: dict[str, float] = {}
        files = [work / f"model-{i + 1:05d}-of-{stack.layers + 2:05d}.safetensors" for i in range(stack.layers + 2)]
        self._embedding(stack, grids, files[0])
        states = self._states(stack, out, model, task, files[0], grids)
        bar = tqdm(range(stack.layers), desc=self.algorithm, unit="layer", disable=not progress_wanted())
        for index in bar:
            if not files[index + 1].is_file():
                self._layer(stack, index, grids, states, files[index + 1], errors)
            limit.check(f"after layer {index}")
        self._end(stack, grids, states, files[-1], errors)
        limit.check("after the head")
        finish(model, out, files, grids)
        return {
            "algorithm": self.algorithm,
            "bits_per_weight": bits_per_weight(checkpoint, grids),
            "matrices": len(grids),
            "relative_errors": errors,
            "peak_rss_mb": limit.peak_mb(),
            "max_memory_gb": self.max_memory_gb,
        }

    def grids(self, checkpoint: Any, allotment: Path | None) -> dict[str, Grid]:
        """The grid of every matrix: the allotment's, or the same for all."""
        from hfcompress.compress.quantize.bit_allocation import ALLOTMENT, matrices

        names = matrices(checkpoint)
        if allotment is None:
            grid = Grid(self.bits, self.group_size, self.symmetric)
            return {name: grid.fitting(checkpoint.shape(f"{name}.weight")[1]) for name in names}
        chosen = json.loads((allotment / ALLOTMENT).read_text(encoding="utf-8"))["grids"]
        return {name: Grid(**chosen[name]) for name in names}

    def needed_bytes(self, stack: "DecoderStack") -> float:
        """What the largest step will hold."""
        from hfcompress.architectures.decoder_stack import BATCH_TOKENS

        shapes = [stack.checkpoint.shape(f"model.layers.0.{name}.weight") for name in stack.kind.linears]
        largest = max(rows * columns for rows, columns in shapes)
        if self.algorithm not in CALIBRATED:
            return PROCESS_BYTES + 4.0 * 3 * largest
        layer = 4.0 * sum(rows * columns for rows, columns in shapes)
        widest = max(columns for _, columns in shapes)
        moments = 4.0 * (sum({columns: columns**2 for _, columns in shapes}.values()) + MOMENT_COPIES * widest**2)
        activations = 4.0 * 8 * BATCH_TOKENS * widest
        return PROCESS_BYTES + LAYER_COPIES * layer + max(moments, activations) + 8.0 * largest

    def _embedding(self, stack: "DecoderStack", grids: dict[str, Grid], file: Path) -> None:
        """The embedding, nearest codes: what one token reads is one row, which no other row can correct."""
        from hfcompress.architectures.checkpoint import write_shard
        from hfcompress.architectures.decoder_stack import EMBEDDING

        if not file.is_file():
            write_shard(file, nearest(stack.checkpoint, EMBEDDING, grids[EMBEDDING]))

    def _states(
        self, stack: "DecoderStack", out: Path, model: Path, task: CausalLM, first: Path, grids: dict[str, Grid]
    ) -> "list[HiddenStates]":
        """The hidden states between the layers: those of the first one are written, from the quantized embedding."""
        from hfcompress.architectures.decoder_stack import HiddenStates
        from hfcompress.architectures.models import load_tokenizer
        from hfcompress.compress.quantize.calibrate import parts

        if self.algorithm not in CALIBRATED:
            return []
        ids = task.calibration(load_tokenizer(model))
        shape = (*ids.shape, int(stack.checkpoint.config["hidden_size"]))
        states = [HiddenStates(out / "work" / f"hidden-{i}", shape) for i in range(stack.layers + 1)]
        if not any(state.whole() for state in states):
            look_up, scale = quantized_rows(first, grids), stack.kind.embedding_scale
            states[0].write(look_up(part) * scale for part in parts(ids, states[0].windows_a_batch))
        return states

    def _layer(
        self,
        stack: "DecoderStack",
        index: int,
        grids: dict[str, Grid],
        states: "list[HiddenStates]",
        file: Path,
        errors: dict[str, float],
    ) -> None:
        """Quantize one layer and write its shard; hand its quantized outputs on as the next one's inputs."""
        import torch

        from hfcompress.architectures.checkpoint import write_shard
        from hfcompress.architectures.quantized_model import packed_tensors
        from hfcompress.compress.quantize.awq_folding import fold_awq
        from hfcompress.ops.hessian import relative_output_error
        from hfcompress.ops.precision import use_bf16

        prefix = f"model.layers.{index}."
        of_layer = {name: grids[prefix + name] for name in stack.kind.linears}
        tensors: dict[str, Tensor] = {}
        if self.algorithm not in CALIBRATED:
            for name, grid in of_layer.items():
                tensors |= self.alone(stack.checkpoint, prefix + name, grid)
            write_shard(file, tensors | plain(stack.checkpoint, prefix, tensors))
            return
        layer = stack.layer(index)
        with torch.inference_mode():
            bf16 = use_bf16(self.bf16)
            moments = second_moments(stack, layer, states[index], bf16)
            folded = fold_awq(layer, moments, of_layer, stack.kind) if self.algorithm == "awq" else {}
            for group in stack.kind.groups:
                moment = moments.pop(group[0])
                for name in group:
                    linear = layer.get_submodule(name)
                    quantized = self.calibrated(linear.weight, moment.hessian, of_layer[name])
                    errors[prefix + name] = relative_output_error(linear.weight, quantized, moment.hessian)
                    linear.weight.copy_(quantized.dequantize())
                    tensors |= packed_tensors(prefix + name, quantized)
            states[index + 1].write(stack.run(layer, hidden, bf16) for hidden in states[index].batches())
        tensors |= {prefix + name: values for name, values in folded.items()}
        write_shard(file, tensors | plain(stack.checkpoint, prefix, tensors))
        states[index].file.unlink(missing_ok=True)

    def _end(
        self,
        stack: "DecoderStack",
        grids: dict[str, Grid],
        states: "list[HiddenStates]",
        file: Path,
        errors: dict[str, float],
    ) -> None:
        """The last norm and, where it is not the embedding, the head."""
        import torch

        from hfcompress.architectures.checkpoint import write_shard
        from hfcompress.architectures.decoder_stack import HEAD, NORM
        from hfcompress.architectures.quantized_model import packed_tensors
        from hfcompress.ops.hessian import SecondMoment, relative_output_error

        if file.is_file():
            return
        tensors: dict[str, Tensor] = {f"{NORM}.weight": as_stored(stack.checkpoint, f"{NORM}.weight")}
        if not stack.tied and self.algorithm not in CALIBRATED:
            tensors |= nearest(stack.checkpoint, HEAD, grids[HEAD])
        elif not stack.tied:
            with torch.inference_mode():
                weight, norm = stack.head(), stack.norm()
                moment = SecondMoment(weight.shape[1])
                for hidden in states[-1].batches():
                    moment.add(norm(hidden).flatten(0, 1))
                moment.finish()
                quantized = self.calibrated(weight, moment.hessian, grids[HEAD])
                errors[HEAD] = relative_output_error(weight, quantized, moment.hessian)
                tensors |= packed_tensors(HEAD, quantized)
        write_shard(file, tensors)

    def alone(self, checkpoint: Any, name: str, grid: Grid) -> "dict[str, Tensor]":
        """A matrix by itself, no calibration text needed."""
        if self.algorithm == "rtn":
            return nearest(checkpoint, name, grid)
        from hfcompress.architectures.decoder_stack import finite
        from hfcompress.architectures.quantized_model import packed_tensors
        from hfcompress.ops.hqq import hqq

        return packed_tensors(name, hqq(finite(checkpoint, f"{name}.weight"), grid))

    def calibrated(self, weight: "Tensor", hessian: "Tensor", grid: Grid) -> "Quantized":
        """A matrix whose inputs have the second moment `hessian`."""
        from hfcompress.ops.autoround import autoround
        from hfcompress.ops.awq import clip_search
        from hfcompress.ops.gptq import gptq
        from hfcompress.ops.grid import encode
        from hfcompress.ops.rtn import rtn

        if self.algorithm == "gptq":
            return gptq(weight, hessian, grid, activation_order=self.activation_order, damping=self.damping)
        if self.algorithm == "autoround":
            return autoround(weight, hessian, grid, steps=self.steps, seed=self.seed)
        # AWQ: its scales are folded in already; what is left is where to clip (section 3.2's released search).
        if grid.bits == 8:
            return rtn(weight, grid)
        return encode(weight, *clip_search(weight, hessian.diagonal(), grid), grid)

    def predict(self, model: "LanguageShape", *, task: CausalLM, allotment: Any = None) -> "LanguageShape":
        if allotment is not None:
            return replace(model, weight_bits=allotment.weight_bits)
        return replace(model, weight_bits=Grid(self.bits, self.group_size, self.symmetric).bits_per_weight(4096))


def second_moments(
    stack: "DecoderStack", layer: "nn.Module", states: "HiddenStates", bf16: bool
) -> "dict[str, SecondMoment]":
    """The moments of each group of linears that read the same, by the group's first."""
    from hfcompress.architectures.decoder_stack import unhook, watch_inputs
    from hfcompress.ops.hessian import SecondMoment

    groups = stack.kind.groups
    moments = {group[0]: SecondMoment(layer.get_submodule(group[0]).in_features) for group in groups}
    hooks = watch_inputs(layer, groups, lambda name, inputs: moments[name].add(inputs))
    for hidden in states.batches():
        stack.run(layer, hidden, bf16)
    unhook(hooks)
    for moment in moments.values():
        moment.finish()
    return moments


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
    from hfcompress.ops.grid import Quantized
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
    from hfcompress.architectures.checkpoint import INDEX, header
    from hfcompress.architectures.models import load_tokenizer
    from hfcompress.architectures.quantized_model import SURGERY
    from hfcompress.folders.files import place
    from hfcompress.folders.record import write_json

    files = [place(file, out) for file in files]
    places = {name: file.name for file in files for name in header(file)}
    total = sum(file.stat().st_size for file in files)
    write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    write_json(out / SURGERY, {"format": "packed", "grids": {name: vars(grid) for name, grid in grids.items()}})
    shutil.copyfile(model / "config.json", out / "config.json")
    copy_beside(model, out)
    load_tokenizer(model).save_pretrained(out)
