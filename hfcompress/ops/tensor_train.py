"""An embedding table as a tensor train: three small cores instead of rows x dim weights (Hrinchuk et al. 2020, 3.2).

A row's number is written in three digits (i1, i2, i3) of the bases n1, n2, n3, its dim as d1 d2 d3. Then
E[i, :] = G1[i1] G2[i2] G3[i3] with cores G1 [n1, d1, r1], G2 [n2, r1, d2, r2], G3 [n3, r2, d3].
"""

import math

import torch
from torch import Tensor

from hfcompress.errors import needs
from hfcompress.ops.low_rank import check_rank, tensorly

Sizes = tuple[int, int, int]


def row_bases(rows: int) -> Sizes:
    """Three bases as equal as can be whose product is at least `rows`."""
    first = math.ceil(round(rows ** (1 / 3), 9))
    second = math.ceil(round(math.sqrt(rows / first), 9))
    return first, second, math.ceil(rows / (first * second))


def dim_factors(dim: int) -> Sizes:
    """Three factors of `dim`, as equal as can be, the largest in the middle."""
    triples = [
        (a, b, dim // (a * b)) for a in range(1, dim + 1) if dim % a == 0 for b in range(1, dim // a + 1)
        if dim // a % b == 0
    ]  # fmt: skip
    low, high, middle = sorted(min(triples, key=sum))
    return low, middle, high


def bond_ranks(rows: int, dim: int, rank: int) -> tuple[int, int]:
    """r1 and r2 of a train of this rank: each no more than its outer core can use.

    Raises:
        ValueError: neither core can use so much.
    """
    (n1, _, n3), (d1, _, d3) = row_bases(rows), dim_factors(dim)
    check_rank(rank, max(n1 * d1, n3 * d3))
    return min(rank, n1 * d1), min(rank, n3 * d3)


def core_shapes(rows: int, dim: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The shapes of G1, G2 and G3.

    Raises:
        ValueError: no train of this table has such a rank.
    """
    r1, r2 = bond_ranks(rows, dim, rank)
    (n1, n2, n3), (d1, d2, d3) = row_bases(rows), dim_factors(dim)
    return (n1, d1, r1), (n2, r1, d2, r2), (n3, r2, d3)


def train_weights(rows: int, dim: int, rank: int) -> int:
    """Weights of the three cores."""
    return sum(math.prod(shape) for shape in core_shapes(rows, dim, rank))


def cores(table: Tensor, rank: int) -> list[Tensor]:
    """G1, G2 and G3 of a table [rows, dim]: two truncated singular value decompositions (Oseledets 2011, TT-SVD)."""
    needs("tensorly")
    from tensorly.decomposition import tensor_train

    rows, dim = table.shape
    r1, r2 = bond_ranks(rows, dim, rank)
    (n1, n2, n3), (d1, d2, d3) = row_bases(rows), dim_factors(dim)
    whole = torch.zeros(n1 * n2 * n3, dim, dtype=torch.float64)
    whole[:rows] = table.detach().double()
    modes = whole.reshape(n1, n2, n3, d1, d2, d3).permute(0, 3, 1, 4, 2, 5).reshape(n1 * d1, n2 * d2, n3 * d3)
    with tensorly():
        first, second, third = tensor_train(modes, rank=[1, r1, r2, 1])
    return [
        first.reshape(n1, d1, r1).float(),
        second.reshape(r1, n2, d2, r2).transpose(0, 1).contiguous().float(),
        third.reshape(r2, n3, d3).transpose(0, 1).contiguous().float(),
    ]


def lookup(ids: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Rows [..., dim] of ids [...]."""
    n2, r1, d2, r2 = second.shape
    n3, _, d3 = third.shape
    d1 = first.shape[1]
    flat = ids.reshape(-1)
    high = torch.div(flat, n2 * n3, rounding_mode="floor")
    middle = torch.div(flat, n3, rounding_mode="floor") % n2
    product = first[high] @ second[middle].reshape(-1, r1, d2 * r2)
    rows = product.reshape(-1, d1 * d2, r2) @ third[flat % n3]
    return rows.reshape(*ids.shape, d1 * d2 * d3)
