"""What a click model is asked and how its folder describes it; nothing here needs torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.folders import guard

MODEL_TYPE = "clicks"
LABELS = ("click", "conversion")
COLUMNS = ("user", "item", "category", "context")
DENSE = 3  # price, and the hour of the day as a point on a circle


def inputs_of(log: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What a model is asked: ids [rows] int64 by column, and `dense` [rows, 3] float32.

    Args:
        log: an object with the columns and `price` and `time` (in days), each [rows].
    """
    angle = 2 * np.pi * (np.asarray(log.time, dtype=np.float32) % 1)
    dense = np.stack([np.asarray(log.price, dtype=np.float32), np.sin(angle), np.cos(angle)], axis=1)
    ids = {name: np.asarray(getattr(log, name), dtype=np.int64) for name in COLUMNS}
    return ids | {"dense": dense.astype(np.float32)}


def new_config(rows: dict[str, int], dim: int, bottom: int, top: tuple[int, ...], unknown: str) -> dict[str, Any]:
    """config.json of a model with whole tables.

    Args:
        rows: ids by column; dim: numbers an id; bottom, top: widths of the towers; unknown: see click_model.KnownIds.
    """
    return {
        "columns": rows,
        "dim": dim,
        "features": DENSE,
        "bottom": bottom,
        "top": list(top),
        "unknown": unknown,
        "tables": {name: {"kind": "rows", "bits": 32} for name in rows},
        "labels": list(LABELS),
    }


def write_config(config: dict[str, Any], out: Path) -> None:
    text = json.dumps({"model_type": MODEL_TYPE, "architectures": ["ClickModel"]} | config, indent=1)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a click model.

    Raises:
        UserError: the folder holds none.
    """
    config = guard.read_config(folder)
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(f"{folder} is not a click model")
    return config
