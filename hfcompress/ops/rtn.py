"""Round to nearest: every weight to the closest code of the grid that just covers its group."""

import torch
from torch import Tensor

from hfcompress.ops.grid import Grid, Quantized, grouped, scales_and_zeros

CHUNK_ROWS = 128  # rows at a time: what they need stays in the processor's cache, where every pass is cheap


def rtn(weight: Tensor, grid: Grid) -> Quantized:
    """The nearest code of every weight.

    Args:
        weight: float32, bfloat16 or float16 [rows, columns]; it is made float32 a chunk of rows at a time.
    """
    rows, columns = weight.shape
    groups = grid.groups(columns)
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scales = torch.empty(rows, groups, dtype=torch.float16)
    zeros = torch.empty(rows, groups, dtype=torch.uint8)
    buffer = torch.empty(min(rows, CHUNK_ROWS), columns)
    for start in range(0, rows, CHUNK_ROWS):
        chunk = slice(start, min(start + CHUNK_ROWS, rows))
        steps = buffer[: chunk.stop - start].copy_(weight[chunk])
        scales[chunk], zeros[chunk] = scales_and_zeros(steps, grid)
        codes[chunk] = nearest_codes_(steps, scales[chunk], zeros[chunk], grid)
    return Quantized(codes, scales, zeros, grid)


def nearest_codes_(weight: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    """round(w / scale) + zero, as `grid.encode` gives it, but overwriting `weight` [rows, columns]. Returns int16."""
    parts = grouped(weight, grid)
    parts.div_(scales.float().unsqueeze(2)).add_(zeros.float().unsqueeze(2))
    # torch makes int16 of floats, and uint8 of int16, with vector instructions; uint8 of floats it makes one by one.
    return weight.round_().clamp_(0, grid.levels - 1).to(torch.int16)


def rounding_errors(weight: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    """q - w on a grid with these scales and zeros [rows, groups]: float32 [rows, groups, group size]."""
    parts, scale, zero = grouped(weight, grid), scales.float().unsqueeze(2), zeros.float().unsqueeze(2)
    steps = (parts / scale).add_(zero).round_().clamp_(0, grid.levels - 1)
    return steps.sub_(zero).mul_(scale).sub_(parts)
