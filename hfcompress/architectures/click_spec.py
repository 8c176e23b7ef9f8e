"""A click model's shape: its config.json, and the bytes that follow from it; nothing here needs torch."""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any, ClassVar

from hfcompress.architectures.click_inputs import LABELS
from hfcompress.ops.table_sizes import parts, table_bytes

GRAPH_BYTES = 22_000  # nodes, names and small tensors of an exported model
TENSOR_HEADER = 110
# Peak memory of a process that serves the graph, fitted to measured ones (within 3% of 0.1 to 20 MB, all kinds).
RUNTIME_MB = 62.0  # onnxruntime and numpy, imported, with a session
LOADED_COPIES = 1.5  # of the file: while it is parsed, beside the tensors made from it


def tower_layers(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each linear layer of click_model.Towers, by its name there, in order of use."""
    columns, dim = len(config["columns"]), config["dim"]
    widths = (columns * (columns + 1) // 2 + (columns + 1) * dim, *config["top"], len(LABELS))
    top = {f"top.{2 * i}": (wide, narrow) for i, (narrow, wide) in enumerate(pairwise(widths))}
    return {"bottom.0": (config["bottom"], config["features"]), "bottom.2": (dim, config["bottom"])} | top


@dataclass(frozen=True)
class ClickShape:
    """What `plan` knows of a click model."""

    described_as: ClassVar[str] = "a click model"
    config: dict[str, Any]
    format: str = "transformers"

    def with_(self, **changes: Any) -> "ClickShape":
        return replace(self, **changes)

    def predicted(self, milliseconds: float | None = None, reference_ms: float | None = None) -> dict[str, Any]:
        """parameters, disk_mb and the rest as `plan` names them; memory of a graph alone.

        Args:
            milliseconds: what a slate takes (see click_latency.py); reference_ms: what the reference's does.
        """
        towers = sum(outputs * (inputs + 1) for outputs, inputs in tower_layers(self.config).values())
        tables = self.table_parameters()
        if self.format == "onnx":
            size = self.table_bytes() + (1 if self.config.get("int8_towers") else 4) * towers + GRAPH_BYTES
        else:
            size = 4 * (sum(tables) + towers) + TENSOR_HEADER * (len(tables) + 12)
        return {
            "parameters": sum(tables) + towers,
            "disk_mb": size / 1e6,
            "ram_mb": RUNTIME_MB + LOADED_COPIES * size / 1e6 if self.format == "onnx" else None,
            "latency_ms": milliseconds,
            "latency_ratio": milliseconds / reference_ms if milliseconds and reference_ms else None,
        }

    def table_parameters(self) -> list[int]:
        """Of each tensor of each table."""
        every = [parts(*table).values() for table in self.tables()]
        return [prod(part.shape) for found in every for part in found if part.kind != "place"]

    def table_bytes(self) -> int:
        """What all tables take as they are delivered."""
        return sum(table_bytes(*table) for table in self.tables())

    def tables(self) -> list[tuple[dict[str, Any], int, int]]:
        """Description, rows (the unknown one with them) and dim of each."""
        columns: dict[str, int] = self.config["columns"]
        return [(self.config["tables"][name], rows + 1, self.config["dim"]) for name, rows in columns.items()]
