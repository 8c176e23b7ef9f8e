"""A table as the product of two: E [rows, dim] ~ A [rows, rank] B [rank, dim] (Lan et al. 2020, ALBERT, section 3.1).

The start is the singular value decomposition, the best approximation of a rank (Eckart and Young 1936); weighted by
how often each row is read, it minimises the error of a looked-up vector instead of that of a row (Chen et al. 2018,
GroupReduce, section 3.2).
"""

import torch
from torch import Tensor, nn

from hfcompress.ops import row_codes


def weighted_svd(table: Tensor, frequency: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Singular values [dim] and right vectors [dim, dim] (rows) of the table, each row weighted by sqrt(frequency).

    Computed from the dim x dim second moments, so that a million rows cost one product; in float64, where squaring
    loses nothing that float32 had.
    """
    weight = torch.ones(len(table)) if frequency is None else frequency
    moments = (table.double() * weight.double().unsqueeze(1)).T @ table.double()
    values, vectors = torch.linalg.eigh(moments)
    return values.clamp(min=0).sqrt().flip(0).float(), vectors.flip(1).T.float()


def rank_for_energy(singular_values: Tensor, energy: float) -> int:
    """The smallest rank whose squared singular values hold this share of all of them."""
    share = singular_values.double().square().cumsum(0) / singular_values.double().square().sum()
    return min(int((share < energy - 1e-12).sum()) + 1, len(singular_values))


def factors(table: Tensor, rank: int, frequency: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A [rows, rank] and B [rank, dim]: the rows' coordinates along the first right vectors, and these."""
    _, vectors = weighted_svd(table, frequency)
    return table @ vectors[:rank].T, vectors[:rank].clone()


class FactorizedTable(nn.Module):
    """Rows of A, stored in 32, 8 or 4 bits, times B."""

    sparse = True  # gradients: of the rows that were read alone; an optimizer of whole matrices wants False

    def __init__(self, rows: int, dim: int, rank: int, bits: int = 32) -> None:
        super().__init__()
        self.rows, self.dim, self.rank, self.bits = rows, dim, rank, bits
        self.a = nn.Parameter(torch.empty(rows, rank))
        self.b = nn.Parameter(torch.empty(rank, dim))

    def forward(self, ids: Tensor) -> Tensor:
        return row_codes.rounded(nn.functional.embedding(ids, self.a, sparse=self.sparse), self.bits) @ self.b

    def start(self, table: Tensor, frequency: Tensor) -> None:
        """Take over a trained table [rows, dim], read `frequency` [rows] times."""
        with torch.no_grad():
            for mine, found in zip((self.a, self.b), factors(table, self.rank, frequency), strict=True):
                mine.copy_(found)
