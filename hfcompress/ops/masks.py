"""Masks on heads, neurons and residual dimensions that compute what the smaller model will compute."""

import torch
from torch import Tensor, nn


class MaskedLayerNorm(nn.Module):
    """LayerNorm over the kept residual dimensions alone; the others come out as 0.

    With a mask of ones it is `norm`; with zeros in it, its kept outputs are those of a LayerNorm that was cut to them.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm
        self.mask: Tensor | None = None  # [size]; set for each forward pass

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return self.norm(x)
        x = x.float()  # a variance in bf16 would be off by percents
        count = torch.count_nonzero(self.mask)
        mean = (x * self.mask).sum(dim=-1, keepdim=True) / count
        centred = (x - mean) * self.mask
        variance = centred.square().sum(dim=-1, keepdim=True) / count
        normalised = centred * (variance + self.norm.eps).rsqrt()
        return normalised * self.norm.weight + self.norm.bias * self.mask
