"""What a filter is worth: the rankings that structured pruning chooses channels, neurons and heads by.

A weight is [outputs, ...]: a convolution's [out, in / groups, kh, kw] or a Linear's [out, in]; a filter is weight[i].
"""

import torch
from torch import Tensor

from hfcompress.ops import importance


def l1_norm(weight: Tensor) -> Tensor:
    """Sum of |w| over each filter: [outputs]. Source: Li et al. 2017, section 3.1."""
    return importance.l1_norm(weight.flatten(1))


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Sum of (dL/dw * w)^2 over each filter: how far the loss moves, to first order, when its weights become 0.

    Of one batch's gradient; what is ranked by is the mean over batches.
    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", equations 8 and 10.
    """
    return (gradient * weight).square().flatten(1).sum(dim=1)


def geometric_median(weight: Tensor) -> Tensor:
    """Sum of the Euclidean distances of each filter to all filters of its layer: [outputs].

    The filter with the least sum lies nearest to the layer's geometric median: the others can stand in for it.
    Source: He et al. 2019, "Filter pruning via geometric median" (FPGM), equation 4.
    """
    filters = weight.flatten(1)
    distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")  # exact: 0 between twins
    return distances.sum(dim=1)


def random(count: int, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1): the ranking that the others have to beat."""
    return torch.rand(count, generator=generator)
