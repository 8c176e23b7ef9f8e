"""legal_bert on encoders beside BERT: planned as they are, and made smaller in every stage of the recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.models import load_classifier, load_tokenizer
from hfcompress.architectures.pooling import started_as
from hfcompress.cli import dispatch
from hfcompress.compress.embeddings.factorize import FactorizeEmbeddings
from hfcompress.compress.prune.movement import all_logits
from hfcompress.compress.prune.structured import StructuredPrune
from hfcompress.errors import UserError
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.planning.plan import saved_tokenizer_bytes
from hfcompress.tasks.text_classification import TextClassification
from tests.encoder_models import WRITERS, write_distilbert

SIZES = ["--distill.num-hidden-layers=2", "--prune.num-attention-heads=2", "--prune.intermediate-size=64"]
GRAPH_MB = 0.015  # graphs of two layers differ by that much: an ELECTRA has 12 kB fewer nodes than a BERT in int8


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
    trimmed = base.name != "roberta"  # whose vocabulary stays whole: it is none of WordPiece
    assert (found["teacher"]["parameters"] < real.num_parameters()) == trimmed
    assert found["int8"]["disk_mb"] < found["slim-onnx"]["disk_mb"] < found["teacher-onnx"]["disk_mb"]


def test_the_files_of_every_kind_of_tokenizer_are_counted(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    load_tokenizer(base).save_pretrained(folder)
    assert saved_tokenizer_bytes(folder) == sum(file.stat().st_size for file in folder.iterdir())


def test_a_tokenizer_with_token_types_beside_a_distilbert_gives_none(
    tiny_task: TextClassification, tmp_path: Path
) -> None:
    base = write_distilbert(tmp_path / "distilbert", Path(tiny_task.dataset))
    assert "token_type_ids" not in load_tokenizer(base)("an apple")
    described = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps(described | {"tokenizer_class": "BertTokenizer"}), encoding="utf-8")
    assert "token_type_ids" in AutoTokenizer.from_pretrained(base)("an apple")
    assert "token_type_ids" not in load_tokenizer(base)("an apple")
    data = tiny_task.data.encode(load_tokenizer(base), 32, "test")
    assert all_logits(load_classifier(base), load_tokenizer(base), data.select(range(4))).shape == (4, 3)


def test_what_a_distilbert_cannot_is_said_before_anything_is_trained(
    tiny_task: TextClassification, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_distilbert(tmp_path / "distilbert", Path(tiny_task.dataset))
    shape = Shape.from_config(json.loads((base / "config.json").read_text(encoding="utf-8")), 3)
    with pytest.raises(UserError, match=r"^heads: heads of a distilbert .*heads False$"):
        StructuredPrune(keep_flops=0.8).predict(shape)
    assert StructuredPrune(keep_flops=0.8, heads=False).predict(shape).intermediate_size < shape.intermediate_size
    with pytest.raises(UserError, match=r"^a distilbert: embeddings are factorized for BERT alone"):
        FactorizeEmbeddings(embedding_size=8).predict(shape, task=tiny_task)
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    assert started_as(base, "mean") == "cls"
    assert "the head of a distilbert cannot pass on" in capsys.readouterr().err


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
    assert predicted is None or abs(predicted - rows["int8"]["bytes"] / 1e6) < GRAPH_MB
