"""A convolution's weight [out, in, height, width] in Tucker-2 and in CP form (one group), by TensorLy.

Both may be weighted by E[x x'] of the input's channels at a pixel: the weight's input mode is multiplied by the root R
of that moment before, and by R^-1 after. What neighbouring pixels have in common is not in it, so that unlike a linear
layer's the error is that of uncorrelated pixels.
"""

import warnings
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from hfcompress.errors import needs
from hfcompress.ops.low_rank import Ranks, check_rank, root_of_moment, steps_to, tensorly

CP_SHARES = (0.15, 0.3, 0.5, 0.75)  # of the largest rank that does not grow: each is a fit of its own, and slow
SWEEPS, TOLERANCE = 30, 1e-5  # of the alternating least squares


class ConvFactors(ABC):
    """What both forms share: the weight with its input mode whitened, and the error of an approximation of that."""

    def __init__(self, weight: Tensor, moment: Tensor | None = None) -> None:
        self.out, self.inputs, self.height, self.width = weight.shape
        self.dense = weight.numel()
        root, self.inverse = root_of_moment(moment, self.inputs)
        self.whitened = torch.einsum("oihw,ij->ojhw", weight.detach().double(), root)
        self.total = float(self.whitened.square().sum())
        self.found: dict[Ranks, tuple[list[Tensor], float]] = {}

    @abstractmethod
    def fit(self, ranks: Ranks) -> tuple[list[Tensor], float]:
        """Factors of the whitened weight and the squared error that they leave."""

    def fitted(self, ranks: Ranks) -> tuple[list[Tensor], float]:
        if ranks not in self.found:
            self.found[ranks] = self.fit(ranks)
        return self.found[ranks]

    def error(self, ranks: Ranks) -> float:
        return self.fitted(ranks)[1] / self.total if self.total else 0.0


class Tucker2(ConvFactors):
    """Tucker decomposition over the two channel modes (Kim et al. 2016, section 3.1); ranks (in, out).

    Factors: [rank in, in, 1, 1], the core [rank out, rank in, height, width] and [out, rank out, 1, 1].
    """

    def candidates(self) -> list[Ranks]:
        """Both modes at the same share of their energy, for shares at which the input mode's rank changes."""
        by_in = [
            (rank, self.rank_for(self.out_energy, float(self.in_energy[rank - 1]))) for rank in steps_to(self.inputs)
        ]
        return sorted((r for r in by_in if sum(self.parts(r)) < self.dense), key=lambda r: sum(self.parts(r)))

    @cached_property
    def in_energy(self) -> Tensor:
        """Share of the squared weight that the first r directions of the input mode hold, r from 1."""
        return energy(self.whitened.transpose(0, 1).flatten(1))

    @cached_property
    def out_energy(self) -> Tensor:
        return energy(self.whitened.flatten(1))

    def rank_for(self, shares: Tensor, wanted: float) -> int:
        return min(int((shares < wanted - 1e-9).sum()) + 1, len(shares))

    def parts(self, ranks: Ranks) -> list[int]:
        into, out = ranks
        return [into * self.inputs, into * out * self.height * self.width, out * self.out]

    def fit(self, ranks: Ranks) -> tuple[list[Tensor], float]:
        needs("tensorly")
        from tensorly.decomposition import partial_tucker

        check_rank(ranks[0], self.inputs)
        check_rank(ranks[1], self.out)
        with tensorly():
            (core, (of_out, of_in)), _ = partial_tucker(
                self.whitened, rank=[ranks[1], ranks[0]], modes=[0, 1], n_iter_max=SWEEPS, tol=TOLERANCE
            )
        # The factors are orthonormal: what the core does not hold is lost.
        return [of_in, core, of_out], max(0.0, self.total - float(core.square().sum()))

    def factors(self, ranks: Ranks) -> list[Tensor]:
        of_in, core, of_out = self.fitted(ranks)[0]
        into = of_in.T @ self.inverse
        return [into.float()[..., None, None], core.float(), of_out.float()[..., None, None]]


class CP(ConvFactors):
    """CP decomposition by alternating least squares (Lebedev et al. 2015, section 3); ranks (rank,).

    Factors: [rank, in, 1, 1], [rank, 1, height, 1] and [rank, 1, 1, width] (a filter a channel), [out, rank, 1, 1].
    """

    def candidates(self) -> list[Ranks]:
        most = (self.dense - 1) // sum(self.parts((1,)))
        return [(rank,) for rank in sorted({max(1, int(share * most)) for share in CP_SHARES})] if most else []

    def parts(self, ranks: Ranks) -> list[int]:
        return [ranks[0] * size for size in (self.inputs, self.height, self.width, self.out)]

    def fit(self, ranks: Ranks) -> tuple[list[Tensor], float]:
        needs("tensorly")
        import tensorly as tl
        from tensorly.decomposition import parafac

        check_rank(ranks[0], self.dense)
        with tensorly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a rank above a mode's size: the start is filled up at random
            found = parafac(
                self.whitened,
                rank=ranks[0],
                n_iter_max=SWEEPS,
                tol=TOLERANCE,
                init="svd",
                random_state=0,
                l2_reg=1e-9 * self.total,  # components that cancel each other would grow without bound
            )
            error = float((tl.cp_to_tensor(found) - self.whitened).square().sum())
        return balanced(list(found.factors), found.weights), error

    def factors(self, ranks: Ranks) -> list[Tensor]:
        out, into, down, across = self.fitted(ranks)[0]
        (rank,) = ranks
        return [
            (into.T @ self.inverse).float()[..., None, None],
            down.T.float().reshape(rank, 1, self.height, 1),
            across.T.float().reshape(rank, 1, 1, self.width),
            out.float()[..., None, None],
        ]


def energy(matrix: Tensor) -> Tensor:
    """Share of the squared entries of [rows, columns] that its first r left singular directions hold, r from 1."""
    values = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0).clamp(min=0)
    return values.cumsum(0) / values.sum().clamp(min=1e-300)


def balanced(factors: list[Tensor], weights: Tensor) -> list[Tensor]:
    """The same components, each with the same norm in every factor [mode, rank]."""
    norms = [factor.norm(dim=0).clamp(min=1e-30) for factor in factors]
    size = (weights.abs() * torch.stack(norms).prod(dim=0)) ** (1 / len(factors))
    scaled = [factor / norm * size for factor, norm in zip(factors, norms, strict=True)]
    scaled[0] = scaled[0] * weights.sign()
    return scaled
