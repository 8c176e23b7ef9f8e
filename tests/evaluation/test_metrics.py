"""Each metric script can be used alone, by anyone, through the evaluate library."""

import evaluate
import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, precision_recall_fscore_support

from hfcompress.evaluation.accuracy import METRICS, evaluate_logits, load_metric, trainer_metrics

RNG = np.random.default_rng(0)


def probabilities(n: int, classes: int) -> np.ndarray:
    values = RNG.random((n, classes))
    return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("script", sorted(METRICS.glob("*.py")), ids=lambda file: file.stem)
def test_a_script_loads_without_network_and_says_what_it_is(script: object) -> None:
    metric = evaluate.load(str(script))
    assert len(metric.description.split()) > 5
    assert "references" in metric.features


def test_examples_may_come_in_batches() -> None:
    metric = load_metric("f1_totals")
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[1, 1], references=[0, 1])
    assert metric.compute()["accuracy"] == 0.75


def test_classes_are_scikit_learns() -> None:
    labels, predicted = RNG.integers(0, 3, 100), RNG.integers(0, 3, 100)
    found = load_metric("per_class").compute(predictions=predicted, references=labels, names=list("abc"))["per_class"]
    precision, recall, f1, n = precision_recall_fscore_support(labels, predicted)
    assert [tuple(entry.values()) for entry in found.values()] == list(zip(precision, recall, f1, n, strict=True))


def test_recall_at_precision_is_the_highest_on_scikit_learns_curve() -> None:
    p, labels = probabilities(300, 3), RNG.integers(0, 3, 300)
    p[np.arange(300), labels] += 1.0 * (RNG.random(300) < 0.5)
    expected = []
    for label in range(3):
        precision, recall, _ = precision_recall_curve(labels == label, p[:, label])
        expected.append(max(r for q, r in zip(precision, recall, strict=True) if q >= 0.9))
    found = load_metric("recall_at_precision").compute(predictions=p.tolist(), references=labels)
    assert found["recall_at_90_precision"] == pytest.approx(np.mean(expected))


def test_a_class_that_never_reaches_the_precision_counts_nothing() -> None:
    p = [[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]]
    found = load_metric("recall_at_precision").compute(predictions=p, references=[0, 0, 1])
    assert found["recall_at_90_precision"] == 0.0


def test_a_model_as_sure_as_it_is_right_is_calibrated_and_a_boaster_is_not() -> None:
    references = [0, 0, 0, 1]
    metric = load_metric("calibration_error")
    assert metric.compute(predictions=[[0.75, 0.25]] * 4, references=references)["ece"] == pytest.approx(0)
    assert metric.compute(predictions=[[1.0, 0.0]] * 4, references=references)["ece"] == pytest.approx(0.25)


def test_the_trainer_sees_the_metrics_of_the_report() -> None:
    from transformers import EvalPrediction

    logits, labels = RNG.normal(size=(200, 4)), RNG.integers(0, 4, 200)
    every = evaluate_logits(logits, labels, list("abcd"))
    for predictions in (logits, (logits, np.zeros(3))):  # a tuple when the model returns more than logits
        found = trainer_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
        assert found == pytest.approx({name: every[name] for name in ("accuracy", "macro_f1")})
