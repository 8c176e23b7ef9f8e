"""Every draw's metric is that of the examples drawn, and all metrics are of the same draws."""

import numpy as np
import pytest

from hfcompress.evaluation.accuracy import evaluate_logits
from hfcompress.evaluation.drawn import Drawn
from hfcompress.evaluation.intervals import scored
from hfcompress.evaluation.metrics import METRICS


def said(seed: int = 0, texts: int = 120) -> tuple[np.ndarray, np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, texts)
    logits = random.normal(size=(texts, 4)) + 2.5 * np.eye(4)[labels]
    logits = logits.round(1)  # so that some are equal
    return logits, labels, [f"g{i // 3}" for i in range(texts)]


def test_every_total_and_every_class_has_the_interval_of_the_texts_drawn() -> None:
    logits, labels, groups = said()
    found = scored(logits, labels, list("abcd"), groups, resamples=40, seed=0)
    totals = {"accuracy", "micro_f1", "macro_f1", "recall_at_90_precision", "ece"}
    assert set(found["ci95"]) == totals
    drawn, made = [], Drawn(logits, labels, groups, resamples=40, seed=0)
    for weights in made.weights[:, made.number]:
        rows = np.repeat(np.arange(len(labels)), weights)
        every = evaluate_logits(logits[rows], labels[rows], list("abcd"))
        drawn.append([*(every[name] for name in sorted(totals)), *(every["per_class"][c]["f1"] for c in "abcd")])
    *of_totals, a, b, c, d = np.quantile(np.array(drawn), [0.025, 0.975], axis=0).T
    for name, interval in zip(sorted(totals), of_totals, strict=True):
        assert found["ci95"][name] == pytest.approx(interval)
    for name, interval in zip("abcd", (a, b, c, d), strict=True):
        assert found["per_class"][name]["f1_ci95"] == pytest.approx(interval)


def test_an_interval_holds_the_value_and_narrows_with_more_texts() -> None:
    def width(texts: int) -> float:
        logits, labels, groups = said(1, texts)
        found = Drawn(logits, labels, groups, resamples=400, seed=0)
        for metric in (METRICS["recall_at_90_precision"], METRICS["ece"]):
            low, high = found.interval(metric)
            assert low - 0.05 <= found.value(metric) <= high + 0.05
        low, high = found.interval(METRICS["recall_at_90_precision"])
        return high - low

    assert width(1200) < width(120)
