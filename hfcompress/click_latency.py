"""How long this machine takes for a slate: the click models themselves with fewer rows, random, timed in onnxruntime.

A slate reads a few rows of each table, however many there are: its time is that of the graph's nodes. So what is timed
has the same nodes, widths, threads and session options, and no model of the processor is needed. The models run in
turn, as they will when they are measured: what one leaves of the caches to the next is most of so short a time.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROWS = 4_096  # ids a column: as many blocks of mixed dimensions as there are of a million
RUNS = 100


def slates_ms(configs: dict[str, dict[str, Any]], slate: int, threads: int) -> dict[str, float]:
    """Median milliseconds of a request of so many rows, by model, for models of these config.json's."""
    import numpy as np

    from hfcompress.evaluation.latency import interleaved

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
    """A table's description (see ops/embedding_tables.py) for so many rows."""
    from hfcompress.ops.mixed_dimension import block_sizes

    if table["kind"] == "mixed":
        sizes = block_sizes(rows, len(table["sizes"]))
        return table | {"sizes": sizes, "dims": table["dims"][: len(sizes)]}
    return {name: min(value, rows) if name in ("buckets", "weights", "divisor") else value
            for name, value in table.items()}  # fmt: skip


def session_of(config: dict[str, Any], threads: int) -> Any:
    """onnxruntime with a model of this config.json, its weights random."""
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
        return onnx_session(Path(scratch) / "model.onnx", threads)
