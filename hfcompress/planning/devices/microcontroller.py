"""Which MobileNetV2 fits a microcontroller: width, resolution and patches under limits on SRAM and flash.

The search of Lin et al. 2020, MCUNet, section 3.1, over the width multiplier and the input's resolution; of what fits,
more multiply-accumulates mean a better model. Accuracy itself cannot be predicted.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.architectures.patches import Edit
from hfcompress.budget import ImageBudget
from hfcompress.errors import UserError
from hfcompress.formats.memory import image_size
from hfcompress.formats.onnx_export import Array
from hfcompress.planning.devices.arena import run
from hfcompress.planning.devices.integer_graph import IntegerGraph, read_onnx
from hfcompress.planning.devices.mobilenet_graph import mobilenet_graph
from hfcompress.planning.devices.patches import Patched, fitting_patches, smallest_patches
from hfcompress.planning.devices.tensor_lifetimes import KB, plan_memory

if TYPE_CHECKING:
    from hfcompress.planning.plan import Plan

WIDTHS = (0.25, 0.35, 0.5, 0.75, 1.0, 1.4)
RESOLUTIONS = (48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224)
WAYS = (WHOLE, PATCHES, STREAMED) = ("whole", "patches", "patches, image outside")


@dataclass(frozen=True)
class Fit:
    """One way to run one network. KB are 1024 bytes; `overhead` is the share of work that patches do twice."""

    width: float
    resolution: int
    way: str
    sram_kb: float
    flash_kb: float
    mmacs: float
    operations: int = 0
    grid: int = 1
    overhead: float = 0.0

    @classmethod
    def of(cls, graph: IntegerGraph, width: float, way: str, found: Patched | None = None) -> "Fit":
        """The memory of a network that runs whole, or in patches."""
        resolution, flash = graph.shapes[graph.input][1], graph.flash / KB
        if found is None:
            return cls(width, resolution, way, plan_memory(graph).arena / KB, flash, graph.macs / 1e6)
        sram, mmacs = found.memory.arena / KB, found.graph.macs / 1e6
        return cls(width, resolution, way, sram, flash, mmacs, found.operations, found.grid, found.overhead)

    def keeps(self, budget: ImageBudget) -> bool:
        return (budget.sram_kb is None or self.sram_kb <= budget.sram_kb) and (
            budget.flash_kb is None or self.flash_kb <= budget.flash_kb
        )

    def line(self) -> str:
        patches = f"first {self.operations} operations in {self.grid}x{self.grid}" if self.grid > 1 else "–"
        return (
            f"{self.width:>6g} {self.resolution:>7} {self.way:24} {self.sram_kb:>9.1f} {self.flash_kb:>9.1f} "
            f"{self.mmacs:>7.1f} {self.overhead:>8.0%}  {patches}"
        )


@dataclass(frozen=True)
class MicrocontrollerPlan:
    """How a recipe's candidate fits, and the largest resolution of every width that does."""

    candidate: tuple[Fit, ...]
    fitting: tuple[Fit, ...]
    budget: ImageBudget

    @property
    def best(self) -> Fit:
        """What the budget is held against: whole where that fits, else in patches, with the image in the SRAM.

        A camera that streams the image piece by piece is the user's to know of, and only shown.
        """
        inside = [fit for fit in self.candidate if fit.way != STREAMED]
        keeping = [fit for fit in inside if fit.keeps(self.budget)]
        return keeping[0] if keeping else min(inside, key=lambda fit: fit.sram_kb)

    @property
    def ok(self) -> bool:
        return self.best.keeps(self.budget)

    def predicted(self) -> dict[str, float]:
        """sram_kb and flash_kb of the candidate."""
        return {"sram_kb": self.best.sram_kb, "flash_kb": self.best.flash_kb}

    def as_dict(self) -> dict[str, Any]:
        return {"candidate": [asdict(f) for f in self.candidate], "fitting": [asdict(f) for f in self.fitting]}

    def lines(self) -> list[str]:
        """The table that `plan` prints."""
        head = (
            f"{'width':>6} {'pixels':>7} {'run':24} {'SRAM KB':>9} {'flash KB':>9} {'MMACs':>7} {'overhead':>8} "
            " patches"
        )
        lines = ["On a microcontroller (int8, KB = 1024 bytes), the candidate:", head]
        lines += [fit.line() for fit in self.candidate]
        limits = {"SRAM": self.budget.sram_kb, "flash": self.budget.flash_kb}
        limit = " and ".join(f"{value:g} KB of {name}" for name, value in limits.items() if value is not None)
        if not self.fitting:
            return [*lines, f"No width of {_all(WIDTHS)} at {_all(RESOLUTIONS)} pixels fits {limit}: raise the limit."]
        lines += [f"Of each width the largest resolution that fits {limit}; more MMACs promise more accuracy:", head]
        return lines + [fit.line() for fit in self.fitting]


