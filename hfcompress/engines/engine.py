"""Engine: another tool's algorithm on one layer of a causal LM, and what is checked of its answer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from hfcompress.errors import CheckFailed, Reason, require, require_numbers
from hfcompress.ops.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hfcompress.ops.grid import Quantized


@dataclass(frozen=True)
class Layer:
    """What an engine is given: a module whose Linear layers are to be quantized, and the inputs that calibrate it."""

    module: "nn.Module"
    """In float32 on the CPU: a decoder layer, or a module that holds one matrix."""
    grids: Mapping[str, Grid]
    """Path of each Linear within the module -> its grid; a group size of 0 is the whole row."""
    batches: "Callable[[], Iterator[Tensor]]" = lambda: iter(())
    """Calls give the module's inputs anew, float32 [some windows, tokens, hidden size] each."""
    run: "Callable[[nn.Module, Tensor], Tensor]" = lambda module, hidden: module(hidden)
    """The module, or a changed copy of it, on such inputs: float32 of the same shape."""
    writers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Path of a norm or a Linear -> the Linear layers that read what it writes, and nothing else does."""


@dataclass(frozen=True)
class Gptq:
    """GPTQ's own options."""

    activation_order: bool = True
    """Columns with large inputs first."""
    damping: float = 0.01
    """Share of the mean diagonal that is added to it; raised until the matrix can be factored."""

    def __post_init__(self) -> None:
        require_numbers(self)


@dataclass(frozen=True)
class Autoround:
    """AutoRound's own options."""

    steps: int = 200
    """Steps of signed gradient descent."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self)
        require(self, 1, "steps")


@dataclass(frozen=True)
class Tuning:
    """Options of the stage that an algorithm may read (see `Engine.algorithms`): a group for each that has its own."""

    gptq: Gptq = Gptq()
    autoround: Autoround = Autoround()


@dataclass(frozen=True)
class Rounded:
    """An engine's answer."""

    matrices: "dict[str, Quantized]"
    """Path of each Linear of `Layer.grids` -> its integers on that grid."""
    plain: "dict[str, Tensor]" = field(default_factory=dict)
    """Names of parameters on no grid (a norm's weight) -> their new values, where the engine changed them."""


@runtime_checkable
class Engine(Protocol):
    """An adapter to a package that quantizes Linear layers; the table in `__init__` lists all of them.

    It is stateless. Its file imports the package inside `quantize` alone, so that the table is read without it.
    `quantize` leaves `Layer.module` as it is, the random generators and torch's settings as they were, writes nothing
    outside a temporary folder, and reaches no network. The same layer, inputs, options and versions give the same
    integers. The answer has the matrices of `Layer.grids` and no others, each on the grid that was asked for: integer
    codes and zero points, float16 scales, groups of neighbors in a row. An algorithm that fits none of its answers to
    such a grid refuses in `refusal`, in a `Reason` that says what to give instead.
    """

    package: str
    """One of errors.EXTRAS."""
    libraries: tuple[str, ...]
    """Distributions whose versions enter the key of a stage that uses the engine."""
    algorithms: Mapping[str, tuple[str, ...]]
    """Algorithm, by our name -> the options of the stage that it reads; the group of its own is one of them."""

    def refusal(self, algorithm: str, grid: Grid) -> Reason | None:
        """Return why an algorithm cannot be had on a grid, and what to give instead; None where it can."""
        ...

    def quantize(self, layer: Layer, algorithm: str, tuning: Tuning) -> Rounded:
        """Return all matrices of `layer.grids` on their grids."""
        ...

    def memory(self, algorithm: str, layer_bytes: float, moment_bytes: float, state_bytes: float) -> float:
        """Return what `quantize` holds at most beside the layer itself, in bytes.

        Args:
            layer_bytes: of the layer's matrices in float32.
            moment_bytes: of a float32 [columns, columns] for each Linear.
            state_bytes: of all calibration inputs together, float32.
        """
        ...


def checked(engine: Engine, layer: Layer, algorithm: str, tuning: Tuning) -> Rounded:
    """Return an engine's answer that keeps the contract.

    Raises:
        CheckFailed: a matrix is missing, or is not on its grid.
    """
    answer = engine.quantize(layer, algorithm, tuning)
    if answer.matrices.keys() != layer.grids.keys():
        missing = sorted(layer.grids.keys() ^ answer.matrices.keys())
        raise CheckFailed(f"{engine.package} {algorithm} gave other matrices than asked for: {', '.join(missing)}")
    for name, quantized in answer.matrices.items():
        weight = layer.module.get_submodule(name).weight
        if fault := fault_of(quantized, tuple(weight.shape), layer.grids[name]):
            wrong = f"{engine.package} {algorithm}: {name} {fault}"
            raise CheckFailed(Reason("{wrong}; give {engine} own", wrong=wrong))
    return answer


def fault_of(quantized: "Quantized", shape: tuple[int, int], grid: Grid) -> str | None:
    """Return what is wrong with a matrix that should be on a grid, as a phrase; None where nothing is."""
    import torch

    rows, columns = shape
    groups = (rows, grid.groups(columns))
    if quantized.grid != grid:
        return f"is on {quantized.grid}, not on {grid}"
    if (quantized.codes.shape, quantized.scales.shape, quantized.zeros.shape) != (shape, groups, groups):
        return "has other shapes than its grid"
    types = (quantized.codes.dtype, quantized.scales.dtype, quantized.zeros.dtype)
    if types != (torch.uint8, torch.float16, torch.uint8):
        return "is not of uint8 codes, float16 scales and uint8 zero points"
    if int(quantized.codes.max()) >= grid.levels or int(quantized.zeros.max()) >= grid.levels:
        return f"has codes beyond {grid.bits} bits"
    if grid.symmetric and not (quantized.zeros == grid.middle).all():
        return "has zero points that are not in the middle of a symmetric grid"
    if not quantized.scales.isfinite().all() or (quantized.scales == 0).any():
        return "has scales that are 0, nan or infinite"
    return None
