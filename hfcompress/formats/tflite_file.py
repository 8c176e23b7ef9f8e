"""What a .tflite file holds: its tensors with their types, read from the flatbuffer without LiteRT."""

import math
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError
from hfcompress.formats.format import Named

# TensorType of tflite's schema: name and bits.
TYPES = {
    0: ("float32", 32), 1: ("float16", 16), 2: ("int32", 32), 3: ("uint8", 8), 4: ("int64", 64), 6: ("bool", 8),
    7: ("int16", 16), 9: ("int8", 8), 10: ("float64", 64), 17: ("int4", 4),
}  # fmt: skip
# Fields of the schema's tables, by their numbers there.
MODEL_SUBGRAPHS, MODEL_BUFFERS, SUBGRAPH_TENSORS, BUFFER_DATA = 2, 4, 0, 0
TENSOR_SHAPE, TENSOR_TYPE, TENSOR_BUFFER, TENSOR_NAME, TENSOR_QUANTIZATION, QUANTIZATION_SCALE = 0, 1, 2, 3, 4, 2


def stored_tensors(file: Path) -> list[Named]:
    """Return name and contents of the constants of a .tflite, those of several names once.

    A weight is a float tensor or one that has a scale; shapes and axes are not.

    Raises:
        UserError: the file is damaged or cut short.
    """
    import struct

    import flatbuffers

    content = file.read_bytes()
    try:
        if content[4:8] != b"TFL3":
            raise ValueError("it does not begin as a .tflite")
        model = flatbuffers.table.Table(content, struct.unpack_from("<I", content)[0])
        buffers = tables(model, MODEL_BUFFERS)
        found: dict[int, Named] = {}
        for graph in tables(model, MODEL_SUBGRAPHS):
            for tensor in tables(graph, SUBGRAPH_TENSORS):
                number = scalar(tensor, TENSOR_BUFFER, "Uint32")
                if not length(buffers[number], BUFFER_DATA):
                    continue  # computed when it runs
                shape = numbers(tensor, TENSOR_SHAPE)
                dtype, bits = TYPES[scalar(tensor, TENSOR_TYPE, "Int8")]
                scaled = any(length(each, QUANTIZATION_SCALE) for each in table(tensor, TENSOR_QUANTIZATION))
                is_weight = bool(shape) and (dtype.startswith("float") or scaled)
                name = tensor.String(place(tensor, TENSOR_NAME) + tensor.Pos).decode(errors="replace")
                found.setdefault(number, (name, (math.prod(shape), dtype, bits, is_weight)))
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise UserError(f"{file} is damaged or cut short ({error}); make the model again") from None
    return list(found.values())


def place(table: Any, field: int) -> int:
    """Return where a field lies, counted from its table; 0 of one that is not there."""
    return int(table.Offset(4 + 2 * field))


def scalar(table: Any, field: int, kind: str) -> int:
    from flatbuffers import number_types

    at = place(table, field)
    return int(table.Get(getattr(number_types, f"{kind}Flags"), at + table.Pos)) if at else 0


def length(table: Any, field: int) -> int:
    """Return the length of a vector; 0 of one that is not there."""
    at = place(table, field)
    return int(table.VectorLen(at)) if at else 0


def numbers(table: Any, field: int) -> list[int]:
    from flatbuffers import number_types

    start = table.Vector(place(table, field)) if place(table, field) else 0
    return [int(table.Get(number_types.Int32Flags, start + 4 * i)) for i in range(length(table, field))]


def table(parent: Any, field: int) -> list[Any]:
    """Return the table in a field, in a list; an empty one where it is not there."""
    import flatbuffers

    at = place(parent, field)
    return [flatbuffers.table.Table(parent.Bytes, parent.Indirect(at + parent.Pos))] if at else []


def tables(parent: Any, field: int) -> list[Any]:
    """Return the tables of a vector."""
    import flatbuffers

    if not (count := length(parent, field)):
        return []
    start = parent.Vector(place(parent, field))
    return [flatbuffers.table.Table(parent.Bytes, parent.Indirect(start + 4 * i)) for i in range(count)]
