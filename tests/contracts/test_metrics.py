"""What every metric of the table keeps: weights are repeated examples, order has no part, worse is worse."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_curve, roc_auc_score

from hfcompress.evaluation import metrics as package
from hfcompress.evaluation.accuracy import load_metric
from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.metrics import METRICS
from hfcompress.evaluation.metrics.metric import Metric
from hfcompress.tasks import TASKS, task_class

Array = np.ndarray[Any, Any]
REQUESTS, SLATE = 30, 4


def labels(random: np.random.Generator, noise: float) -> tuple[Array, Array]:
    truth = random.integers(0, 3, 120)
    return (2 * np.eye(3)[truth] + noise * random.normal(size=(120, 3))).round(1), truth


def probabilities(random: np.random.Generator, noise: float) -> tuple[Array, Array]:
    logits, truth = labels(random, noise)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), truth


def clicks(random: np.random.Generator, noise: float) -> tuple[Array, Array]:
    rows = REQUESTS * SLATE
    happened = random.integers(0, 2, (rows, 2))
    scores = 2 * (happened - 0.5) + noise * random.normal(size=(rows, 2))
    return scores, np.column_stack([happened, np.repeat(np.arange(REQUESTS), SLATE)])


def tokens(random: np.random.Generator, noise: float) -> tuple[Array, Array]:
    counts = random.integers(20, 40, 50).astype(float)
    sums = np.stack([counts * noise, counts * noise / 10, counts * max(0.0, 1 - noise / 9), counts], axis=1)
    return sums * random.uniform(0.9, 1.0, (50, 1)), counts


INPUTS: dict[str, Callable[[np.random.Generator, float], tuple[Array, Array]]] = {
    "clicks": clicks,
    "labels": labels,
    "probabilities": probabilities,
    "tokens": tokens,
}
"""What a metric reads -> answers that are the worse the noisier, and the truth."""


def recall_at_90(outputs: Array, truth: Array) -> float:
    found = []
    for label in np.unique(truth):
        precision, recall, _ = precision_recall_curve(truth == label, outputs[:, label])
        found.append(max(r for p, r in zip(precision, recall, strict=True) if p >= 0.9))
    return float(np.mean(found))


def calibration_error(outputs: Array, truth: Array) -> float:
    confidence, right = outputs.max(axis=1), outputs.argmax(axis=1) == truth
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(15)]
    return float(sum(gaps) / len(truth))


REFERENCES: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": lambda outputs, truth: accuracy_score(truth, outputs.argmax(axis=1)),
    "auc": lambda outputs, truth: roc_auc_score(truth[:, 0], outputs[:, 0]),
    "conversion_auc": lambda outputs, truth: roc_auc_score(truth[:, 1], outputs[:, 1]),
    "ece": calibration_error,
    "log_loss": lambda outputs, truth: log_loss(truth[:, 0], 1 / (1 + np.exp(-outputs[:, 0]))),
    "macro_f1": lambda outputs, truth: f1_score(truth, outputs.argmax(axis=1), average="macro"),
    "micro_f1": lambda outputs, truth: f1_score(truth, outputs.argmax(axis=1), average="micro"),
    "perplexity": lambda outputs, truth: math.exp(outputs[:, 0].sum() / outputs[:, 3].sum()),
    "recall_at_90_precision": recall_at_90,
}
"""Metrics that somebody else computes, too."""


def made(metric: Metric, noise: float = 2.0, seed: int = 0) -> tuple[Array, Array]:
    return INPUTS[metric.reads](np.random.default_rng(seed), noise)


@pytest.fixture(params=METRICS)
def metric(request: pytest.FixtureRequest) -> Metric:
    return METRICS[request.param]


def require_names(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    assert (Path(package.__file__).parent / f"{name}.py").is_file()
    assert type(metric).__module__ == f"{package.__name__}.{name}"
    assert metric.label
    assert len(str(type(metric).__doc__).split()) > 4
    assert f"{0.123456:{metric.form}}"


@pytest.mark.parametrize("name", METRICS)
def test_a_row_is_a_file_and_says_what_it_is(name: str) -> None:
    require_names(name)


def test_a_task_names_each_once() -> None:
    """What report.json calls them is one name a metric."""
    for name in TASKS:
        said = [METRICS[metric].said for metric in task_class(name).metrics]
        assert len(set(said)) == len(said)
    assert {metric for name in TASKS for metric in task_class(name).metrics} == set(METRICS)


def require_weights(metric: Metric) -> None:
    """A weight is how often an example is there; a request's rows come together."""
    outputs, truth = made(metric)
    random, each = np.random.default_rng(1), SLATE if metric.reads == "clicks" else 1
    found = metric.contributions(outputs, truth)
    weights = np.repeat(random.integers(0, 4, (5, len(truth) // each)), each, axis=1)
    values = metric.combine(found, weights)
    assert values.shape == (5,)
    for value, counts in zip(values, weights, strict=True):
        parts = [np.flatnonzero(counts > i) for i in range(int(counts.max()))]
        rows = np.concatenate(parts)
        again = truth[rows].copy()
        if metric.reads == "clicks":  # the same request twice is two requests
            again[:, 2] += np.concatenate([np.full(len(part), 1000 * i) for i, part in enumerate(parts)])
        assert metric.value(outputs[rows], again) == pytest.approx(value)


def test_weights_are_repeated_examples(metric: Metric) -> None:
    require_weights(metric)


def test_weights_that_are_not_counted_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = METRICS["recall_at_90_precision"]
    right = type(metric).combine
    monkeypatch.setattr(type(metric), "combine", lambda own, found, weights: right(own, found, np.sign(weights)))
    with pytest.raises(AssertionError):
        require_weights(metric)


def test_the_order_of_the_examples_has_no_part(metric: Metric) -> None:
    outputs, truth = made(metric)
    each = SLATE if metric.reads == "clicks" else 1
    order = np.random.default_rng(2).permutation(len(truth) // each)
    rows = (order[:, None] * each + np.arange(each)).ravel()
    assert metric.value(outputs[rows], truth[rows]) == pytest.approx(metric.value(outputs, truth))


def require_direction(metric: Metric) -> None:
    """Noisier answers are worse, by the sign of a difference; all lie within the bounds."""
    values = [metric.value(*made(metric, noise)) for noise in (0.1, 2.0, 8.0)]
    assert all(metric.bounds[0] <= value <= metric.bounds[1] for value in values)
    assert metric.change(values[0], values[2]) < 0
    assert metric.change(values[2], values[0]) > 0


def test_worse_answers_are_worse(metric: Metric) -> None:
    if metric.name in ("ece", "click_ece"):
        pytest.skip("noisy answers may be as well calibrated: by hand in tests/evaluation")
    require_direction(metric)


@pytest.mark.parametrize(
    ("name", "wrong"), [("accuracy", {"larger_is_better": False}), ("kl", {"bounds": (0.0, 0.1)})]
)
def test_a_wrong_direction_and_wrong_bounds_are_seen(
    name: str, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for attribute, value in wrong.items():
        monkeypatch.setattr(type(METRICS[name]), attribute, value)
    with pytest.raises(AssertionError):
        require_direction(METRICS[name])


@pytest.mark.parametrize("name", REFERENCES)
def test_it_is_what_others_compute(name: str) -> None:
    outputs, truth = made(METRICS[name])
    assert METRICS[name].value(outputs, truth) == pytest.approx(REFERENCES[name](outputs, truth))


def test_a_paired_difference_has_the_sign_of_the_change_and_bounds_around_it(metric: Metric) -> None:
    (better, truth), (worse, _) = made(metric, 0.5), made(metric, 8.0)
    groups = [str(i // SLATE) for i in range(len(truth))]
    one, other = (
        Drawn(outputs, truth, groups, resamples=200, seed=0, probabilities=outputs) for outputs in (better, worse)
    )
    found = paired_difference(one, other, metric, 0.95)
    assert found.difference == pytest.approx(metric.change(one.value(metric), other.value(metric)))
    assert found.lower_bound <= found.upper_bound
    assert paired_difference(one, one, metric, 0.95).difference == 0
    low, high = one.interval(metric)
    assert metric.bounds[0] <= low <= high <= metric.bounds[1]


def test_evaluate_computes_the_same(metric: Metric) -> None:
    outputs, truth = made(metric)
    module = load_metric(metric.name)
    given = outputs.argmax(axis=1) if metric.reads == "labels" else outputs.tolist()
    references = {} if metric.reads == "tokens" else {"references": truth.tolist()}
    assert module.compute(predictions=given, **references)[metric.said] == pytest.approx(metric.value(outputs, truth))
    assert len(module.description.split()) > 4


@pytest.mark.parametrize("decided", ["shown", "exceeded", "cannot be shown"])
def test_a_verdict_is_a_sentence_that_says_the_limit(metric: Metric, decided: str) -> None:
    verdict = {
        "limit": f"drop:{metric.said}", "allowed": 0.02, "reference": "teacher", "difference": -0.01,
        "lower_bound": -0.015, "confidence": 0.95, "n": 120, "n_needed": 4000, "verdict": decided,
    }  # fmt: skip
    said = metric.sentence(verdict)
    assert said.startswith(f"{metric.said}: ")
    assert decided in said
    assert "teacher" in said
    assert "allowed" in said
    assert ("4,000" in said) == (decided == "cannot be shown")
    assert "no difference was measured" in metric.sentence(verdict | {"difference": None})
