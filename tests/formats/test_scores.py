"""Scores are those of transformers' pipelines, whatever the head, and labels are named as config.json names them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.formats.runtimes.answers import label_names
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.formats.runtimes.scores import answer_of, score_function, scores_of
from hfcompress.recipes import tiny
from hfcompress.rollout import replay
from hfcompress.rollout.serving import answer
from hfcompress.rollout.traffic import Event

TEXTS = ["the river shall be iron", "apple pear plum", "of"]
HEADS = [
    (["relevant"], None, "sigmoid"),
    (["relevant"], "regression", "none"),
    (["low", "high"], "regression", "none"),
    (["a", "b", "c"], "multi_label_classification", "sigmoid"),
    (["a", "b", "c"], "single_label_classification", "softmax"),
    (["a", "b", "c"], None, "softmax"),
]


def with_head(folder: Path, labels: list[str], problem: str | None) -> Path:
    """A classifier whose logits are far from 0, so that the functions differ."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tiny.write_model(folder, layers=1, labels=labels)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        model.classifier.bias.copy_(torch.linspace(0.7, -0.2, len(labels)))
    model.save_pretrained(folder)
    change(folder, problem_type=problem)
    return folder


def change(folder: Path, **fields: Any) -> Path:
    """Write fields into a config.json; None takes one away."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize(("labels", "problem", "function"), HEADS)
def test_label_and_score_are_those_of_the_pipeline(
    labels: list[str], problem: str | None, function: str, tmp_path: Path
) -> None:
    from transformers import pipeline

    folder = with_head(tmp_path / "model", labels, problem)
    predictor = Predictor(folder, 1)
    assert predictor.function == function
    asked = pipeline("text-classification", str(folder), device="cpu")
    for text, row in zip(TEXTS, predictor.logits(TEXTS, 32), strict=True):
        (expected,) = asked(text)
        found = answer_of(predictor, row)
        assert found["label"] == expected["label"]
        assert found["score"] == pytest.approx(expected["score"], abs=2e-6)
        assert answer(predictor, text, 32) == found


def test_several_labels_at_once_are_all_named() -> None:
    class Asked:
        labels = ("a", "b", "c", "d")
        function = "sigmoid"

    found = answer_of(Asked(), np.array([0.1, -1.0, 2.0, 0.0]))
    assert found == {"label": "c", "score": 0.880797, "labels": ["c", "a"]}
    assert answer_of(Asked(), np.array([-3.0, -1.0, -2.0, -4.0]))["labels"] == []


def test_the_functions_are_right_for_large_logits() -> None:
    assert score_function({}, 2) == "softmax"
    assert np.allclose(scores_of(np.array([1000.0, 0.0]), "softmax"), [1, 0])
    assert np.allclose(scores_of(np.array([1000.0, -1000.0, 0.0]), "sigmoid"), [1, 0, 0.5])
    assert scores_of(np.array([3.5]), "none") == 3.5
    assert scores_of(np.array([[0.0, 0.0], [0.0, np.log(3)]]), "softmax")[1, 1] == pytest.approx(0.75)


def test_labels_without_names_have_transformers_own(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "model", layers=1, labels=list("abcd"))
    change(folder, id2label=None, label2id=None, num_labels=4)
    assert Predictor(folder, 1).labels == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert label_names({}, folder) == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"0": "a", "2": "b"}, "none for 1; number them from 0"),
        ({"1": "a", "2": "b"}, "none for 0"),
        ({"zero": "a", "one": "b"}, "does not give a name to each number"),
        (["a", "b"], "does not give a name to each number"),
    ],
)
def test_labels_that_are_not_numbered_are_refused(names: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        label_names({"id2label": names}, tmp_path)


def test_labels_are_ordered_by_number_and_are_text(tmp_path: Path) -> None:
    names = {str(i): f"label {i}" for i in range(11, -1, -1)}
    assert label_names({"id2label": names}, tmp_path)[9:] == ["label 9", "label 10", "label 11"]
    assert label_names({"id2label": {0: 5, 1: 7}}, tmp_path) == ["5", "7"]


def test_a_graph_of_more_numbers_than_labels_is_refused(tmp_path: Path, exported: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(exported, tmp_path / "onnx"))
    change(folder, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(UserError, match=r"answers with 3 numbers.* names 2 labels"):
        Predictor(folder, 1).logits(TEXTS, 32)


def test_models_without_labels_to_compare_are_not_replayed(tmp_path: Path) -> None:
    one = Predictor(with_head(tmp_path / "one", ["relevant"], None), 1)
    events = [Event(id="1", arm="old", input="the river")]
    with pytest.raises(UserError, match="answer with 1 numbers"):
        replay.answered(one, one, events, 32)
