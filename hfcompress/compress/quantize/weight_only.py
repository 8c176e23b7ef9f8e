"""weight_only: the matrices of a causal LM as 2 to 8 bit integers, one decoder layer in memory at a time."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.models import load_tokenizer
from hfcompress.compress.quantize.awq_folding import fold_awq
from hfcompress.compress.quantize.bit_allocation import ALLOTMENT, matrices
from hfcompress.compress.quantize.calibrate import parts
from hfcompress.compress.quantize.engine_layers import (
    calibrated_matrix,
    quantized_layer,
    quantized_matrix,
    require_engine,
)
from hfcompress.compress.quantize.shards import (
    as_stored,
    bits_per_weight,
    finish,
    nearest,
    plain,
    quantized_rows,
    require_room,
)
from hfcompress.engines import ENGINES
from hfcompress.engines.engine import Autoround, Gptq, Tuning
from hfcompress.errors import OptionError, Reason, require_numbers, shown
from hfcompress.folders.memory import MemoryLimit
from hfcompress.formats.bits_claimed import require_share
from hfcompress.ops.grid import BITS, GROUP_SIZES, Grid, encode
from hfcompress.ops.precision import use_bf16
from hfcompress.stage import TENSORS, added, chosen_by, of_choice
from hfcompress.tasks.text_generation import CausalLM
from hfcompress.training.trainer import progress_wanted

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hfcompress.architectures.decoder_spec import LanguageShape
    from hfcompress.architectures.decoder_stack import DecoderStack, HiddenStates
    from hfcompress.ops.grid import Quantized
    from hfcompress.ops.hessian import SecondMoment

Algorithm = Literal["rtn", "hqq", "gptq", "awq", "autoround"]
OWN = "own"
CALIBRATED = ("gptq", "awq", "autoround")
# What a calibrated algorithm holds beside the process itself and a layer's second moments: float32 copies of the
# layer, and of the largest second moment (GPTQ factors one in place; the others need no copy).
LAYER_COPIES, MOMENT_COPIES = 1.0, 1.0
PROCESS_BYTES = 0.6e9
ENGINE_BYTES = 0.5e9  # another tool's modules


@dataclass(frozen=True)
class WeightOnly:
    """Quantize every matrix: embedding and head too. What is written is read by architectures/quantized_model.py."""

    algorithm: Algorithm = "gptq"
    """rtn (nearest), hqq (half-quadratic), gptq (Frantar 2022), awq (Lin 2023), autoround (Cheng 2023)."""
    bits: int = 4
    """Bits of every matrix, where no bit allocation says otherwise."""
    group_size: int = 128
    """Columns that share a scale, likewise; 0 is the whole row, as where it does not divide a matrix's columns."""
    symmetric: bool = True
    gptq: Gptq = field(default=Gptq(), metadata=of_choice("algorithm", "gptq"))
    autoround: Autoround = field(default=Autoround(), metadata=of_choice("algorithm", "autoround"))
    bf16: Literal["auto", "yes", "no"] = "auto"
    """gptq, awq, autoround: calibration text runs through the layers in bf16; auto where the CPU computes in it."""
    max_memory_gb: float | None = None
    """Resident memory (10^9 bytes) that this stage may take; it refuses before it begins when a layer cannot fit."""
    engine: Literal["own", "neural-compressor", "auto-round"] = added("own")
    """Whose code computes the algorithm: this package's, or another tool's on the same grids; the embedding is rounded
    to nearest by ours, and the head too where the algorithm is awq or autoround."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 2  # 2: AWQ divides the bias of up_proj with its rows
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    @property
    def engine_libraries(self) -> tuple[str, ...]:
        """See `stage.libraries_of`."""
        return () if self.engine == OWN else ENGINES[self.engine].libraries

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        found = {}
        if self.algorithm not in CALIBRATED:
            found["bf16"] = Reason("with {algorithm} {name}", name=self.algorithm)
        if self.engine != OWN:
            read = ENGINES[self.engine].algorithms[self.algorithm]
            own = [option for option, (_, name) in chosen_by(self).items() if name == self.algorithm]
            why = Reason("with {engine} {name}", name=self.engine)
            found |= {option: why for option in (*own, "bf16") if option not in read and option not in found}
        if inputs.get("allotment") is not None:
            of_all = "for all matrices: the bits of each are chosen"
            found["bits"] = Reason(of_all + "; give {allot.bits}")
            found["group_size"] = Reason(of_all + "; give {allot.group_sizes}")
            found["symmetric"] = Reason(of_all + "; give {allot.symmetric} or {allot.symmetric:no}")
        return found

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.bits not in BITS:
            raise OptionError("bits", "choose from {known}", self.bits, known=shown(BITS))
        if self.group_size not in GROUP_SIZES:
            raise OptionError("group_size", "choose from {known}", self.group_size, known=shown(GROUP_SIZES))
        if self.max_memory_gb is not None and not self.max_memory_gb > 0:
            raise OptionError("max_memory_gb", "must be above 0", self.max_memory_gb)
        if self.engine != OWN:
            require_engine(self.engine, self.algorithm)

    def __call__(self, out: Path, *, model: Path, task: CausalLM, allotment: Path | None = None) -> dict[str, Any]:
        """Write the quantized model, a shard per layer; shards that are there from a run that was killed are kept.

        Raises:
            UserError: the model cannot be read, holds NaN, or does not fit in `max_memory_gb`.
        """
        from tqdm import tqdm

        from hfcompress.architectures.decoder_stack import DecoderStack

        checkpoint = Checkpoint(model)
        stack = DecoderStack(checkpoint)
        grids = self.grids(checkpoint, allotment)
        if self.engine != OWN:
            require_engine(self.engine, self.algorithm, grids.values(), stack.kind)
        shapes = {name: place.shape for name, place in checkpoint.places.items()}
        require_share(model, shapes, {f"{name}.weight" for name in grids}, max(g.bits for g in grids.values()))
        work = out / "work"
        work.mkdir(exist_ok=True)
        require_room(work, checkpoint, grids)
        limit = MemoryLimit(self.max_memory_gb, "max_memory_gb")
        limit.require(self.needed_bytes(stack, task))
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
            **({} if self.engine == OWN else {"engine": self.engine}),
        }

    def grids(self, checkpoint: Any, allotment: Path | None) -> dict[str, Grid]:
        """Return the grid of every matrix: that of the bit allocation, or the same for all."""
        names = matrices(checkpoint)
        if allotment is None:
            grid = Grid(self.bits, self.group_size, self.symmetric)
            return {name: grid.fitting(checkpoint.shape(f"{name}.weight")[1]) for name in names}
        chosen = json.loads((allotment / ALLOTMENT).read_text(encoding="utf-8"))["grids"]
        return {name: Grid(**chosen[name]) for name in names}

    def needed_bytes(self, stack: "DecoderStack", task: CausalLM) -> float:
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
        if self.engine != OWN:
            moments = 4.0 * sum(columns**2 for _, columns in shapes)
            states = 4.0 * task.calibration_windows * task.window * int(stack.checkpoint.config["hidden_size"])
            return PROCESS_BYTES + layer + activations + self._engine_bytes(layer, moments, states)
        return PROCESS_BYTES + LAYER_COPIES * layer + max(moments, activations) + 8.0 * largest

    def _engine_bytes(self, layer: float, moments: float, states: float) -> float:
        """What the engine and its libraries hold beside one layer."""
        return ENGINE_BYTES + ENGINES[self.engine].memory(self.algorithm, layer, moments, states)

    @property
    def tuning(self) -> Tuning:
        """The options that an engine may read."""
        read = ENGINES[self.engine].algorithms[self.algorithm]
        names = [name for name in vars(Tuning()) if name in read]
        return Tuning(**{name: getattr(self, name) for name in names})

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
        from hfcompress.ops.hessian import relative_output_error

        prefix = f"model.layers.{index}."
        of_layer = {name: grids[prefix + name] for name in stack.kind.linears}
        tensors: dict[str, Tensor] = {}
        if self.algorithm not in CALIBRATED:
            for name, grid in of_layer.items():
                tensors |= self.alone(stack.checkpoint, prefix + name, grid)
            write_shard(file, tensors | plain(stack.checkpoint, prefix, tensors))
            return
        layer = stack.layer(index)
        if self.engine != OWN:
            around = states[index], states[index + 1]
            found, errors[prefix.rstrip(".")] = quantized_layer(
                self.engine, self.algorithm, self.tuning, stack, layer, around, of_layer, use_bf16(self.bf16)
            )
            tensors = {prefix + name: values for name, values in found.items()}
            write_shard(file, tensors | plain(stack.checkpoint, prefix, tensors))
            states[index].file.unlink(missing_ok=True)
            return
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
        if not stack.tied and self.engine != OWN and self.algorithm == "gptq":
            norm = stack.norm()
            inputs = lambda: (norm(hidden) for hidden in states[-1].batches())  # noqa: E731
            found = calibrated_matrix(self.engine, "gptq", self.tuning, stack.head(), grids[HEAD], inputs)
            tensors |= packed_tensors(HEAD, found)
        elif not stack.tied and (self.engine != OWN or self.algorithm not in CALIBRATED):
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
        if self.algorithm == "rtn" and self.engine == OWN:
            return nearest(checkpoint, name, grid)
        from hfcompress.architectures.decoder_stack import finite
        from hfcompress.architectures.quantized_model import packed_tensors
        from hfcompress.ops.hqq import hqq

        if self.engine != OWN:
            weight = finite(checkpoint, f"{name}.weight")
            return packed_tensors(name, quantized_matrix(self.engine, self.algorithm, weight, grid))
        return packed_tensors(name, hqq(finite(checkpoint, f"{name}.weight"), grid))

    def calibrated(self, weight: "Tensor", hessian: "Tensor", grid: Grid) -> "Quantized":
        """A matrix whose inputs have the second moment `hessian`."""
        from hfcompress.ops.autoround import autoround
        from hfcompress.ops.awq import clip_search
        from hfcompress.ops.gptq import gptq
        from hfcompress.ops.rtn import rtn

        if self.algorithm == "gptq":
            return gptq(weight, hessian, grid, **vars(self.gptq))
        if self.algorithm == "autoround":
            return autoround(weight, hessian, grid, **vars(self.autoround))
        # AWQ: its scales are folded in already; what is left is where to clip (section 3.2's released search).
        if grid.bits == 8:
            return rtn(weight, grid)
        return encode(weight, *clip_search(weight, hessian.diagonal(), grid), grid)

    def predict(self, model: "LanguageShape", *, task: CausalLM, allotment: Any = None) -> "LanguageShape":
        if allotment is not None:
            return replace(model, weight_bits=allotment.weight_bits)
        if self.engine != OWN:
            require_engine(self.engine, self.algorithm, [Grid(self.bits, self.group_size, self.symmetric)])
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
