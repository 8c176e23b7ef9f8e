"""Intel Neural Compressor 3.10: its RTN, GPTQ, AWQ and HQQ of Linear layers.

Its answers are read from `INCWeightOnlyLinear` (float16 scales, integer zero points) into our quantized format, on
which every delivery format is written. Three of its ways fit our grids only when they are asked for by name:

- its symmetric scales reach both ends of a group alike; `use_full_range` gives the end of larger magnitude the extra
  code, as ours do. Its GPTQ has no such option.
- its GPTQ's `act_order` mixes the columns of groups; `hybrid_order` orders groups, and columns within a group.
- its HQQ groups the elements of a column, from all over the matrix: it is given the groups as columns.

Its AWQ searches its scales and its clipping for 4 bits whatever bits it is to round to (`quant_tensor` is called with
`num_bits`, which it does not know): at 8 bits that is worse than RTN, and what is on 8 bits is rounded to nearest.
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.engines.engine import Layer, Rounded, Tuning
from hfcompress.errors import Reason, needs
from hfcompress.ops.grid import Grid, Quantized, encode, grouped, representable

if TYPE_CHECKING:
    from torch import Tensor


PREFIX = "layers.0.module."


class NeuralCompressor:
    """See `Engine`."""

    package = "neural_compressor"
    libraries: tuple[str, ...] = ("neural-compressor",)
    algorithms: Mapping[str, tuple[str, ...]] = {
        "rtn": (),
        "hqq": (),
        "gptq": ("gptq", "bf16"),
        "awq": ("bf16",),
    }

    def refusal(self, algorithm: str, grid: Grid) -> Reason | None:
        if algorithm == "hqq" and grid.symmetric:
            return Reason("its HQQ fits a zero point to each group: give {symmetric:no} or {allot.symmetric:no}")
        return None

    def memory(self, algorithm: str, layer_bytes: float, moment_bytes: float, state_bytes: float) -> float:
        if algorithm == "gptq":  # a copy of every matrix, and of the layer; inputs and outputs
            return 3 * layer_bytes + moment_bytes + 2 * state_bytes
        return 3 * layer_bytes + 8 * state_bytes  # AWQ holds the inputs of each Linear, and outputs of two tries

    def quantize(self, layer: Layer, algorithm: str, tuning: Tuning) -> Rounded:
        needs("neural_compressor")
        import torch

        from hfcompress.engines.isolation import isolated

        with isolated(), torch.no_grad():
            if algorithm == "hqq":
                return Rounded({name: hqq(layer, name, grid) for name, grid in layer.grids.items()})
            if algorithm == "awq" and not absorbed(layer):
                algorithm = "rtn"
            return on_stack(layer, algorithm, tuning)


def on_stack(layer: Layer, algorithm: str, tuning: Tuning) -> Rounded:
    """Return what `prepare`, the calibration's inputs and `convert` make of a model of this one layer."""
    needs("neural_compressor")
    from neural_compressor.torch.quantization import convert, prepare

    from hfcompress.engines.isolation import Stack

    stack = Stack(layer, copy.deepcopy(layer.module))
    with tempfile.TemporaryDirectory() as folder:
        wanted = config(layer, algorithm, tuning, Path(folder))
        example = next(layer.batches())[:1] if algorithm != "rtn" else None
        prepared = prepare(stack, wanted, example_inputs=example)
        for hidden in layer.batches() if algorithm != "rtn" else ():
            prepared(hidden)
        found: Any = convert(prepared).layers[0].module
    matrices = {name: integers(found.get_submodule(name), grid) for name, grid in layer.grids.items()}
    return Rounded(matrices, changed(layer, found))


def config(layer: Layer, algorithm: str, tuning: Tuning, folder: Path) -> Any:
    """Return its config of all matrices, each by name.

    Args:
        folder: that exists: its GPTQ looks for a checkpoint, on the Hub where no folder is named.
    """
    needs("neural_compressor")
    from neural_compressor.torch.quantization import AWQConfig, GPTQConfig, RTNConfig

    def of(grid: Grid) -> Any:
        common = {"bits": grid.bits, "use_sym": grid.symmetric, "group_size": grid.group_size or -1}
        if algorithm == "gptq":
            order = tuning.gptq.activation_order
            groups = bool(grid.group_size)
            return GPTQConfig(
                **common,
                act_order=order and not groups,
                hybrid_order=order and groups,
                percdamp=tuning.gptq.damping,
                model_path=str(folder),
            )
        if algorithm == "awq":
            return AWQConfig(**common, use_full_range=grid.symmetric, absorb_layer_dict=absorbed(layer))
        return RTNConfig(**common, use_full_range=grid.symmetric, use_layer_wise=False)

    wanted = of(next(iter(layer.grids.values())))
    for name, grid in layer.grids.items():
        wanted.set_local(PREFIX + name, of(grid))
    return wanted


def absorbed(layer: Layer) -> dict[str, Any]:
    """Return what writes the inputs of matrices -> those matrices, by their names within a block; not at 8 bits."""
    found = {}
    for writer, readers in layer.writers.items():
        if all(layer.grids[name].bits < 8 for name in readers):
            names = [f"module.{name}" for name in readers]
            found[f"module.{writer}"] = names if len(names) > 1 else names[0]
    return found


def integers(linear: Any, grid: Grid) -> "Quantized":
    """Return the codes, scales and zero points of an INCWeightOnlyLinear."""
    import torch

    parts = linear.unpack()
    codes, zeros = (parts[name].to(torch.uint8).contiguous() for name in ("int_weight", "zp"))
    return Quantized(codes, representable(parts["scales"]).contiguous(), zeros, grid)


def changed(layer: Layer, found: Any) -> "dict[str, Tensor]":
    """Return the parameters outside the matrices that are not as they were: norms that took AWQ's scales."""
    import torch

    matrices = {f"{name}.{part}" for name in layer.grids for part in ("weight", "bias")}
    before = {name: value for name, value in layer.module.named_parameters() if name not in matrices}
    after = dict(found.named_parameters())
    return {name: after[name].detach() for name, value in before.items() if not torch.equal(after[name], value)}


def hqq(layer: Layer, name: str, grid: Grid) -> "Quantized":
    """Return a matrix on the grids that its HQQ finds, with zero points rounded to integers and nearest codes.

    Its Linear is [group size, all groups], of which it groups each column.
    """
    needs("neural_compressor")
    import torch
    from neural_compressor.torch.quantization import HQQConfig, convert, prepare

    weight = layer.module.get_submodule(name).weight.detach().float()
    rows, groups = weight.shape[0], grid.groups(weight.shape[1])
    columns = grouped(weight, grid).flatten(0, 1).T.contiguous()
    linear = torch.nn.Linear(columns.shape[1], columns.shape[0], bias=False)
    linear.weight.copy_(columns)
    wanted = HQQConfig(bits=grid.bits, group_size=columns.shape[0], quant_zero=False)
    found: Any = convert(prepare(torch.nn.Sequential(linear), wanted))[0]
    scales = representable(found.q_weight.scale.float().reshape(rows, groups))
    zeros = found.q_weight.zero.float().reshape(rows, groups).round().clamp(0, grid.levels - 1).to(torch.uint8)
    return encode(weight, scales, zeros, grid)
