"""The draws' metrics are those of the metric modules on the texts that were drawn."""

import numpy as np
import pytest

from hfcompress.evaluation.accuracy import load_metric
from hfcompress.evaluation.intervals import (
    drawn_calibration_error,
    drawn_recall,
    probability_intervals,
    scored,
    text_weights,
)
from hfcompress.evaluation.statistics import group_confusions, resampled


def said(seed: int = 0, texts: int = 120) -> tuple[np.ndarray, np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, texts)
    logits = random.normal(size=(texts, 4)) + 2.5 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probabilities = probabilities.round(2)  # so that some are equal
    return probabilities, labels, [f"g{i // 3}" for i in range(texts)]


def test_every_draw_is_the_metric_of_the_texts_drawn() -> None:
    probabilities, labels, groups = said()
    weights = text_weights(groups, 20, 0)
    recall = drawn_recall(probabilities, labels, weights, 0.9)
    error = drawn_calibration_error(probabilities, labels, weights)
    for draw in range(20):
        rows = np.repeat(np.arange(len(labels)), weights[draw])
        texts = {"predictions": probabilities[rows].tolist(), "references": labels[rows]}
        wanted = load_metric("recall_at_precision").compute(**texts)["recall_at_90_precision"]
        assert recall[draw] == pytest.approx(wanted)
        assert error[draw] == pytest.approx(load_metric("calibration_error").compute(**texts)["ece"])


def test_the_draws_are_those_of_the_other_metrics() -> None:
    _, labels, groups = said()
    weights = text_weights(groups, 10, 3)
    confusions = group_confusions(labels, labels, groups, 4)
    assert np.array_equal(np.stack([w @ np.eye(4)[labels] for w in weights]), resampled(confusions, 10, 3).sum(2))


def test_every_total_and_every_class_has_the_interval_of_the_texts_drawn() -> None:
    probabilities, labels, groups = said()
    logits = np.log(probabilities + 1e-9)
    found = scored(logits, labels, list("abcd"), groups, resamples=40, seed=0)
    totals = {"accuracy", "micro_f1", "macro_f1", "recall_at_90_precision", "ece"}
    assert set(found["ci95"]) == totals
    drawn = []
    for weights in text_weights(groups, 40, 0):
        rows = np.repeat(np.arange(len(labels)), weights)
        texts = {"predictions": logits.argmax(1)[rows], "references": labels[rows]}
        every = load_metric("per_class").compute(**texts, names=list("abcd"))["per_class"]
        micro = load_metric("f1_totals").compute(**texts)["micro_f1"]
        drawn.append([micro, *(every[name]["f1"] for name in "abcd")])
    micro, *classes = np.quantile(np.array(drawn), [0.025, 0.975], axis=0).T
    assert found["ci95"]["micro_f1"] == pytest.approx(micro)
    for name, interval in zip("abcd", classes, strict=True):
        assert found["per_class"][name]["f1_ci95"] == pytest.approx(interval)


def test_an_interval_holds_the_value_and_narrows_with_more_texts() -> None:
    def width(texts: int) -> float:
        probabilities, labels, groups = said(1, texts)
        found = probability_intervals(probabilities, labels, groups, resamples=400, seed=0)
        for name, metric in (("recall_at_90_precision", "recall_at_precision"), ("ece", "calibration_error")):
            value = load_metric(metric).compute(predictions=probabilities.tolist(), references=labels)[name]
            assert found[name][0] - 0.05 <= value <= found[name][1] + 0.05
        low, high = found["recall_at_90_precision"]
        return high - low

    assert width(1200) < width(120)
