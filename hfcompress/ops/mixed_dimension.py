"""Mixed dimension embeddings: frequent ids get wide rows, rare ones narrow (Ginart et al. 2021, sections 4 and 5).

The ids, in order of frequency, fall into blocks. A block's rows have d_b <= dim numbers and a projection [d_b, dim].
Dimensions follow the popularity of the block's ids: d_b = lambda p_b^alpha (their Algorithm 2), rounded and clipped;
lambda is what the bytes allow. An id finds its row by its place in that order, which is stored too: 4 bytes an id.
"""

import torch
from torch import Tensor, nn

from hfcompress.ops import row_codes
from hfcompress.ops.factorized import factors


class MixedDimensionTable(nn.Module):
    """Args: sizes, dims: rows and numbers a row of each block."""

    sparse = True  # gradients: of the rows that were read alone; an optimizer of whole matrices wants False

    place: Tensor

    def __init__(self, rows: int, dim: int, sizes: list[int], dims: list[int], bits: int = 32) -> None:
        super().__init__()
        self.rows, self.dim, self.sizes, self.bits = rows, dim, sizes, bits
        self.register_buffer("place", torch.arange(rows, dtype=torch.int32))
        self.blocks = nn.ParameterList([torch.empty(n, d) for n, d in zip(sizes, dims, strict=True)])
        self.projections = nn.ParameterList([torch.empty(d, dim) for d in dims])

    def forward(self, ids: Tensor) -> Tensor:
        place, first, found = self.place[ids].long(), 0, torch.zeros((*ids.shape, self.dim))
        for size, block, projection in zip(self.sizes, self.blocks, self.projections, strict=True):
            inside = (place >= first) & (place < first + size)
            rows = nn.functional.embedding((place - first).clamp(0, size - 1), block, sparse=self.sparse)
            vectors = row_codes.rounded(rows, self.bits) @ projection
            found = found + torch.where(inside.unsqueeze(-1), vectors, torch.zeros_like(vectors))
            first += size
        return found

    def start(self, table: Tensor, frequency: Tensor) -> None:
        """Order the ids by frequency, and take each block's best approximation of its rank."""
        with torch.no_grad():
            order = frequency.float().sort(descending=True, stable=True).indices
            self.place[order] = torch.arange(self.rows, dtype=torch.int32)
            for part, block, projection in zip(order.split(self.sizes), self.blocks, self.projections, strict=True):
                a, b = factors(table[part], block.shape[1], frequency[part].float() + 0.01)
                block.copy_(a)
                projection.copy_(b)
