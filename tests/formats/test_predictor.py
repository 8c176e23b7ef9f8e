"""A Predictor gives the same logits for the same weights, whatever the format, and says what a folder lacks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.recipes import tiny
from hfcompress.tasks.text_classification import TextClassification


def test_onnx_and_torch_give_the_same_logits(
    exported: Path, tiny_teacher: Path, tiny_model: Path, tiny_task: TextClassification
) -> None:
    texts = tiny_task.data.texts("test")[:20]
    onnx, torch = Predictor(exported, 1), Predictor(tiny_teacher, 1)
    assert (onnx.runtime, torch.runtime) == ("onnxruntime", "torch")
    assert onnx.labels == torch.labels == tiny_task.data.labels
    assert np.abs(onnx.logits(texts, 32, batch_size=8) - torch.logits(texts, 32)).max() < 1e-4
    other = Predictor(tiny_model, 1).logits(texts, 32)
    assert np.abs(onnx.logits(texts, 32) - other).max() > 0.1


def test_texts_are_cut_to_the_tasks_length(tiny_teacher: Path) -> None:
    predictor = Predictor(tiny_teacher, 1)
    text = " ".join(["river"] * 20)
    whole, cut = predictor.logits([text], 32), predictor.logits([text], 8)
    assert np.array_equal(cut, predictor.logits([" ".join(["river"] * 6)], 32))
    assert not np.array_equal(whole, cut)


def test_two_classes_without_names_have_transformers_own(tmp_path: Path) -> None:
    """transformers leaves its default names out of config.json."""
    folder = tiny.write_model(tmp_path / "two", labels=["LABEL_0", "LABEL_1"])
    assert "id2label" not in json.loads((folder / "config.json").read_text())
    assert Predictor(folder, 1).labels == ["LABEL_0", "LABEL_1"]


def test_a_timed_request_has_the_full_length(tiny_teacher: Path) -> None:
    predictor = Predictor(tiny_teacher, 1)
    request = predictor.request(16, batch=2)
    assert {array.shape for array in request.values()} == {(2, 16)}
    assert request["attention_mask"].all()
    with pytest.raises(UserError, match=r"--measure\.sequence-length 4096"):
        predictor.request(4096)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, tiny_teacher: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        Predictor(tmp_path / "nowhere", 1)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(tiny_teacher / "config.json", bare / "config.json")
    with pytest.raises(UserError, match="no tokenizer"):  # transformers 5 makes one that has no words
        Predictor(bare, 1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_teacher / name, bare / name)
    with pytest.raises(UserError, match="no weights"):
        Predictor(bare, 1)


def test_a_damaged_graph_and_no_text_are_refused(tmp_path: Path, exported: Path) -> None:
    broken = Path(shutil.copytree(exported, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes((exported / "model.onnx").read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be run"):
        Predictor(broken, 1)
    with pytest.raises(UserError, match="no text"):
        Predictor(exported, 1).logits([], 32)
