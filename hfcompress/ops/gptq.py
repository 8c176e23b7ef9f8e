"""GPTQ: round one column after the other, and let the columns that follow make up for its error.

Frantar et al. 2022, in the form without an inverse (Chee et al. 2023, QuIP, section 3.2 and theorem 6: the same
codes): with H = R D R', R unit triangular, a column is rounded at w_k + sum_j (w_j - q_j) R[j, k], j rounded before.
"""

import torch
from torch import Tensor

from hfcompress.ops.awq import clip_search
from hfcompress.ops.grid import Grid, Quantized, scales_and_zeros


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    activation_order: bool = True,
    damping: float = 0.01,
    block: int = 128,
) -> Quantized:
    """Codes that minimise the error of the layer's outputs, column by column.

    The scales are fixed beforehand (static groups), so the codes keep the order of the columns whatever the order of
    rounding. A column whose input was always zero costs nothing and is rounded to nearest.

    Args:
        weight: [rows, columns]; hessian: float32 [columns, columns], the second moment of the layer's inputs.
        activation_order: round the columns with the largest inputs first, while all others can still make up.
        damping: share of the mean diagonal that is added to the diagonal; ten times as much until H can be factored.
        block: columns that are rounded between two matrix products.

    Raises:
        ValueError: weight or hessian holds NaN or Inf.
    """
    if not (weight.sum().isfinite() and hessian.sum().isfinite()):  # the sum: no mask as large as the matrix
        raise ValueError("GPTQ needs finite weights and a finite Hessian, and got NaN or Inf")
    weight = weight.detach().float()
    columns, diagonal = weight.shape[1], hessian.diagonal()
    # At 8 bits nothing is gained by clipping (measured), and a clipped weight's error is one the others must make up.
    scales, zeros = clip_search(weight, diagonal, grid) if grid.bits < 8 else scales_and_zeros(weight, grid)
    # Row k of what follows is column order[k] of the weight; the last row is rounded first.
    order = diagonal.argsort(stable=True) if activation_order else torch.arange(columns - 1, -1, -1)
    feedback = unit_factor(hessian, order, damping)
    errors = weight.T[order]  # becomes w - q, from the last row up
    codes = torch.empty(errors.shape, dtype=torch.uint8)
    scale_of, zero_of = scales.T.float(), zeros.T.float()  # [groups, rows]
    places = order.tolist()
    for end in range(columns, 0, -block):
        start = max(end - block, 0)
        targets = torch.addmm(errors[start:end], feedback[end:, start:end].T, errors[end:])
        for k in range(end - 1, start - 1, -1):
            target = targets[k - start].addmv_(errors[k + 1 : end].T, feedback[k + 1 : end, k])
            group = places[k] * scale_of.shape[0] // columns
            scale, zero = scale_of[group], zero_of[group]
            code = target.div_(scale).add_(zero).round_().clamp_(0, grid.levels - 1)
            codes[places[k]] = code
            errors[k] -= code.sub_(zero).mul_(scale)
    return Quantized(codes.T.contiguous(), scales, zeros, grid)


def unit_factor(hessian: Tensor, order: Tensor, damping: float) -> Tensor:
    """The unit lower triangular R with H[order, order] + damping = R D R', float32 [columns, columns]."""
    mean = float(hessian.diagonal().mean())
    unit = mean if mean > 0 else 1.0  # a layer that reads only zeros
    failed = torch.empty((), dtype=torch.int32)
    while True:
        matrix = hessian[order.unsqueeze(1), order].T  # symmetric; stored by columns it is factored where it lies
        matrix.diagonal().add_(damping * unit)
        factor, _ = torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
        if not failed:
            return factor.div_(factor.diagonal().clone())
        damping = max(10 * damping, 1e-4)
