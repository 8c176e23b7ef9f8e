"""Patch-based inference of the first operations: less memory at high resolution, some work done twice.

Lin et al. 2021, MCUNetV2, section 3.1: the first operations run on one spatial patch after the other, each with the
halo that its receptive field needs, and only their small last output is kept whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from hfcompress.planning.devices.integer_graph import IntegerGraph, Operation, Window
from hfcompress.planning.devices.tensor_lifetimes import MemoryPlan, lifetimes, peak_bytes, plan_memory

GRIDS = (2, 3, 4, 5, 6, 8)
MOST_OVERHEAD = 1.0
Region = tuple[int, int, int, int]  # top, left, bottom, right; bottom and right are not part of it


@dataclass(frozen=True)
class Patched:
    """The first `operations` run on `grid` x `grid` patches: graph, memory and extra work."""

    operations: int
    grid: int
    graph: IntegerGraph
    memory: MemoryPlan
    overhead: float
    """Multiply-accumulates that are done twice, as a share of the whole network's."""


def patched(graph: IntegerGraph, operations: int, grid: int, streamed: bool = False) -> IntegerGraph:
    """The same network with its first operations written out once a patch.

    Args:
        operations: how many; they must end where one tensor alone is alive (see `cuts`).
        grid: patches along each axis of the last of their outputs.
        streamed: each patch's part of the image is fetched when it is needed (from the camera, or a memory outside
            the SRAM), so that the image itself takes no SRAM.
    """
    stage, rest = graph.operations[:operations], graph.operations[operations:]
    end = stage[-1].output
    steps: list[Operation] = []
    shapes, widths, quantization = dict(graph.shapes), dict(graph.widths), dict(graph.quantization)
    for number, region in enumerate(regions(graph.shapes[end], grid)):
        needed = needed_regions(graph, stage, region)
        names = {name: f"{name}#{number}" for name in needed if name != end}
        if not streamed:
            del names[graph.input]
        for name, own in names.items():
            shapes[own] = (graph.shapes[name][0], *size(needed[name]))
            if name in quantization:
                quantization[own] = quantization[name]
        if streamed:
            part = as_window(needed[graph.input], (0, 0))
            steps.append(Operation("Read", f"read#{number}", (graph.input,), names[graph.input], windows=(part,)))
        steps.extend(step(graph, operation, needed, names) for operation in stage)
    external = frozenset({graph.input}) if streamed else graph.external
    return replace(
        graph,
        operations=(*steps, *rest),
        shapes=shapes,
        widths=widths,
        quantization=quantization,
        external=external,
    )


def step(graph: IntegerGraph, operation: Operation, needed: dict[str, Region], names: dict[str, str]) -> Operation:
    """An operation on one patch: what it reads of which tensor, and the padding that is left at the image's edge."""
    region = needed[operation.output]
    windows, pads = [], operation.pads
    for name in operation.inputs:
        source, pads = input_region(operation, region, graph.shapes[name])
        windows.append(as_window(source, needed[name][:2] if name in names else (0, 0)))
    inside = operation.output in names
    return replace(
        operation,
        inputs=tuple(names.get(name, name) for name in operation.inputs),
        output=names.get(operation.output, operation.output),
        pads=pads,
        windows=tuple(windows),
        place=None if inside else as_window(region, (0, 0)),
    )


