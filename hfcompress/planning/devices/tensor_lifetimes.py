"""Activation memory by tensor lifetimes: from when to when each tensor lives, where it lies, and the peak."""

from dataclasses import dataclass, replace
from itertools import accumulate

from hfcompress.planning.devices.integer_graph import IntegerGraph, Operation

KB = 1024  # as microcontrollers' data sheets count


@dataclass(frozen=True)
class Lifetime:
    """A buffer that is needed from the operation `first` (-1: before all) to the operation `last`, both included.

    `scratch` buffers belong to one operation.
    """

    tensor: str
    first: int
    last: int
    bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Lifetimes and offsets (tensor -> byte in the arena).

    `in_place` names the outputs that are written over their operation's input, a channel at a time.
    """

    lifetimes: tuple[Lifetime, ...]
    offsets: dict[str, int]
    in_place: frozenset[str]
    operations: int

    @property
    def live(self) -> list[int]:
        """Bytes that are alive during each operation."""
        return live_bytes(self.lifetimes, self.operations)

    @property
    def peak(self) -> int:
        """Bytes that any arrangement needs."""
        return max(self.live)

    @property
    def arena(self) -> int:
        """Bytes that this arrangement needs: what must fit the SRAM."""
        return max(self.offsets[t.tensor] + t.bytes for t in self.lifetimes)


def plan_memory(graph: IntegerGraph, in_place_depthwise: bool = False) -> MemoryPlan:
    """Lifetimes and places of all activations.

    Rules: during an operation all its inputs and its output are alive. A Flatten is a view. Weights are read from
    flash. A kernel's own scratch (an im2col of some pixels, as in CMSIS-NN) and the runtime's structures are not
    counted. With `in_place_depthwise` (Lin et al. 2020, MCUNet, section 3.2) a depthwise convolution that keeps the
    shape and is the last reader of its input writes over it, and needs one more channel.
    """
    found = lifetimes(graph)
    shared = in_place_outputs(graph, found) if in_place_depthwise else {}
    buffers = merged(graph, found, shared)
    return MemoryPlan(buffers, place(buffers), frozenset(shared), len(graph.operations))


def lifetimes(graph: IntegerGraph) -> dict[str, Lifetime]:
    """Each tensor from its first writer to its last reader; the input is there before, the output stays."""
    found = {graph.input: Lifetime(graph.input, -1, -1, graph.bytes(graph.input))}
    for i, operation in enumerate(graph.operations):
        known = found.get(operation.output)
        found[operation.output] = (
            replace(known, last=i) if known else Lifetime(operation.output, i, i, graph.bytes(operation.output))
        )
        for name in operation.inputs:
            found[name] = replace(found[name], last=i)
    found[graph.output] = replace(found[graph.output], last=len(graph.operations) - 1)
    return found


def in_place_outputs(graph: IntegerGraph, found: dict[str, Lifetime]) -> dict[str, str]:
    """Output -> input of every depthwise convolution that may write over its input."""
    return {
        operation.output: operation.inputs[0]
        for i, operation in enumerate(graph.operations)
        if is_depthwise(graph, operation)
        and graph.shapes[operation.inputs[0]] == graph.shapes[operation.output]
        and found[operation.inputs[0]].last == i
        and not any(operation.windows)
        and operation.place is None
    }


def is_depthwise(graph: IntegerGraph, operation: Operation) -> bool:
    return operation.kind == "Conv" and operation.group == graph.shapes[operation.output][0] > 1


def merged(graph: IntegerGraph, found: dict[str, Lifetime], shared: dict[str, str]) -> tuple[Lifetime, ...]:
    """An output that is written over its input lives in the input's buffer; its scratch is a buffer of its own."""
    buffers = dict(found)
    for i, operation in enumerate(graph.operations):
        if operation.output in shared:
            own = shared[operation.output]
            buffers[own] = replace(buffers[own], last=buffers.pop(operation.output).last)
            shared[operation.output] = own
            channel = graph.bytes(operation.output) // graph.shapes[operation.output][0]
            buffers[scratch(operation)] = Lifetime(scratch(operation), i, i, channel)
    return tuple(buffers.values())


def live_bytes(buffers: tuple[Lifetime, ...], operations: int) -> list[int]:
    """The sum of the buffers that are alive during each operation."""
    changes = [0] * (operations + 1)
    for buffer in buffers:
        changes[max(0, buffer.first)] += buffer.bytes
        changes[buffer.last + 1] -= buffer.bytes
    return list(accumulate(changes))[:-1]


def peak_bytes(graph: IntegerGraph, in_place_depthwise: bool = False) -> int:
    """What `plan_memory(...).peak` says, without looking for places."""
    found = lifetimes(graph)
    shared = in_place_outputs(graph, found) if in_place_depthwise else {}
    return max(live_bytes(merged(graph, found, shared), len(graph.operations)))


def scratch(operation: Operation) -> str:
    """The name of the channel that an in-place operation needs beside its buffer."""
    return f"{operation.name}/scratch"


def place(buffers: tuple[Lifetime, ...]) -> dict[str, int]:
    """Offsets by size, largest first, each in the lowest gap between those it lives together with.

    TensorFlow Lite Micro's GreedyMemoryPlanner does the same.
    """
    offsets: dict[str, int] = {}
    placed: list[Lifetime] = []
    for buffer in sorted(buffers, key=lambda b: (-b.bytes, b.first, b.tensor)):
        beside = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        at = 0
        for other in sorted(beside, key=lambda b: offsets[b.tensor]):
            if at + buffer.bytes <= offsets[other.tensor]:
                break
            at = max(at, offsets[other.tensor] + other.bytes)
        offsets[buffer.tensor] = at
        placed.append(buffer)
    return offsets
