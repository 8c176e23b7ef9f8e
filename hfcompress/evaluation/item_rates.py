"""The baseline of a click-through model: how often each item was clicked, pulled towards the mean of all."""

import numpy as np

from hfcompress.evaluation.statistics import Array

STRENGTH = 20.0  # views of the mean that every item begins with


def item_rates(item: Array, happened: Array, rows: int) -> Array:
    """log-odds of each item and, last, of an unknown one: [rows + 1] float32."""
    mean = float(happened.mean())
    seen, found = np.bincount(item, minlength=rows + 1), np.bincount(item, happened, rows + 1)
    rate = (found + STRENGTH * mean) / (seen + STRENGTH)
    return np.asarray(np.log(rate / (1 - rate)), dtype=np.float32)


def rate_scores(rates: Array, item: Array) -> Array:
    """Scores [rows] of a log's items."""
    return np.asarray(rates[np.minimum(item, len(rates) - 1)])
