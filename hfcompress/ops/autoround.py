"""AutoRound: learn by signed gradient descent which way to round, and how much of each group's range to keep.

Cheng et al. 2023 (SignRound), section 3: Q = s (clip(round(W / s + V) + z) - z), V from -1/2 to 1/2, with a group's
maximum shrunk by alpha and its minimum by beta. The loss is the error of the layer's outputs, tr((W - Q) H (W - Q)'),
whose terms are one a row: each row keeps its own best step. Gradients are written out (they pass straight through
round), so that this runs under inference mode, where autograd does not.
"""

import torch
from torch import Tensor

from hfcompress.ops.grid import Grid, Quantized, grouped, larger_end, representable
from hfcompress.ops.rtn import CHUNK_ROWS

SPREAD = 0.01  # of the offsets at the start


def autoround(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    steps: int = 200,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Quantized:
    """Codes that minimise the error of the layer's outputs, by `steps` steps of signed gradient descent.

    Args:
        weight: [rows, columns]; hessian: float32 [columns, columns], the second moment of the layer's inputs.
        learning_rate: of the first step, then linearly down to 0; 1 / steps by default (section 3.2).
        seed: of the small offsets that V starts from, without which like columns would be turned together.
    """
    rate = 1 / max(steps, 1) if learning_rate is None else learning_rate
    start = (torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(seed)) - 0.5).mul_(2 * SPREAD)
    chunks = [
        round_rows(rows.detach().float(), hessian, grid, start, steps, rate) for rows in weight.split(CHUNK_ROWS)
    ]
    codes, scales, zeros = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return Quantized(codes, scales, zeros, grid)


def round_rows(
    weight: Tensor, hessian: Tensor, grid: Grid, start: Tensor, steps: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of each row's best step, for a chunk of rows; `start` [columns] is where V starts."""
    parts = grouped(weight, grid)
    low, high = ends(parts, grid)
    offsets = grouped(start.repeat(len(weight), 1), grid)
    alpha, beta = torch.ones_like(high), torch.ones_like(low)
    least = torch.full((len(weight),), float("inf"))
    best = [torch.empty(weight.shape), torch.empty(high.shape, dtype=torch.float16), torch.empty_like(low)]
    for step in range(steps + 1):
        scales, zeros = shrunk(low * beta, high * alpha, grid)
        scale, zero = scales.float().unsqueeze(2), zeros.unsqueeze(2)
        wanted = (parts / scale + offsets).round_().add_(zero)
        codes = wanted.clamp(0, grid.levels - 1)
        inside = wanted == codes
        error = ((codes - zero) * scale - parts).view(weight.shape)
        slope = error @ hessian  # dL/dQ, but for a factor
        loss = (slope * error).sum(1)
        better = loss < least
        least = torch.where(better, loss, least)
        for kept, found in zip(best, (codes.view(weight.shape), scales, zeros), strict=True):
            kept[better] = found[better]
        slope = grouped(slope, grid)
        # dQ/ds = (code - zero) - w / s, or code - zero where clipped; dQ/dz = -s where clipped, and 0 elsewhere.
        by_scale = (slope * (codes - zero - inside * parts / scale)).sum(2)
        clipped = (slope * ~inside).sum(2)
        by_alpha, by_beta = range_slopes(by_scale, clipped, zeros, low, high, grid)
        size = rate * (1 - step / max(steps, 1))
        offsets.sub_(slope.mul_(inside).mul_(scale.sign()).sign_(), alpha=size).clamp_(-0.5, 0.5)
        alpha.sub_(by_alpha.sign(), alpha=size).clamp_(0.5, 1)
        beta.sub_(by_beta.sign(), alpha=size).clamp_(0.5, 1)
    return best[0].to(torch.uint8), best[1], best[2].to(torch.uint8)


def ends(parts: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each group, zero included; on a symmetric grid twice the end of larger magnitude."""
    if grid.symmetric:
        end = larger_end(parts)
        return end, end
    return parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)


def shrunk(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scales (float16) and zeros (whole floats) of groups with these ends, as `grid.scales_and_zeros` has them."""
    if grid.symmetric:
        return representable(high / -grid.middle), torch.full_like(low, grid.middle)
    scales = representable((high - low) / (grid.levels - 1))
    return scales, (-low / scales.float()).round().clamp(0, grid.levels - 1)


def range_slopes(
    by_scale: Tensor, clipped: Tensor, zeros: Tensor, low: Tensor, high: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """dL/dalpha and dL/dbeta from dL/ds and the slopes that are clipped, all [rows, groups].

    s = (high alpha - low beta) / (levels - 1) and z = -low beta / s, so dz/ds = -z / s and dL/dz = -s * clipped.
    """
    if grid.symmetric:  # s = -high alpha / middle, and only alpha counts
        by_alpha = by_scale * -high
        return by_alpha, by_alpha
    by_range = (by_scale + zeros * clipped) / (grid.levels - 1)
    return high * by_range, -low * (by_range - clipped)
