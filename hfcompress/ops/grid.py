"""The uniform grid of integers with a scale for each group of a row: what every 4-bit algorithm rounds to.

w ~ (code - zero) * scale, with code an integer of `bits` bits; scale and zero belong to `group_size` neighbours in a
row. Symmetric: zero is the middle code, and since one side has a code more than the other the scale has a sign, as in
llama.cpp's Q4_0 and onnxruntime's MatMulNBits: the end of larger magnitude is code 0 exactly, and negative where that
end is positive is the scale. It is a float16, and rounding is to what that float16 stands for.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the grid itself is an option of stages, which are read without torch
    from torch import Tensor

BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128, 256, 0)
SMALLEST_SCALE = 2.0**-24  # float16's smallest magnitude: a group of zeros gets it, and stays zero


@dataclass(frozen=True)
class Grid:
    """Bits a weight, columns that share a scale (0: the whole row), and whether zero is the middle code."""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The code of zero on a symmetric grid."""
        return 1 << (self.bits - 1)

    def groups(self, columns: int) -> int:
        """Groups in a row; the group size must divide the columns (see `fitting`)."""
        return 1 if self.group_size == 0 else columns // self.group_size

    def fitting(self, columns: int) -> "Grid":
        """This grid, or with whole rows where the group size does not divide the columns."""
        if self.group_size == 0 or columns % self.group_size == 0:
            return self
        return Grid(self.bits, 0, self.symmetric)

    def bits_per_weight(self, columns: int) -> float:
        """Bits a weight with its float16 scale and, on an asymmetric grid, its zero."""
        return self.bits + (16 + (0 if self.symmetric else self.bits)) * self.groups(columns) / columns


@dataclass(frozen=True)
class Quantized:
    """A matrix on its grid.

    codes: uint8 [rows, columns]; scales: float16 [rows, groups]; zeros: uint8 [rows, groups].
    """

    codes: "Tensor"
    scales: "Tensor"
    zeros: "Tensor"
    grid: Grid

    def dequantize(self) -> "Tensor":
        """float32 [rows, columns]."""
        rows, columns = self.codes.shape
        steps = self.codes.view(rows, self.scales.shape[1], -1).float() - self.zeros.float().unsqueeze(2)
        return (steps * self.scales.float().unsqueeze(2)).view(rows, columns)


def grouped(weight: "Tensor", grid: Grid) -> "Tensor":
    """[rows, columns] -> [rows, groups, group size]."""
    return weight.view(weight.shape[0], grid.groups(weight.shape[1]), -1)


def scales_and_zeros(weight: "Tensor", grid: Grid) -> "tuple[Tensor, Tensor]":
    """The grid that just covers every group: from its larger end (symmetric), or minimum to maximum with zero.

    Args:
        weight: float32 [rows, columns].

    Returns: scales float16 [rows, groups], negative for a symmetric group whose larger end is positive; zeros uint8
    [rows, groups].
    """
    import torch

    parts = grouped(weight, grid)
    if grid.symmetric:
        scales = representable(larger_end(parts) / -grid.middle)
        return scales, torch.full_like(scales, grid.middle, dtype=torch.uint8)
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    scales = representable((high - low) / (grid.levels - 1))
    zeros = (-low / scales.float()).round().clamp(0, grid.levels - 1).to(torch.uint8)
    return scales, zeros


def larger_end(parts: "Tensor") -> "Tensor":
    """The weight of largest magnitude of each group, with its sign: [rows, groups, group size] -> [rows, groups]."""
    import torch

    low, high = parts.amin(2), parts.amax(2)
    return torch.where(high > -low, high, low)


def representable(scales: "Tensor") -> "Tensor":
    """As finite float16 of the same sign that are not 0."""
    import torch

    size = scales.abs().clamp_(SMALLEST_SCALE, torch.finfo(torch.float16).max)
    return size.copysign_(scales).to(torch.float16)


def encode(weight: "Tensor", scales: "Tensor", zeros: "Tensor", grid: Grid) -> Quantized:
    """The nearest code of every weight, float32 [rows, columns]."""
    import torch

    steps = grouped(weight, grid) / scales.float().unsqueeze(2) + zeros.float().unsqueeze(2)
    codes = steps.round_().clamp_(0, grid.levels - 1).to(torch.uint8).view(weight.shape)
    return Quantized(codes, scales, zeros, grid)
