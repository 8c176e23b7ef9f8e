"""A table's module by its description (see table_sizes.py)."""

from typing import Any

from torch import nn

from hfcompress.ops import factorized, hashed, mixed_dimension, quotient_remainder, row_codes

KINDS: dict[str, type[nn.Module]] = {
    "rows": row_codes.RowTable,
    "factorized": factorized.FactorizedTable,
    "hashed": hashed.HashedTable,
    "quotient_remainder": quotient_remainder.QuotientRemainderTable,
    "mixed": mixed_dimension.MixedDimensionTable,
}


def make_table(description: dict[str, Any], rows: int, dim: int) -> Any:
    """The module, its weights not yet set; its `description` is what it was made by."""
    options = dict(description)
    table: Any = KINDS[options.pop("kind")](rows, dim, **options)
    table.description = dict(description)
    return table