def regions(shape: tuple[int, ...], grid: int) -> Iterator[Region]:
    """The patches of a tensor [channels, height, width], row by row; as equal as they can be."""
    _, height, width = shape
    rows = [height * i // grid for i in range(grid + 1)]
    columns = [width * i // grid for i in range(grid + 1)]
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield top, left, bottom, right


def needed_regions(graph: IntegerGraph, stage: tuple[Operation, ...], region: Region) -> dict[str, Region]:
    """Tensor -> the part of it that a patch of the stage's output needs, over all its readers."""
    needed = {stage[-1].output: region}
    for operation in reversed(stage):
        for name in operation.inputs:
            found, _ = input_region(operation, needed[operation.output], graph.shapes[name])
            needed[name] = union(needed.get(name, found), found)
    return needed


def input_region(
    operation: Operation, region: Region, shape: tuple[int, ...]
) -> tuple[Region, tuple[int, int, int, int]]:
    """What an operation reads of its input for a region of its output; pads where that reaches over the edge."""
    low, high, pads = [], [], []
    for axis in (0, 1):
        first = region[axis] * operation.stride[axis] - operation.pads[axis]
        last = (region[axis + 2] - 1) * operation.stride[axis] - operation.pads[axis] + operation.reach(axis)
        low.append(max(0, first))
        high.append(min(shape[axis + 1], last))
        pads.append((max(0, -first), max(0, last - shape[axis + 1])))
    return (low[0], low[1], high[0], high[1]), (pads[0][0], pads[1][0], pads[0][1], pads[1][1])


def union(one: Region, two: Region) -> Region:
    return min(one[0], two[0]), min(one[1], two[1]), max(one[2], two[2]), max(one[3], two[3])


def size(region: Region) -> tuple[int, int]:
    return region[2] - region[0], region[3] - region[1]


def as_window(region: Region, origin: tuple[int, ...]) -> Window:
    """A region as seen from the corner of the array that holds it."""
    return region[0] - origin[0], region[1] - origin[1], *size(region)


def cuts(graph: IntegerGraph) -> list[int]:
    """After how many operations a stage can end: one tensor alone is alive, and a block ends there.

    A block ends with a pool or an addition, or where the next operation widens a bottleneck.
    """
    found = lifetimes(graph)
    ends = []
    for i, (operation, following) in enumerate(zip(graph.operations, graph.operations[1:], strict=False)):
        if operation.kind in ("GlobalAveragePool", "Gemm"):
            break
        alive = [t.tensor for t in found.values() if t.first <= i < t.last]
        widened = graph.bytes(following.output) > graph.bytes(operation.output)
        if alive == [operation.output] and (widened or operation.kind in ("MaxPool", "Add")):
            ends.append(i + 1)
    return ends


def fitting_patches(
    graph: IntegerGraph, limit: float, streamed: bool = False, in_place_depthwise: bool = False
) -> Patched | None:
    """Of the ways whose arena keeps a limit (in bytes) the one with the least extra work; None where none does."""
    found = candidates(graph, limit, streamed, in_place_depthwise)
    for candidate in sorted(found, key=lambda c: (c.overhead, c.peak)):
        if candidate.peak <= limit:
            chosen = candidate.placed(graph, streamed, in_place_depthwise)
            if chosen.memory.arena <= limit:
                return chosen
    return None


def smallest_patches(graph: IntegerGraph, streamed: bool = False, in_place_depthwise: bool = False) -> Patched | None:
    """The way with the smallest arena; None where no patches need less than the whole tensors do."""
    smallest = plan_memory(graph, in_place_depthwise).arena
    best: Patched | None = None
    for candidate in sorted(
        candidates(graph, smallest, streamed, in_place_depthwise), key=lambda c: (c.peak, c.overhead)
    ):
        if candidate.peak >= smallest:
            break
        chosen = candidate.placed(graph, streamed, in_place_depthwise)
        if chosen.memory.arena < smallest:
            best, smallest = chosen, chosen.memory.arena
    return best


@dataclass(frozen=True)
class Candidate:
    """A way to patch, before places in the arena are sought: `peak` is a lower bound of that."""

    operations: int
    grid: int
    peak: int
    overhead: float

    def placed(self, graph: IntegerGraph, streamed: bool, in_place_depthwise: bool) -> Patched:
        split = patched(graph, self.operations, self.grid, streamed)
        return Patched(self.operations, self.grid, split, plan_memory(split, in_place_depthwise), self.overhead)


def candidates(graph: IntegerGraph, limit: float, streamed: bool, in_place_depthwise: bool) -> Iterator[Candidate]:
    """Every end of the stage with every grid that does not double the work; what cannot keep the limit is left out."""
    image = 0 if streamed else graph.bytes(graph.input)
    for operations in cuts(graph):
        end = graph.operations[operations - 1].output
        if max(image + graph.bytes(end), peak_bytes(after(graph, operations), in_place_depthwise)) > limit:
            continue
        for grid in (grid for grid in GRIDS if grid <= min(graph.shapes[end][1:])):
            split = patched(graph, operations, grid, streamed)
            overhead = split.macs / graph.macs - 1
            if overhead > MOST_OVERHEAD:
                break
            yield Candidate(operations, grid, peak_bytes(split, in_place_depthwise), overhead)


def after(graph: IntegerGraph, operations: int) -> IntegerGraph:
    """What is left of a network behind its first operations."""
    end = graph.operations[operations - 1].output
    return replace(graph, input=end, operations=graph.operations[operations:], external=frozenset())
