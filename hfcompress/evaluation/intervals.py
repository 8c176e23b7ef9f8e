"""A model's metrics, each with its interval."""

from typing import Any

import numpy as np

from hfcompress.evaluation.accuracy import CLASSIFIED, per_class
from hfcompress.evaluation.drawn import Drawn, percentiles
from hfcompress.evaluation.metrics import metrics_of
from hfcompress.evaluation.metrics.confusion import ClassF1

Array = np.ndarray[Any, Any]


def scored(
    logits: Array,
    labels: Array,
    names: list[str],
    groups: list[str],
    *,
    resamples: int,
    seed: int,
    metrics: tuple[str, ...] = CLASSIFIED,
) -> dict[str, Any]:
    """Return `evaluate_logits` and, as `ci95`, a 95% interval of each metric; of each class's F1 as its `f1_ci95`.

    Args:
        logits: [texts, classes]; labels: [texts]; names: of the classes, or none; groups: of each text.
    """
    drawn, wanted = Drawn(logits, labels, groups, resamples=resamples, seed=seed), metrics_of(metrics)
    found: dict[str, Any] = {name: drawn.value(metric) for name, metric in wanted.items()}
    if names:
        found["per_class"] = per_class(logits.argmax(axis=1), labels, names)
    for i, name in enumerate(names):
        found["per_class"][name]["f1_ci95"] = percentiles(drawn.values(ClassF1(i)))
    return found | {"ci95": {name: drawn.interval(metric) for name, metric in wanted.items()}}
