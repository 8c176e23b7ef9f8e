"""Looking up compressed embeddings in ONNX: the nodes and the tensors of each kind of table (see ops/).

Integer rows are read by onnxruntime's GatherBlockQuantized, everything else by standard operators: a table is never
unfolded whole, and what lies in the file is what is counted.
"""

from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hfcompress.ops import hashed, row_codes
from hfcompress.ops.factorized import FactorizedTable
from hfcompress.ops.hashed import HashedTable
from hfcompress.ops.mixed_dimension import MixedDimensionTable
from hfcompress.ops.quotient_remainder import QuotientRemainderTable
from hfcompress.ops.row_codes import RowTable

MICROSOFT = "com.microsoft"
SMALLEST_BLOCK = 16  # of GatherBlockQuantized; a scale a row is one block that is at least as wide as the row

Array = np.ndarray[Any, Any]


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


def rows_of(graph: Lookup, part: str, weight: torch.Tensor, bits: int, ids: str) -> str:
    """Rows [..., dim] of a matrix [rows, dim] that is stored in so many bits."""
    if bits == 32:
        return graph.node("Gather", graph.tensor(part, weight.detach().numpy()), ids, axis=0)
    codes, scales = row_codes.row_codes(weight, bits)
    packed = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    if bits == 4:
        packed = packed[:, 0::2] | (packed[:, 1::2] << 4)
    block = max(SMALLEST_BLOCK, 1 << (weight.shape[1] - 1).bit_length())
    looked_up = graph.node(
        "GatherBlockQuantized",
        graph.tensor(part, packed.numpy()),
        ids,
        graph.tensor(f"{part}_scale", scales.unsqueeze(1).numpy()),
        domain=MICROSOFT,
        bits=bits,
        block_size=block,
        gather_axis=0,
        quantize_axis=1,
    )
    return graph.node("Cast", looked_up, to=TensorProto.FLOAT)


def look_up(graph: Lookup, table: torch.nn.Module, ids: str) -> str:
    """Vectors [..., dim] of ids [...] that the table has; the name of the tensor.

    Raises:
        TypeError: not a table of ops/.
    """
    if isinstance(table, RowTable):
        return rows_of(graph, "weight", table.weight, table.bits, ids)
    if isinstance(table, FactorizedTable):
        rows = rows_of(graph, "a", table.a, table.bits, ids)
        return graph.node("MatMul", rows, graph.tensor("b", table.b.detach().numpy()))
    if isinstance(table, HashedTable):
        return hashed_rows(graph, table, ids)
    if isinstance(table, QuotientRemainderTable):
        divisor = graph.number(table.divisor)
        quotient = rows_of(graph, "quotient", table.quotient, table.bits, graph.node("Div", ids, divisor))
        remainder = rows_of(graph, "remainder", table.remainder, table.bits, graph.node("Mod", ids, divisor))
        return graph.node("Mul", quotient, remainder)
    if isinstance(table, MixedDimensionTable):
        return mixed_rows(graph, table, ids)
    raise TypeError(f"no lookup for a {type(table).__name__}")


def hashed_rows(graph: Lookup, table: HashedTable, ids: str) -> str:
    """sum over i of p_i(id) W[h_i(id)]."""
    places = [
        graph.node("Unsqueeze", hash_nodes(graph, ids, a, b, table.buckets), graph.number([-1]))
        for a, b in table.constants
    ]
    vectors = rows_of(graph, "pool", table.pool, table.bits, graph.node("Concat", *places, axis=-1))
    where = ids if table.weights >= table.rows else hash_nodes(graph, ids, *table.weight_constants, table.weights)
    stored = graph.tensor("importance", table.importance.detach().half().numpy())
    importance = graph.node("Cast", graph.node("Gather", stored, where, axis=0), to=TensorProto.FLOAT)
    weighted = graph.node("Mul", vectors, graph.node("Unsqueeze", importance, graph.number([-1])))
    return graph.node("ReduceSum", weighted, graph.number([-2]), keepdims=0)


def hash_nodes(graph: Lookup, ids: str, multiplier: int, offset: int, buckets: int) -> str:
    """As ops/hashed.py, `hashed`."""
    prime = graph.number(hashed.PRIME)
    product = graph.node("Mul", graph.node("Mod", ids, prime), graph.number(multiplier))
    mixed = graph.node("Mod", graph.node("Add", product, graph.number(offset)), prime)
    return graph.node("Mod", mixed, graph.number(buckets))


def mixed_rows(graph: Lookup, table: MixedDimensionTable, ids: str) -> str:
    """Each block's rows times its projection, where the id lies in the block."""
    stored = graph.tensor("place", table.place.numpy())
    place = graph.node("Cast", graph.node("Gather", stored, ids, axis=0), to=TensorProto.INT64)
    zero, first, found = graph.tensor("zero", np.zeros((), np.float32)), 0, []
    for i, (size, block, projection) in enumerate(zip(table.sizes, table.blocks, table.projections, strict=True)):
        inside = graph.node("Sub", place, graph.number(first))
        mine = graph.node(
            "And",
            graph.node("GreaterOrEqual", inside, graph.number(0)),
            graph.node("Less", inside, graph.number(size)),
        )
        row = graph.node("Where", mine, inside, graph.number(0))
        rows = rows_of(graph, f"block_{i}", block, table.bits, row)
        vectors = graph.node("MatMul", rows, graph.tensor(f"projection_{i}", projection.detach().numpy()))
        found.append(graph.node("Where", graph.node("Unsqueeze", mine, graph.number([-1])), vectors, zero))
        first += size
    return graph.node("Sum", *found)
