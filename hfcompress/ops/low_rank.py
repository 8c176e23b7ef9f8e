"""A matrix as the product of two: W [rows, columns] ~ U [rows, rank] V [rank, columns], and how much of it is lost.

The truncated singular value decomposition is the best approximation of its rank (Eckart and Young 1936); what it loses
is the squared singular values that are dropped. What counts of a layer is not its weight but its output: with the
second moment H = E[x x'] = R R' of its inputs, E|(W - UV) x|^2 = |(W - UV) R|^2 (Frobenius), so that the truncated
decomposition of W R, with R^-1 multiplied to V, is the best for the inputs that were seen (Chen et al. 2021, DRONE,
theorem 1; Wang et al. 2024, SVD-LLM, section 3.1). Plain SVD is the case R = 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from hfcompress.errors import needs

DAMPING = 1e-4  # of the inputs' mean square, for directions that calibration never saw
STEP = 8  # kernels work in blocks of so many channels, so ranks are tried in steps of it
STEPS = 16  # that a small layer is tried in at least
Ranks = tuple[int, ...]


class Factorization(Protocol):
    """The ways to factor one layer, each given by its ranks."""

    dense: int
    """Weights of the layer as it is, biases left out."""

    def candidates(self) -> list[Ranks]:
        """Ranks that take fewer weights than the layer has, from the fewest weights up; none if every choice grows."""

    def parts(self, ranks: Ranks) -> list[int]:
        """Weights of each factor, in the order of `factors`."""

    def error(self, ranks: Ranks) -> float:
        """E|change of the output|^2 as a share of E|output|^2, both without the bias."""

    def factors(self, ranks: Ranks) -> list[Tensor]:
        """The factors, in the order in which an input meets them, shaped as the layers' weights."""


@contextmanager
def tensorly() -> Iterator[None]:
    """TensorLy computes with torch's tensors meanwhile."""
    needs("tensorly")
    import tensorly as tl

    with tl.backend_context("pytorch", local_threadsafe=True):
        yield


def root_of_moment(moment: Tensor | None, columns: int) -> tuple[Tensor, Tensor]:
    """R [columns, columns] with R R' = E[x x'] (a little damped) and its inverse, float64; the identity for None.

    The symmetric root by eigenvalues: unlike Cholesky's factor it is there for a moment of few examples, too.

    Raises:
        ValueError: the inputs were always 0, or not finite.
    """
    if moment is None:
        return torch.eye(columns, dtype=torch.float64), torch.eye(columns, dtype=torch.float64)
    mean_square = float(moment.diagonal().double().mean())
    if not 0 < mean_square < float("inf") or not bool(moment.isfinite().all()):
        raise ValueError("its inputs on calibration data are all 0, or not finite")
    values, vectors = torch.linalg.eigh(moment.double())
    roots = (values.clamp(min=0) + DAMPING * mean_square).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def rank_step(most: int) -> int:
    """Ranks up to `most` are tried in steps of this."""
    return max(1, min(STEP, most // STEPS))


def steps_to(most: int) -> list[int]:
    """The numbers up to `most` that are tried as a rank."""
    step = rank_step(most)
    return [*range(step, most, step), most] if most else []


def check_rank(rank: int, most: int) -> None:
    """Raise ValueError for a rank that no matrix of this size has."""
    if not 1 <= rank <= most:
        raise ValueError(f"a rank of {rank}: from 1 to {most}")


class LowRank:
    """Truncated SVD of a linear layer, or of a convolution seen as a linear layer of its patches (1 group).

    Factors: V [rank, columns] (a convolution's: [rank, in, height, width]) and U [rows, rank] ([rows, rank, 1, 1]).
    Both take the root of the singular values, so that neither is much larger than the other when they are rounded.

    Args:
        weight: [rows, columns], or [out, in, height, width].
        moment: E[x x'] of the inputs [columns, columns] (of a convolution: of its unfolded patches); None: plain SVD.
    """

    def __init__(self, weight: Tensor, moment: Tensor | None = None) -> None:
        needs("tensorly")
        from tensorly.tenalg import svd_interface

        self.shape = weight.shape
        matrix = weight.detach().double().flatten(1)
        self.rows, self.columns = matrix.shape
        self.dense = matrix.numel()
        root, self.inverse = root_of_moment(moment, self.columns)
        with tensorly():
            self.left, self.values, self.right = svd_interface(matrix @ root, method="truncated_svd")

    def candidates(self) -> list[Ranks]:
        return [(rank,) for rank in steps_to(min(self.rank, (self.dense - 1) // (self.rows + self.columns)))]

    @property
    def rank(self) -> int:
        """The layer's own: no more can be kept."""
        return min(self.rows, self.columns)

    def parts(self, ranks: Ranks) -> list[int]:
        return [ranks[0] * self.columns, ranks[0] * self.rows]

    def error(self, ranks: Ranks) -> float:
        """The dropped squared singular values as a share of all of them."""
        squares = self.values.square()
        total = float(squares.sum())
        return float(squares[ranks[0] :].sum()) / total if total else 0.0

    def factors(self, ranks: Ranks) -> list[Tensor]:
        (rank,) = ranks
        check_rank(rank, self.rank)
        roots = self.values[:rank].sqrt()
        v = (roots[:, None] * self.right[:rank]) @ self.inverse
        u = self.left[:, :rank] * roots
        ones = (1,) * (len(self.shape) - 2)
        return [v.float().reshape(rank, *self.shape[1:]), u.float().reshape(self.rows, rank, *ones)]
