"""A torch table (see ops/) as it lies in a file: codes packed, scales beside them."""

from typing import Any

import torch
from torch import Tensor

from hfcompress.formats.onnx_tables import Array, StoredTable
from hfcompress.ops import row_codes
from hfcompress.ops.table_sizes import parts


def stored_table(table: Any) -> StoredTable:
    """The arrays of a table that `make_table` made."""
    description: dict[str, Any] = table.description
    weights = {name.replace("s.", "_"): tensor.detach() for name, tensor in table.state_dict().items()}  # blocks.0
    arrays: dict[str, Array] = {}
    for name, part in parts(description, table.rows, table.dim).items():
        if part.bits < 32:
            arrays |= stored_rows(name, weights[name], part.bits)
        else:
            arrays[name] = (weights[name].half() if part.kind == "half" else weights[name]).numpy()
    hashes = (*table.constants, table.weight_constants) if description["kind"] == "hashed" else ()
    return StoredTable(description, table.rows, table.dim, arrays, hashes)


def stored_rows(name: str, weight: Tensor, bits: int) -> dict[str, Array]:
    """A matrix [rows, dim] in codes: uint8 [rows, dim] (dim / 2 in 4 bits), and NAME_scale float16 [rows, 1]."""
    codes, scales = row_codes.row_codes(weight, bits)
    packed = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    if bits == 4:
        packed = packed[:, 0::2] | (packed[:, 1::2] << 4)
    return {name: packed.numpy(), f"{name}_scale": scales.unsqueeze(1).numpy()}
