"""Metrics by hand and by scikit-learn; logits in the order of the texts; sizes from headers; flips; a fair clock."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from hfcompress.evaluation import latency
from hfcompress.evaluation.accuracy import evaluate_logits, load_metric
from hfcompress.evaluation.classification import flips
from hfcompress.evaluation.difference import difference
from hfcompress.formats.memory import fresh_process
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.formats.size import named_tensors, sizes
from hfcompress.tasks.text_classification import TextClassification


def test_totals_and_classes_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    found = evaluate_logits(logits, labels, list("abcd"))
    predicted = logits.argmax(axis=1)
    assert found["accuracy"] == found["micro_f1"] == pytest.approx((predicted == labels).mean())
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert [found["per_class"][name]["f1"] for name in "abcd"] == pytest.approx(
        f1_score(labels, predicted, average=None)
    )
    assert sum(entry["n"] for entry in found["per_class"].values()) == 200


def test_a_class_that_is_never_seen_counts_nothing() -> None:
    found = evaluate_logits(np.eye(3)[[0, 1, 1]], np.array([0, 1, 0]), list("abc"))
    assert found["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 0}
    json.dumps(found, allow_nan=False)


def test_calibration_error_by_hand() -> None:
    """Two examples sure at 0.9, one of them right: |0.5 - 0.9|; two at 0.6, both right: |1 - 0.6|."""
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]
    found = load_metric("ece").compute(predictions=probabilities, references=[0, 1, 1, 1])
    assert found["ece"] == pytest.approx(0.4)


def test_recall_at_90_precision_by_hand() -> None:
    """Class 1: the two surest are right, the third is wrong: two of three found while all are right."""
    p = [0.9, 0.8, 0.7, 0.6, 0.1]
    found = load_metric("recall_at_90_precision").compute(
        predictions=[[1 - x, x] for x in p], references=[1, 1, 0, 1, 0]
    )
    assert found["recall_at_90_precision"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_logits_come_in_the_order_of_the_texts(tiny_teacher: Path, tiny_task: TextClassification) -> None:
    predictor = Predictor(tiny_teacher, 1)
    texts = tiny_task.data.texts("test")[:20]
    whole = predictor.logits(texts, 32, batch_size=8)
    one_by_one = np.concatenate([predictor.logits([text], 32) for text in texts])
    assert np.abs(whole - one_by_one).max() < 1e-5
    assert predictor.labels == ["apple", "metal", "water"]


def test_a_model_does_not_differ_from_itself(
    tiny_teacher: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    texts = tiny_task.data.texts("validation")
    same = difference(tiny_teacher, tiny_teacher, texts, 32)
    assert same == {"examples": 60, "mean_abs_logit_difference": 0.0, "label_agreement": 1.0, "kl": pytest.approx(0)}
    other = difference(tiny_teacher, tiny_model, texts, 32)
    assert other["label_agreement"] < 0.8
    assert other["kl"] > 0.1


def test_sizes_are_those_of_the_files(tiny_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    found = sizes(tiny_model)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["dtypes"] == {"float32": 4 * found["parameters"]}
    assert found["bytes"] == sum(file.stat().st_size for file in tiny_model.iterdir() if file.is_file())


def test_types_are_read_from_the_header_alone(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert [held for _, held in named_tensors(tmp_path / "model.safetensors")] == [(15, "bfloat16", 16, True)]


def test_memory_is_that_of_a_process_of_its_own(exported: Path) -> None:
    """Not of this one: two hundred megabytes held here are not counted."""
    before = fresh_process(exported, 32, 1)
    ballast = np.ones(25_000_000)
    after = fresh_process(exported, 32, 1)
    assert ballast.nbytes == 200_000_000
    assert abs(after["peak_rss_mb"] - before["peak_rss_mb"]) < 60
    assert before["peak_rss_mb"] >= before["bare_rss_mb"] > 50


def test_models_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    times = latency.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 4)  # type: ignore[misc]
    assert "".join(calls[2 * latency.WARM_UP :]) == "baabbaab"
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}


def test_requests_back_to_back_follow_an_untimed_one_of_the_same_model() -> None:
    calls: list[str] = []
    requests = {name: lambda name=name: calls.append(name) for name in "ab"}  # type: ignore[misc]
    times = latency.interleaved(requests, 2, back_to_back=True)
    assert "".join(calls[2 * latency.WARM_UP :]) == "bbaaaabb"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_a_machine_that_changed_is_noisy() -> None:
    before = {"gemm_gflops": 100.0, "copy_gb_per_s": 10.0}
    assert not latency.drifted(before, {"gemm_gflops": 90.0, "copy_gb_per_s": 11.0})
    assert latency.drifted(before, {"gemm_gflops": 80.0, "copy_gb_per_s": 10.0})


def test_flips_are_counted_by_true_class_the_worst_first(tiny_task: TextClassification) -> None:
    labels = np.array(tiny_task.data.label_ids("test"))
    right = np.eye(3)[labels] * 5
    data = tiny_task.data
    shown = {"names": data.labels, "groups": data.groups("test"), "excerpts": data.texts("test")}
    assert flips(right, right, labels, **shown)["total"] == 0
    broken = right.copy()
    metal = np.flatnonzero(labels == 1)[:7]
    broken[metal] = [0, 0, 9]
    found = flips(right, broken, labels, **shown)
    assert (found["total"], found["lost"], found["gained"]) == (7, 7, 0)
    first = found["classes"][0]
    assert (first["label"], first["changed"], first["n"]) == ("metal", 7, 30)
    assert {(e["before"], e["after"]) for e in first["examples"]} == {("metal", "water")}
    assert flips(broken, right, labels, **shown)["gained"] == 7
