"""AWQ: scale the columns that read large inputs up before rounding, so that their weights lose less.

Lin et al. 2023. W diag(s) is rounded, and what writes the inputs is divided by s: without rounding nothing changes.
"""

import torch
from torch import Tensor

from hfcompress.ops.grid import Grid, grouped, representable, scales_and_zeros
from hfcompress.ops.hessian import row_errors
from hfcompress.ops.rtn import CHUNK_ROWS, rounding_errors, rtn

STEPS = 20
SAMPLED_ROWS = 1024  # the error of this many rows, evenly spread, ranks the scales as that of all of them does
SMALLEST_INPUT = 1e-3  # share of the mean: a column that reads nothing must not set the range of the scales
SMALLEST_WEIGHT = 1e-3  # of the largest: nor must a column of zeros
SHRINKS = tuple(1 - 0.05 * step for step in range(13))  # of a group's range: all of it to 0.4


def awq_scales(weights: list[Tensor], hessian: Tensor, mean_abs: Tensor, grid: Grid) -> Tensor:
    """The column scales [columns] under which rounding changes the outputs least; the caller folds them in.

    Tried are equation 5's s_X^alpha and, in turn with it, AutoAWQ's s_X^alpha / s_W^(1 - alpha) (`duo_scaling`), where
    s_W is a column's mean |w| as a share of its group's largest: at 4 bits that is better by a twentieth, at 2 and 3
    neither better nor worse (docs/measurements/weight_only.md).

    Args:
        weights: [rows, columns] each, of the layers that read the same inputs.
        hessian: float32 [columns, columns], the inputs' second moment; mean_abs [columns]: their mean |x|.
    """
    sample = sampled_rows(weights)
    inputs = mean_abs.clamp(min=max(float(mean_abs.mean()) * SMALLEST_INPUT, 1e-10))
    sizes = column_sizes(sample, grid)
    best, least = torch.ones_like(inputs), float("inf")
    for step in range(STEPS):
        alpha = step / STEPS
        scales = inputs**alpha
        if step % 2:
            scales /= sizes ** (1 - alpha)
        scales /= (scales.max() * scales.min()).sqrt()
        error = rtn(sample * scales, grid).dequantize().div_(scales).sub_(sample)  # equation 4
        loss = float(row_errors(error, hessian).sum())
        if loss < least:
            best, least = scales, loss
    return best


def column_sizes(weight: Tensor, grid: Grid) -> Tensor:
    """Mean |w| of each column [columns] of a weight [rows, columns], where the largest of every group counts 1."""
    size = grouped(weight, grid).abs()
    return (size / size.amax(2, keepdim=True).clamp(min=1e-10)).view(weight.shape).mean(0).clamp(min=SMALLEST_WEIGHT)


def sampled_rows(weights: list[Tensor]) -> Tensor:
    """At most SAMPLED_ROWS rows of all weights together, evenly spread, as float32."""
    every = max(1, sum(weight.shape[0] for weight in weights) // SAMPLED_ROWS)
    return torch.cat([weight.detach()[::every].float() for weight in weights])


def clip_search(weight: Tensor, importance: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """For each group the share of its range that rounds best: the largest weights are clipped where that pays.

    AWQ's weight clipping, with the error sum_c importance[c] (w_c - q_c)^2: what the Hessian's diagonal tells of it.

    Args:
        weight: [rows, columns]; importance [columns]: mean square of each input.

    Returns: scales float16 [rows, groups], zeros uint8 [rows, groups].
    """
    chunks = [clip_rows(rows.detach().float(), importance, grid) for rows in weight.split(CHUNK_ROWS)]
    return torch.cat([scales for scales, _ in chunks]), torch.cat([zeros for _, zeros in chunks])


def clip_rows(weight: Tensor, importance: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """`clip_search` of a chunk of rows."""
    widest, zeros = scales_and_zeros(weight, grid)
    weights = grouped(importance.unsqueeze(0), grid)
    best, least = widest, torch.full(widest.shape, float("inf"))
    for shrink in SHRINKS:
        scales = representable(widest.float() * shrink)  # the zero stays where it is when both ends shrink alike
        loss = rounding_errors(weight, scales, zeros, grid).square_().mul_(weights).sum(2)
        better = loss < least
        best, least = torch.where(better, scales, best), torch.where(better, loss, least)
    return best, zeros
