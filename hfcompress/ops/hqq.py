"""HQQ: a grid for each group, found from the weights alone, that a few large weights do not set.

Badri and Shaji 2023 (half-quadratic quantization): an outlier part E is split off the error by lp shrinkage, p < 1,
and the grid is fitted to the rest W - E in least squares; in turns. Theirs is a zero-point in float. Ours is an
integer, so it is rounded, and the scale is fitted as well; on a symmetric grid it is the scale alone. Of all grids
visited each group keeps the one with the least squared error: by |w - q|^p large weights would be given up, and at 4
bits the layer's outputs would be further off than with plain rounding (measured).
"""

import torch
from torch import Tensor

from hfcompress.ops.grid import Grid, Quantized, encode, grouped, representable, scales_and_zeros
from hfcompress.ops.rtn import CHUNK_ROWS, rounding_errors

NORM = 0.7  # p
BETA, GROWTH = 1.0, 1.01  # weight of the penalty on the rest, errors counted in grid steps; its growth with each turn
SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # starts, as shares of the range: a turn moves the scale a little only


def hqq(weight: Tensor, grid: Grid, iterations: int = 20) -> Quantized:
    """Codes on the grids that half-quadratic turns find.

    Args:
        weight: [rows, columns]; iterations: turns of the half-quadratic solver.
    """
    chunks = [quantize_rows(rows.detach().float(), grid, iterations) for rows in weight.split(CHUNK_ROWS)]
    codes, scales, zeros = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return Quantized(codes, scales, zeros, grid)


def quantize_rows(weight: Tensor, grid: Grid, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """`hqq` of a chunk of rows: codes, scales, zeros."""
    scales, zeros = scales_and_zeros(weight, grid)
    least, widest = group_loss(weight, scales, zeros, grid), scales
    for shrink in SHRINKS[1:]:
        found = representable(widest.float() * shrink), zeros
        scales, zeros, least = keep_better(weight, found, (scales, zeros), least, grid)
    current, beta = (scales, zeros), BETA
    for _ in range(iterations):
        current = fitted(weight, *current, beta, grid)
        scales, zeros, least = keep_better(weight, current, (scales, zeros), least, grid)
        beta *= GROWTH
    quantized = encode(weight, scales, zeros, grid)
    return quantized.codes, quantized.scales, quantized.zeros


def fitted(weight: Tensor, scales: Tensor, zeros: Tensor, beta: float, grid: Grid) -> tuple[Tensor, Tensor]:
    """One turn: split the outliers off, then fit zero (asymmetric) and scale to what is left."""
    parts, scale = grouped(weight, grid), scales.float().unsqueeze(2)
    zero = zeros.float().unsqueeze(2)
    codes = (parts / scale + zero).round_().clamp_(0, grid.levels - 1)
    residual = parts / scale - (codes - zero)
    size = residual.abs()
    outliers = residual.sign() * (size - size.clamp(min=1e-6) ** (NORM - 1) / beta).clamp(min=0)  # their equation 5
    kept = parts - outliers * scale
    if not grid.symmetric:
        zeros = (codes - kept / scale).mean(2).round().clamp(0, grid.levels - 1).to(torch.uint8)  # their equation 8
    steps = codes - zeros.float().unsqueeze(2)
    return representable((steps * kept).sum(2) / steps.square().sum(2).clamp(min=1)), zeros


def keep_better(
    weight: Tensor, found: tuple[Tensor, Tensor], best: tuple[Tensor, Tensor], least: Tensor, grid: Grid
) -> tuple[Tensor, Tensor, Tensor]:
    """Of two grids the better one for each group: scales, zeros, loss, all [rows, groups]."""
    loss = group_loss(weight, *found, grid)
    better = loss < least
    scales, zeros = (torch.where(better, new, old) for new, old in zip(found, best, strict=True))
    return scales, zeros, torch.where(better, loss, least)


def group_loss(weight: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    """Squared error of each group [rows, groups]."""
    return rounding_errors(weight, scales, zeros, grid).square_().sum(2)
