"""A table by its description: {"kind": "rows" | "factorized" | "hashed" | "quotient_remainder" | "mixed", ...}."""

from typing import Any

import torch
from torch import nn

from hfcompress.ops import factorized, hashed, mixed_dimension, quotient_remainder, row_codes

KINDS: dict[str, type[nn.Module]] = {
    "rows": row_codes.RowTable,
    "factorized": factorized.FactorizedTable,
    "hashed": hashed.HashedTable,
    "quotient_remainder": quotient_remainder.QuotientRemainderTable,
    "mixed": mixed_dimension.MixedDimensionTable,
}
IMPORTANCE_SHARE = 0.25  # of a hashed table's bytes, for its importance weights


def make_table(description: dict[str, Any], rows: int, dim: int) -> Any:
    """The module, its weights not yet set."""
    options = dict(description)
    return KINDS[options.pop("kind")](rows, dim, **options)


def describe_table(
    kind: str, rows: int, dim: int, bits: int, allowed: float, frequency: torch.Tensor
) -> dict[str, Any] | None:
    """The largest table of a kind that takes no more than `allowed` bytes; None if there is none."""
    if kind == "rows":
        fits = row_codes.stored_bytes(rows, dim, bits) <= allowed
        return {"kind": kind, "bits": bits} if fits else None
    if kind == "factorized":
        rank = factorized.rank_for_bytes(rows, dim, bits, allowed)
        return {"kind": kind, "rank": rank, "bits": bits} if rank else None
    if kind == "quotient_remainder":
        divisor = quotient_remainder.divisor_for_bytes(rows, dim, bits, allowed)
        return {"kind": kind, "divisor": divisor, "bits": bits} if divisor else None
    if kind == "mixed":
        sizes = mixed_dimension.block_sizes(rows, 6)
        dims = mixed_dimension.dimensions_for_bytes(frequency, sizes, dim, bits, allowed)
        return {"kind": kind, "sizes": sizes, "dims": dims, "bits": bits} if dims else None
    weights = min(rows, int(IMPORTANCE_SHARE * allowed / (2 * hashed.IMPORTANCE_BYTES)))
    buckets = int((allowed - 2 * hashed.IMPORTANCE_BYTES * weights) // row_codes.stored_bytes(1, dim, bits))
    if min(buckets, weights) < 1:
        return None
    return {"kind": kind, "buckets": buckets, "weights": weights, "functions": 2, "bits": bits}