def plan_microcontroller(
    config: dict[str, Any], resolution: int, budget: ImageBudget, edits: list[Edit] | None = None
) -> MicrocontrollerPlan:
    """Hold a MobileNetV2 against a microcontroller's limits, and search what fits.

    Args:
        config: its config.json; head and structure are kept in the search.
        resolution: height and width of its image.
        edits: of its surgery.json; the search is among uncut networks.
    """
    width = float(config.get("depth_multiplier", 1.0))
    graph = mobilenet_graph(config, resolution, edits=edits)
    candidate = tuple(as_planned(graph, width, way, budget) for way in WAYS)
    return MicrocontrollerPlan(candidate, tuple(fitting(config, budget)), budget)


def as_planned(graph: IntegerGraph, width: float, way: str, budget: ImageBudget) -> Fit:
    """A way to run the candidate: with the least extra work that fits, else with the least memory."""
    if way == WHOLE:
        return Fit.of(graph, width, way)
    streamed = way == STREAMED
    found = fitting_patches(graph, budget.sram_kb * KB, streamed) if budget.sram_kb is not None else None
    return Fit.of(graph, width, way, found or smallest_patches(graph, streamed))


def fitting(config: dict[str, Any], budget: ImageBudget) -> Iterator[Fit]:
    """For every width and way the largest resolution that keeps the limits."""
    for width in WIDTHS:
        graph = cache(partial(mobilenet_graph, config, width=width))
        if budget.flash_kb is not None and graph(RESOLUTIONS[0]).flash / KB > budget.flash_kb:
            continue
        for way in WAYS if budget.sram_kb is not None else (WHOLE,):
            if (fit := largest(graph, width, way, budget)) is not None:
                yield fit


def largest(graph: Callable[[int], IntegerGraph], width: float, way: str, budget: ImageBudget) -> Fit | None:
    """By halving: what fits at a resolution fits at every smaller one."""
    found = None
    low, high = 0, len(RESOLUTIONS) - 1
    while low <= high:
        middle = (low + high) // 2
        fit = fit_at(graph(RESOLUTIONS[middle]), width, way, budget)
        if fit is not None:
            found, low = fit, middle + 1
        else:
            high = middle - 1
    return found


def fit_at(graph: IntegerGraph, width: float, way: str, budget: ImageBudget) -> Fit | None:
    """None where this way does not fit."""
    if way == WHOLE or budget.sram_kb is None:
        fit = Fit.of(graph, width, way)
        return fit if fit.keeps(budget) else None
    patches = fitting_patches(graph, budget.sram_kb * KB, streamed=way == STREAMED)
    return None if patches is None else Fit.of(graph, width, way, patches)


def add_to_plan(
    plan: "Plan",
    candidate: str,
    config: dict[str, Any],
    resolution: int,
    budget: ImageBudget,
    edits: list[Edit] | None = None,
) -> None:
    """The candidate's SRAM and flash as predictions and verdicts of a plan, and what would fit as its advice."""
    limits = {name: getattr(budget, name) for name in ("sram_kb", "flash_kb") if getattr(budget, name) is not None}
    if not limits:
        return
    found = plan_microcontroller(config, resolution, budget, edits)
    predicted = found.predicted()
    for row in plan.rows:
        if row["name"] == candidate:
            row |= predicted | {"microcontroller": found.as_dict()}
    plan.verdicts += [
        {"limit": n, "candidate": candidate, "allowed": v, "predicted": predicted[n], "ok": predicted[n] <= v}
        for n, v in limits.items()
    ]
    plan.advice += found.lines()


def add_to_rows(rows: list[dict[str, Any]], candidate: str, folder: Path, budget: ImageBudget) -> None:
    """Count the candidate's SRAM and flash into its measured row.

    What cannot be counted (no int8 graph, an unknown operator) is said on standard error and stays unmeasured.
    """
    noise = np.random.default_rng(0).standard_normal((3, *image_size(folder))).astype(np.float32)
    try:
        found = count(folder / "model.onnx", noise, budget.sram_kb)
    except UserError as error:
        print(f"{candidate}: SRAM and flash are not measured: {error}", file=sys.stderr)
        return
    for row in rows:
        if row["name"] == candidate:
            row |= {"sram_kb": found["sram_kb"], "flash_kb": found["flash_kb"], "microcontroller": found}


def count(model: Path, pixel_values: Array, sram_kb: float | None = None) -> dict[str, Any]:
    """sram_kb and flash_kb of an int8 QDQ model, counted while the interpreter runs one image [3, height, width].

    Run whole where that fits, else in the patches that fit with the least extra work, else in the smallest ones.
    """
    graph = read_onnx(model, pixel_values.shape[-1])
    memory, patches = plan_memory(graph), None
    if sram_kb is not None and memory.arena > sram_kb * KB:
        patches = fitting_patches(graph, sram_kb * KB) or smallest_patches(graph)
    if patches is not None:
        graph, memory = patches.graph, patches.memory
    counted = run(graph, memory, pixel_values)
    return {
        "sram_kb": counted.arena / KB,
        "predicted_sram_kb": memory.arena / KB,
        "flash_kb": graph.flash / KB,
        "patches": None if patches is None else {"operations": patches.operations, "grid": patches.grid},
    }


def _all(values: tuple[Any, ...]) -> str:
    return f"{values[0]:g} to {values[-1]:g}"
