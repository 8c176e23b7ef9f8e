"""Hash embeddings: a vector is a weighted sum of a few shared ones (Svenstrup, Hansen and Winther 2017, section 3).

e(id) = sum over i of p_i(id) W[h_i(id)], where the h_i are k hash functions into a pool W and p(id) are importance
weights, of a table that is itself indexed by a hash. Two ids that meet in one row of the pool hardly meet in all.
"""

import torch
from torch import Tensor, nn

from hfcompress.ops import row_codes
from hfcompress.ops.table_sizes import PRIME


def hashed(ids: Tensor, multiplier: int, offset: int, buckets: int) -> Tensor:
    """((a id + b) mod p) mod buckets: universal hashing (Carter and Wegman 1979)."""
    mixed = torch.remainder(torch.remainder(ids, PRIME) * multiplier + offset, PRIME)
    return torch.remainder(mixed, buckets)


def hash_constants(count: int, seed: int) -> list[tuple[int, int]]:
    """Multiplier (1 to p - 1) and offset (0 to p - 1) of each function."""
    random = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randint(1, PRIME, (count, 2), generator=random, device="cpu").tolist()
    return [(int(a), int(b) - 1) for a, b in numbers]


class HashedTable(nn.Module):
    """Args: buckets: rows of the pool; weights: rows of the importance table; functions: k."""

    sparse = True  # gradients: of the rows that were read alone; an optimizer of whole matrices wants False

    def __init__(
        self, rows: int, dim: int, buckets: int, weights: int, functions: int = 2, bits: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        self.rows, self.dim, self.bits = rows, dim, bits
        self.buckets, self.weights, self.functions = buckets, weights, functions
        *self.constants, self.weight_constants = hash_constants(functions + 1, seed)
        self.pool = nn.Parameter(torch.empty(buckets, dim))
        self.importance = nn.Parameter(torch.empty(weights, functions))

    def places(self, ids: Tensor) -> Tensor:
        """Rows of the pool, [..., functions]."""
        return torch.stack([hashed(ids, a, b, self.buckets) for a, b in self.constants], dim=-1)

    def weight_places(self, ids: Tensor) -> Tensor:
        """Rows of the importance table: the id itself where there are enough."""
        return ids if self.weights >= self.rows else hashed(ids, *self.weight_constants, self.weights)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = nn.functional.embedding(self.places(ids), self.pool, sparse=self.sparse)
        importance = nn.functional.embedding(self.weight_places(ids), self.importance, sparse=self.sparse)
        importance = importance + (importance.half().float() - importance).detach()  # as it is stored
        return (row_codes.rounded(vectors, self.bits) * importance.unsqueeze(-1)).sum(dim=-2)

    def start(self, table: Tensor, frequency: Tensor) -> None:
        """Each row of the pool is the mean of the vectors that meet in it, weighted by how often they are read."""
        with torch.no_grad():
            places = self.places(torch.arange(self.rows)).flatten()
            weight = (frequency.float() + 0.01).repeat_interleave(self.functions)
            rows = table.repeat_interleave(self.functions, dim=0) * weight.unsqueeze(1)
            total = torch.zeros(self.buckets).index_add_(0, places, weight)
            pool = torch.zeros(self.buckets, self.dim).index_add_(0, places, rows)
            self.pool.copy_(pool / total.clamp(min=1e-6).unsqueeze(1))
            self.importance.fill_(1 / self.functions)
