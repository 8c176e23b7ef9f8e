"""Metrics by hand, through the evaluate library; what the Trainer sees."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from hfcompress.evaluation.accuracy import evaluate_logits, load_metric, per_class, trainer_metrics
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune
from hfcompress.training.trainer import training_arguments

RNG = np.random.default_rng(0)


def test_examples_may_come_in_batches() -> None:
    metric = load_metric("accuracy")
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[1, 1], references=[0, 1])
    assert metric.compute()["accuracy"] == 0.75


def test_classes_are_scikit_learns() -> None:
    labels, predicted = RNG.integers(0, 3, 100), RNG.integers(0, 3, 100)
    found = per_class(predicted, labels, list("abc"))
    precision, recall, f1, n = precision_recall_fscore_support(labels, predicted)
    assert [tuple(entry.values()) for entry in found.values()] == list(zip(precision, recall, f1, n, strict=True))


def test_a_class_that_never_reaches_the_precision_counts_nothing() -> None:
    p = [[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]]
    found = load_metric("recall_at_90_precision").compute(predictions=p, references=[0, 0, 1])
    assert found["recall_at_90_precision"] == 0.0


def test_a_model_as_sure_as_it_is_right_is_calibrated_and_a_boaster_is_not() -> None:
    references = [0, 0, 0, 1]
    metric = load_metric("ece")
    assert metric.compute(predictions=[[0.75, 0.25]] * 4, references=references)["ece"] == pytest.approx(0)
    assert metric.compute(predictions=[[1.0, 0.0]] * 4, references=references)["ece"] == pytest.approx(0.25)


def test_the_trainer_sees_the_metrics_of_the_report() -> None:
    from transformers import EvalPrediction

    logits, labels = RNG.normal(size=(200, 4)), RNG.integers(0, 4, 200)
    every = evaluate_logits(logits, labels, list("abcd"))
    compute = trainer_metrics(TextClassification())
    for predictions in (logits, (logits, np.zeros(3))):  # a tuple when the model returns more than logits
        found = compute(EvalPrediction(predictions=predictions, label_ids=labels))
        assert found == {name: every[name] for name in ("accuracy", "macro_f1")}


@pytest.mark.parametrize(("metric", "larger"), [("accuracy", True), ("ece", False), (None, None)])
def test_the_best_checkpoint_is_chosen_by_the_direction_of_its_metric(
    metric: str | None, larger: bool | None, tmp_path: Path
) -> None:
    found = training_arguments(tmp_path, Finetune(bf16="no"), 32, metric)
    assert found.greater_is_better is larger
