"""Columns taken from a matrix, and what they did given to the others: the least squares behind reconstruction."""

import torch
from torch import Tensor


class Elimination:
    """Blocks of a matrix's columns taken away one by one; those that stay are fitted again after each.

    Without block B the squared change of the outputs grows by tr(W_B (H^-1_BB)^-1 W_B'), and what is left follows in
    closed form; H = E[x x'] is that of all columns.
    Sources: Hassibi and Stork 1993, "Second order derivatives for network pruning", equation 5; of blocks: Kurtic et
    al. 2023, "ZipLM", section 3.
    """

    def __init__(self, weight: Tensor, moment: Tensor, blocks: Tensor, damping: float = 1e-3) -> None:
        """weight: [outputs, columns]; moment: [columns, columns]; blocks: [units, columns a unit]."""
        self.weight, h, self.blocks = weight.double(), moment.double().clone(), blocks
        self.output = float(torch.einsum("oc,oc->", self.weight @ h, self.weight))
        h.diagonal().add_(damping * h.diagonal().mean().clamp(min=1e-30))
        self.inverse = torch.linalg.inv(h)

    def costs(self) -> Tensor:
        """E|change of the outputs|^2 that each unit's absence adds now, as a share of E|outputs|^2: [units]."""
        of_blocks = self.weight[:, self.blocks].transpose(0, 1)  # [units, outputs, columns a unit]
        inner = self.inverse[self.blocks[:, :, None], self.blocks[:, None, :]]
        solved = torch.linalg.solve(inner, of_blocks, left=False)
        return (solved * of_blocks).sum(dim=(1, 2)) / max(self.output, 1e-30)

    def remove(self, unit: int) -> None:
        """Take a unit away: its columns are 0 from now on, the others do what they can in its place."""
        block = self.blocks[unit]
        rows = self.inverse[block]
        step = torch.linalg.solve(rows[:, block], rows)
        self.weight = self.weight - self.weight[:, block] @ step
        self.weight[:, block] = 0
        self.inverse = self.inverse - rows.T @ step
        self.inverse[block] = 0
        self.inverse[:, block] = 0
        self.inverse[block, block] = 1  # no longer tied to the others; its weights are 0, so that it costs nothing


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
