"""How long this machine takes for a slate: the click model itself with fewer rows, random, timed in onnxruntime.

A slate reads a few rows of each table, however many there are: its time is that of the graph's nodes. So what is timed
has the same nodes, widths, threads and session options, and no model of the processor is needed. Between two runs the
caches are emptied, as by the other models that a measurement runs in turn: of a few rows, that is most of the time.
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hfcompress.machine import CACHE_BYTES

ROWS = 4_096  # ids a column: as many blocks of mixed dimensions as there are of a million
WARM_UP, RUNS = 5, 40

_known: dict[str, float] = {}


def slate_ms(config: dict[str, Any], slate: int, threads: int) -> float:
    """Median milliseconds of one request of so many rows, for a model of this config.json."""
    small = with_few_rows(config)
    key = json.dumps([small, slate, threads], sort_keys=True)
    if key not in _known:
        _known[key] = measured(small, slate, threads)
    return _known[key]


def with_few_rows(config: dict[str, Any]) -> dict[str, Any]:
    """The same kinds, bits, ranks and widths on at most ROWS ids a column."""
    columns = {name: min(rows, ROWS) for name, rows in config["columns"].items()}
    tables = {name: few_rows(found, columns[name] + 1) for name, found in config["tables"].items()}
    return config | {"columns": columns, "tables": tables}


def few_rows(table: dict[str, Any], rows: int) -> dict[str, Any]:
    """A table's description (see ops/embedding_tables.py) for so many rows."""
    from hfcompress.ops.mixed_dimension import block_sizes

    if table["kind"] == "mixed":
        sizes = block_sizes(rows, len(table["sizes"]))
        return table | {"sizes": sizes, "dims": table["dims"][: len(sizes)]}
    return {name: min(value, rows) if name in ("buckets", "weights", "divisor") else value
            for name, value in table.items()}  # fmt: skip


def measured(config: dict[str, Any], slate: int, threads: int) -> float:
    import numpy as np
    import torch

    from hfcompress.click_graph import export_clicks
    from hfcompress.click_model import ClickModel
    from hfcompress.evaluation.predictor import onnx_session

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ClickModel(config)
        for parameter in network.tables.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    with TemporaryDirectory() as scratch:
        export_clicks(network, Path(scratch))
        session = onnx_session(Path(scratch) / "model.onnx", threads)
    random = np.random.default_rng(0)
    inputs: dict[str, Any] = {n: random.integers(0, rows, slate) for n, rows in config["columns"].items()}
    inputs["dense"] = np.zeros((slate, config["features"]), dtype=np.float32)
    times, evict = [], np.ones(CACHE_BYTES // 8)
    for _ in range(WARM_UP + RUNS):
        evict.sum()
        begun = time.perf_counter()
        session.run(["logits"], inputs)
        times.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(times[WARM_UP:]))
