"""Columns taken from a matrix, and what they did given to the others: the least squares behind reconstruction."""

import torch
from torch import Tensor


def without_columns(weight: Tensor, moment: Tensor, kept: Tensor, damping: float = 1e-3) -> Tensor:
    """W' that reads only the kept columns, at the least change of the outputs: min E|x (W - W')'|^2.

    With H = E[x x'], S the kept columns and R the others, W'_S = W_S + W_R H_RS (H_SS + d I)^-1. The damping d, a
    share of the mean of H's diagonal, holds W'_S near W_S where the inputs say little.
    Source: He, Zhang and Sun 2017, "Channel pruning for accelerating very deep neural networks", section 3.1, the
    second of its two steps.

    Args:
        weight: [outputs, columns]; moment: [columns, columns], the second moment of the inputs.
        kept: numbers of the columns that stay.

    Returns: [outputs, columns] in weight's dtype, 0 in the columns that do not stay.
    """
    stays = torch.zeros(weight.shape[1], dtype=torch.bool)
    stays[kept] = True
    old, h = weight.double(), moment.double()
    inner = h[stays][:, stays]
    inner.diagonal().add_(damping * h.diagonal().mean().clamp(min=1e-30))
    shared = torch.linalg.solve(inner, h[stays][:, ~stays])  # [kept, gone]: each gone input out of the kept ones
    new = torch.zeros_like(old)
    new[:, stays] = old[:, stays] + old[:, ~stays] @ shared.T
    return new.to(weight.dtype)
