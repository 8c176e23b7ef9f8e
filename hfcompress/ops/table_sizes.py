"""What a table of vectors is made of and how many bytes it takes, by its description; nothing here needs torch.

A description is {"kind": "rows" | "factorized" | "hashed" | "quotient_remainder" | "mixed", ...}; see its file.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

SCALE_BYTES = 2  # float16
IMPORTANCE_BYTES = 2  # float16
PLACE_BYTES = 4
IMPORTANCE_SHARE = 0.25  # of a hashed table's bytes, for its importance weights
ALPHA = 0.3  # the temperature of mixed dimensions; Ginart et al. find 0.3 best or near it on Criteo and MovieLens
BLOCKS = 6  # of mixed dimensions
PRIME = 2_147_483_647  # of hash functions; 2^31 - 1: products of two residues stay within int64

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """A tensor of a table: `bits` below 32 are codes with a scale a row."""

    shape: tuple[int, ...]
    bits: int = 32
    kind: str = "weight"
    """weight (float32 where it is not in codes), half (float16) or place (int32, and no parameter)."""

    @property
    def bytes(self) -> int:
        if self.kind == "half":
            return IMPORTANCE_BYTES * prod(self.shape)
        if self.kind == "place":
            return PLACE_BYTES * prod(self.shape)
        return stored_bytes(self.shape[0], self.shape[1], self.bits)


def parts(description: dict[str, Any], rows: int, dim: int) -> dict[str, Part]:
    """The tensors of a table [rows, dim], by name."""
    kind, bits = description["kind"], description.get("bits", 32)
    if kind == "rows":
        return {"weight": Part((rows, dim), bits)}
    if kind == "factorized":
        return {"a": Part((rows, description["rank"]), bits), "b": Part((description["rank"], dim))}
    if kind == "quotient_remainder":
        divisor = description["divisor"]
        return {"quotient": Part((-(-rows // divisor), dim), bits), "remainder": Part((divisor, dim), bits)}
    if kind == "hashed":
        importance = Part((description["weights"], description.get("functions", 2)), kind="half")
        return {"pool": Part((description["buckets"], dim), bits), "importance": importance}
    found = {"place": Part((rows,), kind="place")}
    for i, (size, width) in enumerate(zip(description["sizes"], description["dims"], strict=True)):
        found |= {f"block_{i}": Part((size, width), bits), f"projection_{i}": Part((width, dim))}
    return found


def table_bytes(description: dict[str, Any], rows: int, dim: int) -> int:
    """As the table is delivered."""
    return sum(part.bytes for part in parts(description, rows, dim).values())


def stored_bytes(rows: int, dim: int, bits: int) -> int:
    """Of a matrix whose rows are stored in so many bits: codes and, below 32 bits, scales."""
    return rows * dim * bits // 8 + (0 if bits == 32 else SCALE_BYTES * rows)


def rank_for_bytes(rows: int, dim: int, bits: int, allowed: float) -> int:
    """The largest rank whose factors take no more than `allowed` bytes, 0 if none does; even in 4 bits."""
    step = 2 if bits == 4 else 1

    def taken(rank: int) -> int:
        return table_bytes({"kind": "factorized", "rank": rank, "bits": bits}, rows, dim)

    return max((rank for rank in range(step, dim + 1, step) if taken(rank) <= allowed), default=0)


def divisor_for_bytes(rows: int, dim: int, bits: int, allowed: float) -> int:
    """The m of most rows (most remainders) that takes no more than `allowed` bytes; 0 if none does."""
    most = int(allowed // stored_bytes(1, dim, bits))  # rows of both tables together
    return next((m for m in range(min(rows, most), 0, -1) if m + -(-rows // m) <= most), 0)


def block_sizes(rows: int, blocks: int) -> list[int]:
    """Rows of each block, geometric: the first (most frequent) holds rows / 4^(blocks - 1), and so on."""
    ends = [max(1, rows // 4 ** (blocks - 1 - i)) for i in range(blocks)]
    ends[-1] = rows
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start]


def dimensions(popularity: Array, scale: float, dim: int, bits: int) -> list[int]:
    """d_b = scale * (p_b / p_0)^alpha, from 1 (2 in 4 bits, and even) to dim."""
    step = 2 if bits == 4 else 1
    wanted = scale * np.maximum(popularity / popularity[0], 1e-12) ** ALPHA
    return [min(dim, max(step, step * round(float(d) / step))) for d in wanted]


def dimensions_for_bytes(frequency: Array, sizes: list[int], dim: int, bits: int, allowed: float) -> list[int]:
    """The widest dimensions by the rule that take no more than `allowed` bytes; empty if none do."""
    ordered = np.sort(frequency)[::-1]
    popularity = np.array([part.mean() for part in np.split(ordered, np.cumsum(sizes)[:-1])]) + 0.01
    for scale in np.logspace(3, -2, 400).tolist():
        dims = dimensions(popularity, scale * dim, dim, bits)
        description = {"kind": "mixed", "sizes": sizes, "dims": dims, "bits": bits}
        if table_bytes(description, sum(sizes), dim) <= allowed:
            return dims
    return []


def describe_table(
    kind: str, rows: int, dim: int, bits: int, allowed: float, frequency: Array
) -> dict[str, Any] | None:
    """The largest table of a kind that takes no more than `allowed` bytes; None if there is none.

    Of rows of an odd length in 4 bits there is none: two codes share a byte.

    Args:
        frequency: [rows], how often each row is read.
    """
    if bits == 4 and dim % 2 and kind != "factorized":
        return None
    if kind == "rows":
        fits = stored_bytes(rows, dim, bits) <= allowed
        return {"kind": kind, "bits": bits} if fits else None
    if kind == "factorized":
        rank = rank_for_bytes(rows, dim, bits, allowed)
        return {"kind": kind, "rank": rank, "bits": bits} if rank else None
    if kind == "quotient_remainder":
        divisor = divisor_for_bytes(rows, dim, bits, allowed)
        return {"kind": kind, "divisor": divisor, "bits": bits} if divisor else None
    if kind == "mixed":
        sizes = block_sizes(rows, BLOCKS)
        dims = dimensions_for_bytes(frequency, sizes, dim, bits, allowed)
        return {"kind": kind, "sizes": sizes, "dims": dims, "bits": bits} if dims else None
    weights = min(rows, int(IMPORTANCE_SHARE * allowed / (2 * IMPORTANCE_BYTES)))
    buckets = int((allowed - 2 * IMPORTANCE_BYTES * weights) // stored_bytes(1, dim, bits))
    if min(buckets, weights) < 1:
        return None
    return {"kind": kind, "buckets": buckets, "weights": weights, "functions": 2, "bits": bits}
