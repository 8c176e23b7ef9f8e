"""ClickPredictor: a click model's folder, asked in JSON: what record, replay, shadow and predict need of a model."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from hfcompress.architectures.click_inputs import inputs_of, read_config
from hfcompress.errors import UserError
from hfcompress.formats import format_of
from hfcompress.formats.runtimes.scores import Function

Array = np.ndarray[Any, Any]
FIELDS = ("user", "item", "category", "context", "price", "time")


class ClickPredictor:
    """A model folder, loaded once by the runtime of its format.

    Its labels are "no click" and "click"; a text is a JSON object with user, item, category, context, price, time.
    """

    labels = ("no click", "click")
    function: Function = "softmax"

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.threads = threads or len(os.sched_getaffinity(0))
        self.config = read_config(folder)
        self.network = format_of(folder).network(folder, self.threads)
        self.runtime = self.network.runtime

    def run(self, inputs: dict[str, Array]) -> Array:
        """Logits [rows, 2] of click and conversion, of inputs as click_model.inputs_of makes them."""
        return np.asarray(self.network.run(inputs))

    def judge(self, log: Any, batch: int = 16_384) -> Array:
        """Logits [rows, 2] of a log's rows."""
        inputs = inputs_of(log)
        count = len(inputs["dense"])
        parts = [self.run({n: a[at : at + batch] for n, a in inputs.items()}) for at in range(0, count, batch)]
        return np.concatenate(parts)

    def logits(self, texts: list[str], max_length: int = 1, batch_size: int = 32) -> Array:
        """[texts, 2]: of no click (0) and of a click.

        Raises:
            UserError: a text is no JSON object with the fields of a request.
        """
        if not texts:
            raise UserError("there is no request to answer")
        log = SimpleNamespace(**columns_of(texts))
        clicks = self.judge(log)[:, :1]
        return np.concatenate([np.zeros_like(clicks), clicks], axis=1)


def columns_of(texts: list[str]) -> dict[str, Array]:
    """Fields -> values [texts] of JSON requests."""
    rows = []
    for text in texts:
        try:
            entry = json.loads(text)
            row = [int(entry[name]) for name in FIELDS[:4]] + [float(entry[name]) for name in FIELDS[4:]]
            if any(abs(number) >= 2**63 for number in row) or not np.isfinite(row[4:]).all():
                raise ValueError("a number is out of range")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            wrong = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{text[:80]!r} is not a request ({wrong}); give a JSON object with {', '.join(FIELDS)}"
            ) from None
        rows.append(row)
    table = list(zip(*rows, strict=True))
    return {name: np.array(column, dtype=np.int64 if name in FIELDS[:4] else np.float32)
            for name, column in zip(FIELDS, table, strict=True)}  # fmt: skip
