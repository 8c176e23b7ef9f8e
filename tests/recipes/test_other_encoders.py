"""legal_bert on encoders beside BERT: planned as they are, and made smaller in every stage of the recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hfcompress.cli import dispatch
from hfcompress.evaluation.predictor import Predictor
from hfcompress.tasks.text_classification import TextClassification
from tests.encoder_models import WRITERS

SIZES = ["--distill.num-hidden-layers=2", "--prune.num-attention-heads=2", "--prune.intermediate-size=64"]


@pytest.fixture(params=WRITERS)
def base(request: pytest.FixtureRequest, tiny_task: TextClassification, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path / request.param, Path(tiny_task.dataset))


def options(base: Path, data: Path) -> list[str]:
    return [f"--base={base}", f"--task.dataset={data}", "--task.group-column=group", "--task.max-length=32", *SIZES]


def test_it_is_planned_with_its_own_names_and_sizes(
    base: Path, tiny_task: TextClassification, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(["plan", "legal_bert", *options(base, Path(tiny_task.dataset)), "--format=json"])
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert found["teacher"]["shape"]["model_type"] == base.name
    real = AutoModelForSequenceClassification.from_pretrained(base)
    trimmed = base.name == "distilbert"  # a WordPiece vocabulary; RoBERTa's stays whole
    assert (found["teacher"]["parameters"] < real.num_parameters()) == trimmed
    assert found["int8"]["disk_mb"] < found["slim-onnx"]["disk_mb"] < found["teacher-onnx"]["disk_mb"]


@pytest.mark.slow
def test_every_stage_of_the_recipe_makes_it_smaller(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = dispatch(["run", "legal_bert", "--smoke", f"--base={base}", f"--run-dir={folder}"])
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in report["models"]}
    assert code == 0
    assert report["ok"]
    assert rows["slim"]["parameters"] < 0.6 * rows["teacher"]["parameters"]
    (slim,) = folder.glob("slim-????????????????")
    network = AutoModelForSequenceClassification.from_pretrained(slim).eval()
    assert network.config.model_type == base.name
    assert network.num_parameters() == rows["slim"]["parameters"]
    (int8,) = folder.glob("int8-????????????????")
    texts = ["the river runs", "iron and steel", "an apple"]
    tokenizer = AutoTokenizer.from_pretrained(int8)  # lies beside model.onnx, whole
    alone = [Predictor(int8).logits([text], 32)[0] for text in texts]
    assert all(len(tokenizer(text)["input_ids"]) > 2 for text in texts)
    np.testing.assert_allclose(Predictor(int8).logits(texts, 32), alone, atol=1e-5)
    predicted = rows["int8"]["predicted"]["disk_mb"] if "predicted" in rows["int8"] else None
    assert predicted is None or abs(predicted - rows["int8"]["bytes"] / 1e6) < 0.1 * predicted
