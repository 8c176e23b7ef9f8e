"""Looking up compressed embeddings in ONNX: the nodes and the tensors of each kind of table (see ops/table_sizes.py).

Integer rows are read by onnxruntime's GatherBlockQuantized, everything else by standard operators: a table is never
unfolded whole, and what lies in the file is what is counted. Nothing here needs torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hfcompress.ops.table_sizes import PRIME, parts

MICROSOFT = "com.microsoft"
SMALLEST_BLOCK = 16  # of GatherBlockQuantized; a scale a row is one block that is at least as wide as the row

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StoredTable:
    """A table [rows, dim] as it lies in a file."""

    description: dict[str, Any]
    rows: int
    dim: int
    arrays: dict[str, Array]
    """The parts of the description by name; one in codes is uint8 (two codes a byte in 4 bits, the first below), and
    its float16 scales [rows, 1] lie beside it as NAME_scale."""
    hashes: tuple[tuple[int, int], ...] = ()
    """Multiplier and offset of each hash function of a hashed table, the importance weights' last."""


class Lookup:
    """Nodes and tensors that are added to a graph; names begin with the table's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; its name."""
        output = f"{self.name}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def tensor(self, part: str, array: Array) -> str:
        """Add an initializer; its name."""
        name = f"{self.name}.{part}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def number(self, value: int | list[int]) -> str:
        """An int64 constant."""
        return self.tensor(f"constant_{len(self.tensors)}", np.array(value, dtype=np.int64))


def known_ids(graph: Lookup, ids: str, rows: int, unknown: str) -> str:
    """As click_model.KnownIds: what lies beyond the table is the unknown row, or some known id's."""
    count = graph.number(rows)
    above, below = graph.node("GreaterOrEqual", ids, graph.number(0)), graph.node("Less", ids, count)
    other = graph.node("Mod", ids, count) if unknown == "hash" else count
    return graph.node("Where", graph.node("And", above, below), ids, other)


def rows_of(graph: Lookup, table: StoredTable, part: str, ids: str) -> str:
    """Rows [..., dim] of a part of the table."""
    found = parts(table.description, table.rows, table.dim)[part]
    stored = graph.tensor(part, table.arrays[part])
    if found.bits == 32:
        return graph.node("Gather", stored, ids, axis=0)
    looked_up = graph.node(
        "GatherBlockQuantized",
        stored,
        ids,
        graph.tensor(f"{part}_scale", table.arrays[f"{part}_scale"]),
        domain=MICROSOFT,
        bits=found.bits,
        block_size=max(SMALLEST_BLOCK, 1 << (found.shape[1] - 1).bit_length()),
        gather_axis=0,
        quantize_axis=1,
    )
    return graph.node("Cast", looked_up, to=TensorProto.FLOAT)


def look_up(graph: Lookup, table: StoredTable, ids: str) -> str:
    """Vectors [..., dim] of ids [...] that the table has; the name of the tensor."""
    kind = table.description["kind"]
    if kind == "rows":
        return rows_of(graph, table, "weight", ids)
    if kind == "factorized":
        return graph.node("MatMul", rows_of(graph, table, "a", ids), graph.tensor("b", table.arrays["b"]))
    if kind == "hashed":
        return hashed_rows(graph, table, ids)
    if kind == "quotient_remainder":
        divisor = graph.number(table.description["divisor"])
        quotient = rows_of(graph, table, "quotient", graph.node("Div", ids, divisor))
        remainder = rows_of(graph, table, "remainder", graph.node("Mod", ids, divisor))
        return graph.node("Mul", quotient, remainder)
    return mixed_rows(graph, table, ids)


def hashed_rows(graph: Lookup, table: StoredTable, ids: str) -> str:
    """sum over i of p_i(id) W[h_i(id)]."""
    *functions, last = table.hashes
    buckets, weights = table.description["buckets"], table.description["weights"]
    places = [graph.node("Unsqueeze", hash_nodes(graph, ids, a, b, buckets), graph.number([-1])) for a, b in functions]
    vectors = rows_of(graph, table, "pool", graph.node("Concat", *places, axis=-1))
    where = ids if weights >= table.rows else hash_nodes(graph, ids, *last, weights)
    stored = graph.tensor("importance", table.arrays["importance"])
    importance = graph.node("Cast", graph.node("Gather", stored, where, axis=0), to=TensorProto.FLOAT)
    weighted = graph.node("Mul", vectors, graph.node("Unsqueeze", importance, graph.number([-1])))
    return graph.node("ReduceSum", weighted, graph.number([-2]), keepdims=0)


def hash_nodes(graph: Lookup, ids: str, multiplier: int, offset: int, buckets: int) -> str:
    """As ops/hashed.py, `hashed`."""
    prime = graph.number(PRIME)
    product = graph.node("Mul", graph.node("Mod", ids, prime), graph.number(multiplier))
    mixed = graph.node("Mod", graph.node("Add", product, graph.number(offset)), prime)
    return graph.node("Mod", mixed, graph.number(buckets))


def mixed_rows(graph: Lookup, table: StoredTable, ids: str) -> str:
    """Each block's rows times its projection, where the id lies in the block."""
    stored = graph.tensor("place", table.arrays["place"])
    place = graph.node("Cast", graph.node("Gather", stored, ids, axis=0), to=TensorProto.INT64)
    zero, first, found = graph.tensor("zero", np.zeros((), np.float32)), 0, []
    for i, size in enumerate(table.description["sizes"]):
        inside = graph.node("Sub", place, graph.number(first))
        mine = graph.node(
            "And",
            graph.node("GreaterOrEqual", inside, graph.number(0)),
            graph.node("Less", inside, graph.number(size)),
        )
        row = graph.node("Where", mine, inside, graph.number(0))
        rows = rows_of(graph, table, f"block_{i}", row)
        vectors = graph.node("MatMul", rows, graph.tensor(f"projection_{i}", table.arrays[f"projection_{i}"]))
        found.append(graph.node("Where", graph.node("Unsqueeze", mine, graph.number([-1])), vectors, zero))
        first += size
    return graph.node("Sum", *found)
