"""Quotient-remainder embeddings: e(id) = Q[id div m] * R[id mod m], elementwise (Shi et al. 2020, section 2.2).

The two partitions are complementary: no two ids share both rows, so that every id keeps a vector of its own.
"""

import torch
from torch import Tensor, nn

from hfcompress.ops import row_codes


class QuotientRemainderTable(nn.Module):
    """Args: divisor: m, the rows of R; Q has ceil(rows / m)."""

    sparse = True  # gradients: of the rows that were read alone; an optimizer of whole matrices wants False

    def __init__(self, rows: int, dim: int, divisor: int, bits: int = 32) -> None:
        super().__init__()
        self.rows, self.dim, self.divisor, self.bits = rows, dim, divisor, bits
        self.quotient = nn.Parameter(torch.empty(-(-rows // divisor), dim))
        self.remainder = nn.Parameter(torch.empty(divisor, dim))

    def forward(self, ids: Tensor) -> Tensor:
        quotient = nn.functional.embedding(
            torch.div(ids, self.divisor, rounding_mode="floor"), self.quotient, sparse=self.sparse
        )
        remainder = nn.functional.embedding(torch.remainder(ids, self.divisor), self.remainder, sparse=self.sparse)
        return row_codes.rounded(quotient, self.bits) * row_codes.rounded(remainder, self.bits)

    def start(self, table: Tensor, frequency: Tensor) -> None:
        """R holds the means of the ids that share a remainder, Q ones."""
        with torch.no_grad():
            places = torch.remainder(torch.arange(self.rows), self.divisor)
            weight = frequency.float() + 0.01
            total = torch.zeros(self.divisor).index_add_(0, places, weight)
            sums = torch.zeros(self.divisor, self.dim).index_add_(0, places, table * weight.unsqueeze(1))
            self.remainder.copy_(sums / total.clamp(min=1e-6).unsqueeze(1))
            self.quotient.fill_(1.0)
