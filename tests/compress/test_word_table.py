"""Word embeddings of an encoder as hashed, shared, mixed, factored or integer rows: distilled, run by onnxruntime."""

from dataclasses import replace
from pathlib import Path

import pytest

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.models import load_classifier, load_tokenizer
from hfcompress.compress.embeddings import word_table
from hfcompress.compress.embeddings.word_table import WordTable
from hfcompress.errors import UnknownShape, UserError
from hfcompress.evaluation.difference import difference
from hfcompress.formats import onnx_export
from hfcompress.formats.size import embedding_bytes
from hfcompress.tasks.text_classification import TextClassification

RATIOS = {"rows": 7.0, "factorized": 8.0, "hashed": 8.0, "quotient_remainder": 8.0, "mixed": 4.0}


@pytest.mark.parametrize("kind", [k if k == "hashed" else pytest.param(k, marks=pytest.mark.slow) for k in RATIOS])
def test_every_kind_is_distilled_and_delivered_with_the_bytes_that_it_claims(
    kind: str, tiny_teacher: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    options = {"num_train_epochs": 5, "learning_rate": 5e-4, "per_device_train_batch_size": 16, "bf16": "no"}
    stage = WordTable(kind=kind, bits=4 if kind == "rows" else 8, ratio=RATIOS[kind], **options)  # type: ignore[arg-type]
    measured = stage(tmp_path, model=tiny_teacher, task=tiny_task)
    assert measured["ratio"] >= RATIOS[kind]
    found = difference(tiny_teacher, tmp_path, tiny_task.data.texts("test"), tiny_task.max_length)
    at_the_start = started(stage, tiny_teacher, tiny_task, tmp_path / "start")
    assert found["label_agreement"] >= 0.8
    assert found["kl"] <= max(at_the_start["kl"], 0.01)  # rows in 4 bits have next to nothing to mend
    others = 4 * 64 * (64 + 2 + 2)  # positions, types and the LayerNorm, in fp32
    assert embedding_bytes(tmp_path) == pytest.approx(measured["table_bytes"] + others, abs=600)


def started(stage: WordTable, model: Path, task: TextClassification, out: Path) -> dict[str, float]:
    """How far it is from the teacher before distillation."""
    from hfcompress.formats.onnx import copy_companions

    out.mkdir()
    network, tokenizer = load_classifier(model), load_tokenizer(model)
    data = task.data.encode(tokenizer, task.max_length, "train")
    words = network.bert.embeddings.word_embeddings.weight.detach()
    table = stage.table(words, word_table.read_counts(data, network))
    network.bert.embeddings.word_embeddings = table
    copy_companions(model, out)
    word_table.export_with_table(network, table, out)
    return difference(model, out, task.data.texts("test"), task.max_length)


def test_a_graph_that_differs_or_is_larger_than_claimed_fails_the_stage(
    tiny_teacher: Path, tiny_task: TextClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer = load_classifier(tiny_teacher), load_tokenizer(tiny_teacher)
    data = tiny_task.data.encode(tokenizer, tiny_task.max_length, "train")
    words = network.bert.embeddings.word_embeddings.weight.detach()
    table = WordTable(kind="rows", bits=8).table(words, word_table.read_counts(data, network))
    network.bert.embeddings.word_embeddings = table
    word_table.deliver(network, table, tmp_path, tokenizer, tiny_task)
    monkeypatch.setattr("hfcompress.ops.table_sizes.table_bytes", lambda *table: 5)
    with pytest.raises(RuntimeError, match="5 were claimed"):
        word_table.deliver(network, table, tmp_path, tokenizer, tiny_task)
    monkeypatch.setattr(onnx_export, "parity", lambda *arguments: (0.5, 1.0))
    with pytest.raises(RuntimeError, match=r"differ by 0\.5"):
        word_table.deliver(network, table, tmp_path, tokenizer, tiny_task)


def test_what_cannot_be_is_named(tiny_teacher: Path, tiny_task: TextClassification) -> None:
    words = load_classifier(tiny_teacher).bert.embeddings.word_embeddings.weight.detach()
    counts = words[:, 0].abs() + 1
    with pytest.raises(UserError, match=r"cannot be that small as mixed in 8 bits"):
        WordTable(kind="mixed", ratio=1000).table(words, counts)
    with pytest.raises(UserError, match=r"ratio 0\.5"):
        WordTable(ratio=0.5)
    with pytest.raises(UnknownShape):
        WordTable().predict(Shape(2, 64, 4, 128, vocab_size=100), task=tiny_task)


@pytest.mark.slow
def test_the_benchmark_sets_tables_beside_fewer_pieces_of_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a few licence texts: bytes as claimed, and rows in 8 bits nearer to the teacher than fewer pieces are."""
    from benchmarks import word_table as benchmark

    monkeypatch.setattr(benchmark, "TASK", replace(benchmark.TASK, max_train_examples=60))
    words = ["--points", "rows-8-3.9", "--plain", "5.25", "--steps", "0", "--texts", "20"]
    monkeypatch.setattr("sys.argv", ["word_table", *words])
    benchmark.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    found = {row[0]: row for row in rows[2:]}
    assert set(found) == {"teacher", "rows-8-3.9", "3,417 pieces"}
    assert found["rows-8-3.9"][1:3] == found["3,417 pieces"][1:3] == ["5.25", "4.0"]
    assert float(found["rows-8-3.9"][3]) < 0.01 < float(found["3,417 pieces"][3])
