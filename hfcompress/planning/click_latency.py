"""How long this machine takes for a slate: the click models themselves with fewer rows, random, timed in onnxruntime.

A slate reads a few rows of each table, however many there are: its time is that of the graph's nodes. So what is timed
has the same nodes, widths, threads and session options, and no model of the processor is needed. The models run in
turn, as they will when they are measured: what one leaves of the caches to the next is most of so short a time.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hfcompress.architectures.click_spec import tower_layers
from hfcompress.evaluation.latency import interleaved
from hfcompress.formats.onnx_clicks import write_click_graph
from hfcompress.formats.onnx_tables import StoredTable
from hfcompress.formats.runtimes.sessions import onnx_session
from hfcompress.ops.table_sizes import PRIME, block_sizes, parts

ROWS = 4_096  # ids a column: as many blocks of mixed dimensions as there are of a million
RUNS = 100


def slates_ms(configs: dict[str, dict[str, Any]], slate: int, threads: int) -> dict[str, float]:
    """Median milliseconds of a request of so many rows, by model, for models of these config.json's."""
    random, calls = np.random.default_rng(0), dict[str, Any]()
    for name, config in configs.items():
        small = with_few_rows(config)
        inputs: dict[str, Any] = {n: random.integers(0, rows, slate) for n, rows in small["columns"].items()}
        inputs["dense"] = np.zeros((slate, small["features"]), dtype=np.float32)
        calls[name] = partial(session_of(small, threads).run, ["logits"], inputs)
    return {name: float(np.median(times)) for name, times in interleaved(calls, RUNS).items()}


def with_few_rows(config: dict[str, Any], most: int = ROWS) -> dict[str, Any]:
    """The same kinds, bits, ranks and widths on at most so many ids a column."""
    columns = {name: min(rows, most) for name, rows in config["columns"].items()}
    tables = {name: few_rows(found, columns[name] + 1) for name, found in config["tables"].items()}
    return config | {"columns": columns, "tables": tables}


def few_rows(table: dict[str, Any], rows: int) -> dict[str, Any]:
    """A table's description (see ops/table_sizes.py) for so many rows."""
    if table["kind"] == "mixed":
        sizes = block_sizes(rows, len(table["sizes"]))
        return table | {"sizes": sizes, "dims": table["dims"][: len(sizes)]}
    return {name: min(value, rows) if name in ("buckets", "weights", "divisor") else value
            for name, value in table.items()}  # fmt: skip


def session_of(config: dict[str, Any], threads: int) -> Any:
    """onnxruntime with a model of this config.json, its weights random."""
    with TemporaryDirectory() as scratch:
        return onnx_session(write_random(config, Path(scratch)), threads)


def write_random(config: dict[str, Any], folder: Path) -> Path:
    """model.onnx of a model of this config.json, its weights random."""
    random = np.random.default_rng(0)
    tables = {
        name: random_table(config["tables"][name], rows + 1, config["dim"], random)
        for name, rows in config["columns"].items()
    }
    write_click_graph(config, tables, random_towers(config, random), folder / "model.onnx")
    return folder / "model.onnx"


def random_table(description: dict[str, Any], rows: int, dim: int, random: np.random.Generator) -> StoredTable:
    """A table of this description, its numbers drawn."""
    arrays: dict[str, Any] = {}
    for name, part in parts(description, rows, dim).items():
        if part.kind == "place":
            arrays[name] = np.arange(rows, dtype=np.int32)
        elif part.bits < 32:
            length, width = part.shape
            arrays[name] = random.integers(0, 256, (length, width * part.bits // 8), dtype=np.uint8)
            arrays[f"{name}_scale"] = np.full((length, 1), 1e-3, dtype=np.float16)
        else:
            numbers = random.normal(0, 0.05, part.shape)
            arrays[name] = numbers.astype(np.float16 if part.kind == "half" else np.float32)
    hashes = random.integers(1, PRIME, (description.get("functions", 2) + 1, 2)).tolist()
    return StoredTable(description, rows, dim, arrays, tuple((a, b) for a, b in hashes))


def random_towers(config: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """Weights as `write_click_graph` takes them, drawn."""
    found: dict[str, Any] = {}
    for name, shape in tower_layers(config).items():
        found[f"{name}.bias"] = np.zeros(shape[0], dtype=np.float32)
        if not config.get("int8_towers"):
            found[f"{name}.weight"] = random.normal(0, 0.05, shape).astype(np.float32)
            continue
        found |= {
            f"{name}.weight": random.integers(-127, 128, shape, dtype=np.int8),
            f"{name}.weight_scale": np.full(shape[0], 1e-3, dtype=np.float32),
            f"{name}.input_scale": np.array(1e-2, dtype=np.float32),
            f"{name}.input_zero_point": np.array(128, dtype=np.uint8),
        }
    return found
