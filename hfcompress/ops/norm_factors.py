"""Embeddings of few dimensions in front of a LayerNorm, without changing what the LayerNorm gives.

BERT looks up v = word + position + type [dim] and gives LN(v) = gamma (v - mean) / std + beta. ALBERT (Lan et al.
2020, section 3.1) looks up [size] numbers, normalizes those, and projects. The second can be the first: with
orthonormal directions V [rank, dim] of the centred vectors and a Q [rank, rank + 1] whose rows are orthonormal and sum
to zero, the coordinates a = (v - mean) V^T Q have mean 0 and the length of v's part along V, so that

    LN(v's part) = sqrt(dim / size) gamma (LN'(a) Q^T V) + beta,  size = rank + 1, LN' without gamma and beta,

which is a Linear layer behind LN'. With all dim - 1 directions of centred vectors nothing is lost at all.
"""

import math

import torch
from torch import Tensor


def zero_sum_basis(rank: int) -> Tensor:
    """Q [rank, rank + 1]: orthonormal rows that each sum to zero (Helmert's matrix without its first row)."""
    rows = torch.zeros(rank, rank + 1, dtype=torch.float64)
    for i in range(rank):
        rows[i, : i + 1] = 1.0
        rows[i, i + 1] = -(i + 1.0)
    return rows / rows.norm(dim=1, keepdim=True)


def read_moments(vectors: Tensor) -> Tensor:
    """[dim, dim] in float64: the summed second moments of vectors [n, dim] as the LayerNorm reads them.

    Centred and brought to length 1: its output does not know their length.
    """
    centred = vectors.double() - vectors.double().mean(dim=1, keepdim=True)
    unit = torch.nn.functional.normalize(centred, dim=1)
    return unit.T @ unit


def directions_of(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the moments along each direction [dim], largest first, and the directions [dim, dim] (rows).

    All but the last sum to zero: along that one nothing centred is ever read.
    """
    dim = len(moments)
    centring = torch.eye(dim, dtype=torch.float64) - 1.0 / dim
    values, vectors = torch.linalg.eigh(moments + 1e-12 * moments.trace() * centring)
    shares = values.clamp(min=0).flip(0)
    return shares / shares.sum(), vectors.flip(1).T


def size_for_energy(shares: Tensor, energy: float) -> int:
    """The smallest embedding size (rank + 1) whose directions hold this share of what is read."""
    rank = min(int((shares.cumsum(0) < energy - 1e-12).sum()) + 1, len(shares) - 1)
    return rank + 1


def in_factors(table: Tensor, directions: Tensor) -> Tensor:
    """Rows [rows, dim] as coordinates [rows, rank + 1] that sum to zero; `directions` are [rank, dim]."""
    centred = table.double() - table.double().mean(dim=1, keepdim=True)
    return (centred @ directions.T @ zero_sum_basis(len(directions))).float()


def projection(directions: Tensor, gamma: Tensor) -> Tensor:
    """The Linear weight [dim, rank + 1] behind the small LayerNorm; its bias is the old LayerNorm's beta."""
    rank, dim = directions.shape
    back = directions.T @ zero_sum_basis(rank)
    return (math.sqrt(dim / (rank + 1)) * gamma.double().unsqueeze(1) * back).float()
