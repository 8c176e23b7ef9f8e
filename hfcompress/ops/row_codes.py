"""int8 and int4 rows with a scale a row: symmetric, the scale a float16, rounding to what that float16 stands for.

A looked-up row is code x scale as a float16, as onnxruntime's GatherBlockQuantized gives it: so both agree to the bit.
"""

import torch
from torch import Tensor, nn

SMALLEST = 2.0**-24  # float16's smallest: a row of zeros stays zero


def largest_code(bits: int) -> int:
    """127 or 7: the lowest code is not used, so that both signs reach equally far."""
    return (1 << (bits - 1)) - 1


def row_scales(weight: Tensor, bits: int) -> Tensor:
    """float16 [...]: the largest absolute value of each row [..., dim] becomes the largest code."""
    scales = weight.detach().abs().amax(dim=-1) / largest_code(bits)
    return scales.clamp(SMALLEST, torch.finfo(torch.float16).max).to(torch.float16)


def row_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 codes [rows, dim] and float16 scales [rows]."""
    scales, most = row_scales(weight, bits), largest_code(bits)
    codes = torch.round(weight.detach() / scales.float().unsqueeze(-1)).clamp(-most, most)
    return codes.to(torch.int8), scales


def rounded(weight: Tensor, bits: int) -> Tensor:
    """round(w / s) * s of each row [..., dim]; the gradient passes straight through. 32 bits: as it is."""
    if bits == 32:
        return weight
    codes, scales = row_codes(weight, bits)
    looked_up = (codes.float() * scales.float().unsqueeze(-1)).half().float()
    return weight + (looked_up - weight).detach() if weight.requires_grad else looked_up


class RowTable(nn.Module):
    """A table [rows, dim] whose rows are stored in 32, 8 or 4 bits."""

    sparse = True  # gradients: of the rows that were read alone; an optimizer of whole matrices wants False

    def __init__(self, rows: int, dim: int, bits: int = 32) -> None:
        super().__init__()
        self.rows, self.dim, self.bits = rows, dim, bits
        self.weight = nn.Parameter(torch.empty(rows, dim))

    def forward(self, ids: Tensor) -> Tensor:
        return rounded(nn.functional.embedding(ids, self.weight, sparse=self.sparse), self.bits)

    def start(self, table: Tensor, frequency: Tensor) -> None:
        """Take over a trained table [rows, dim]."""
        with torch.no_grad():
            self.weight.copy_(table)
