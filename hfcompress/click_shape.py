"""A click model's shape: its config.json, and the bytes that follow from it."""

from dataclasses import dataclass, replace
from typing import Any

GRAPH_BYTES = 22_000  # nodes, names and small tensors of an exported model
TENSOR_HEADER = 110
# Peak memory of a process that serves the graph, fitted to measured ones (within 3% of 0.1 to 20 MB, all kinds).
RUNTIME_MB = 67.5  # onnxruntime and numpy, imported, with a session
LOADED_COPIES = 1.5  # of the file: while it is parsed, beside the tensors made from it


@dataclass(frozen=True)
class ClickShape:
    """What `plan` knows of a click model."""

    config: dict[str, Any]
    format: str = "transformers"

    def with_(self, **changes: Any) -> "ClickShape":
        return replace(self, **changes)

    def predicted(self, milliseconds: float | None = None, reference_ms: float | None = None) -> dict[str, Any]:
        """parameters, disk_mb and the rest as `plan` names them; memory of a graph alone.

        Args:
            milliseconds: what a slate takes (see click_latency.py); reference_ms: what the reference's does.
        """
        import torch

        from hfcompress.click_model import ClickModel

        with torch.device("meta"):
            network = ClickModel(self.config)
        towers = sum(p.numel() for n, p in network.named_parameters() if n.startswith("towers.") and ".scale" not in n)
        tables = [p.numel() for n, p in network.named_parameters() if n.startswith("tables.")]
        if self.format == "onnx":
            size = network.table_bytes() + (1 if self.config.get("int8_towers") else 4) * towers + GRAPH_BYTES
        else:
            size = 4 * (sum(tables) + towers) + TENSOR_HEADER * (len(tables) + 12)
        return {
            "parameters": sum(tables) + towers,
            "disk_mb": size / 1e6,
            "ram_mb": RUNTIME_MB + LOADED_COPIES * size / 1e6 if self.format == "onnx" else None,
            "latency_ms": milliseconds,
            "latency_ratio": milliseconds / reference_ms if milliseconds and reference_ms else None,
        }
