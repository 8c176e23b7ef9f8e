"""Integers of 2, 3, 4 or 8 bits, packed densely: code i of a row lies at bit i * bits, the lowest bit first."""

import torch
from torch import Tensor


def packed_bytes(columns: int, bits: int) -> int:
    """Bytes that a row takes."""
    return (columns * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [rows, columns] -> uint8 [rows, ceil(columns * bits / 8)]."""
    rows, columns = codes.shape
    if bits == 8:
        return codes.contiguous()
    period = 8 if bits == 3 else 8 // bits  # codes that fill whole bytes together
    if columns % period:
        codes = torch.nn.functional.pad(codes, (0, -columns % period))
    codes = codes.view(rows, -1, period)
    if bits == 3:
        wide = sum((codes[..., i].to(torch.int32) << (3 * i)) for i in range(8))
        parts = torch.stack([(wide >> shift) & 255 for shift in (0, 8, 16)], 2).to(torch.uint8)
        return parts.view(rows, -1)[:, : packed_bytes(columns, bits)].contiguous()
    packed = codes[..., 0].clone()
    for i in range(1, period):
        packed |= codes[..., i] << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """uint8 [rows, ceil(columns * bits / 8)] -> uint8 [rows, columns]."""
    rows = packed.shape[0]
    if bits == 8:
        return packed
    if bits == 3:
        padded = torch.nn.functional.pad(packed, (0, -packed.shape[1] % 3)).view(rows, -1, 3).to(torch.int32)
        wide = padded[..., 0] | (padded[..., 1] << 8) | (padded[..., 2] << 16)
        codes = torch.stack([(wide >> (3 * i)) & 7 for i in range(8)], 2)
    else:
        codes = torch.stack([(packed >> (bits * i)) & ((1 << bits) - 1) for i in range(8 // bits)], 2)
    return codes.to(torch.uint8).view(rows, -1)[:, :columns].contiguous()
