"""Several classifiers on one test split: accuracy with intervals, paired differences, and which labels flipped."""

from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import softmax

from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.intervals import scored
from hfcompress.evaluation.metrics import metrics_of
from hfcompress.evaluation.metrics.confusion import ClassF1
from hfcompress.evaluation.metrics.metric import Metric

Array = np.ndarray[Any, Any]
EXAMPLES_A_CLASS = 5


def accuracy_of(
    logits: Array,
    labels: Array,
    *,
    metric: str,
    metrics: tuple[str, ...],
    names: list[str],
    groups: list[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """report.json's `accuracy` of one model: `metric` with its interval, and all others under `all`."""
    every = scored(logits, labels, names, groups, resamples=resamples, seed=seed, metrics=metrics)
    return {"metric": metric, "value": every[metric], "ci95": every["ci95"][metric], "n": len(labels), "all": every}


def differences(
    logits: dict[str, Array],
    labels: Array,
    groups: list[str],
    reference: str,
    *,
    drops: tuple[str, ...],
    confidence: float,
    names: list[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Model -> metric -> paired difference to the reference; F1 of each class as f1:<class>."""
    metrics: dict[str, Metric] = {**metrics_of(drops), **{f"f1:{name}": ClassF1(i) for i, name in enumerate(names)}}
    before = Drawn(logits[reference], labels, groups, resamples=resamples, seed=seed)
    result: dict[str, Any] = {}
    for name, found in logits.items():
        if name == reference:
            continue
        after = Drawn(found, labels, groups, resamples=resamples, seed=seed)
        result[name] = {
            metric: asdict(paired_difference(before, after, compute, confidence))
            for metric, compute in metrics.items()
        }
    return result


def all_flips(
    logits: dict[str, Array], reference: str, labels: Array, names: list[str], groups: list[str], excerpts: list[str]
) -> dict[str, Any]:
    """Return the `flips` of each other model against the reference, by its name."""
    return {
        name: flips(logits[reference], found, labels, names=names, groups=groups, excerpts=excerpts)
        for name, found in logits.items()
        if name != reference
    }


def flips(
    before: Array, after: Array, labels: Array, *, names: list[str], groups: list[str], excerpts: list[str]
) -> dict[str, Any]:
    """Which examples changed their label between two models: by true class, the class with the worst net loss first.

    Args:
        excerpts: what is shown of an example.

    Returns: total, lost (right before, wrong after), gained, and classes: label, n, lost, gained, examples
        (index, group, text, before, after, and the probability that the new model gives its label).
    """
    old, new = before.argmax(axis=1), after.argmax(axis=1)
    sure = softmax(after.astype("float64"), axis=1).max(axis=1)
    classes: list[dict[str, Any]] = []
    for label, name in enumerate(names):
        rows = [int(i) for i in ((labels == label) & (old != new)).nonzero()[0]]
        lost, gained = sum(int(old[i] == label) for i in rows), sum(int(new[i] == label) for i in rows)
        shown = sorted(rows, key=lambda i: (old[i] != labels[i], -sure[i]))[:EXAMPLES_A_CLASS]
        classes.append(
            {
                "label": name,
                "n": int((labels == label).sum()),
                "changed": len(rows),
                "lost": lost,
                "gained": gained,
                "examples": [
                    {
                        "index": i,
                        "group": groups[i],
                        "text": excerpts[i],
                        "before": names[old[i]],
                        "after": names[new[i]],
                        "score": round(float(sure[i]), 4),
                    }
                    for i in shown
                ],
            }
        )
    classes.sort(key=lambda entry: (entry["gained"] - entry["lost"], -entry["changed"]))
    return {
        "total": int((old != new).sum()),
        "lost": sum(c["lost"] for c in classes),
        "gained": sum(c["gained"] for c in classes),
        "classes": classes,
    }
