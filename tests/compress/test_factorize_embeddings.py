"""A BERT's embeddings factorized: the same function along what is kept, a stock class, eight times fewer bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hfcompress.architectures import albert
from hfcompress.architectures.encoder_spec import Shape, embedding_parameters, parameters
from hfcompress.architectures.encoder_spec import embedding_bytes as predicted_bytes
from hfcompress.architectures.models import load_classifier, load_tokenizer, save
from hfcompress.budget import EmbeddingBudget, verdicts
from hfcompress.cli import dispatch
from hfcompress.compress.embeddings.factorize import FactorizeEmbeddings, moments_of
from hfcompress.compress.quantize.qat import QAT
from hfcompress.errors import UnknownShape, UserError
from hfcompress.evaluation.difference import difference
from hfcompress.formats.size import embedding_bytes
from hfcompress.ops import norm_factors
from hfcompress.planning.plan import Plan
from hfcompress.recipes import multilingual
from hfcompress.tasks.text_classification import TextClassification

SIZE = 8


@pytest.fixture(scope="module")
def factorized(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_task: TextClassification) -> Path:
    out = tmp_path_factory.mktemp("factorized")
    measured = FactorizeEmbeddings(
        embedding_size=SIZE, num_train_epochs=2, learning_rate=1e-3, per_device_train_batch_size=16, bf16="no"
    )(out, model=tiny_teacher, task=tiny_task)
    (out / "measured.json").write_text(json.dumps(measured))
    return out


@pytest.fixture(scope="module")
def int8(
    tmp_path_factory: pytest.TempPathFactory, factorized: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> Path:
    out = tmp_path_factory.mktemp("int8")
    QAT(max_steps=2, bf16="no")(out, model=factorized, teacher=tiny_teacher, task=tiny_task)
    return out


def test_the_basis_is_orthonormal_and_its_rows_sum_to_zero() -> None:
    expected = np.array([[1 / 2**0.5, -1 / 2**0.5, 0.0], [1 / 6**0.5, 1 / 6**0.5, -2 / 6**0.5]])
    assert np.allclose(norm_factors.zero_sum_basis(2).numpy(), expected)
    basis = norm_factors.zero_sum_basis(30)
    assert torch.allclose(basis @ basis.T, torch.eye(30, dtype=torch.float64))
    assert basis.sum(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize("rank", [3, 15])
def test_the_small_layer_norm_and_its_projection_give_what_the_large_one_does(rank: int) -> None:
    """Of the part of the vectors that lies along the kept directions; with all dim - 1 of them that is all."""
    torch.manual_seed(0)
    table, gamma, beta = torch.randn(50, 16), torch.rand(16) + 0.5, torch.randn(16)
    _, directions = norm_factors.directions_of(norm_factors.read_moments(table))
    kept = directions[:rank]
    centred = table.double() - table.double().mean(dim=1, keepdim=True)
    part = (centred @ kept.T @ kept).float()
    expected = torch.nn.functional.layer_norm(part, (16,), gamma, beta, 1e-12)
    small = torch.nn.functional.layer_norm(norm_factors.in_factors(table, kept), (rank + 1,), eps=1e-12)
    found = torch.nn.functional.linear(small, norm_factors.projection(kept, gamma), beta)
    assert torch.allclose(found, expected, atol=1e-5)
    if rank == 15:
        whole = torch.nn.functional.layer_norm(table, (16,), gamma, beta, 1e-12)
        assert torch.allclose(found, whole, atol=1e-5)


def test_directions_are_ordered_by_what_is_read_and_an_energy_gives_a_size() -> None:
    shares = torch.tensor([0.5, 0.3, 0.2, 0.0])
    assert [norm_factors.size_for_energy(shares, energy) for energy in (0.4, 0.5, 0.8, 0.9, 1.0)] == [2, 2, 3, 4, 4]
    vectors = torch.tensor([[3.0, -3.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 7.0], [1.0, 1.0, 1.0]])
    found, directions = norm_factors.directions_of(norm_factors.read_moments(vectors))
    assert found[:2].tolist() == pytest.approx([2 / 3, 1 / 3])  # the last vector has nothing centred in it
    assert abs(float(directions[0] @ torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64))) == pytest.approx(2**0.5)


def test_with_the_whole_hidden_size_it_is_the_same_function(
    tiny_teacher: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    network, tokenizer = load_classifier(tiny_teacher), load_tokenizer(tiny_teacher)
    data = tiny_task.data.encode(tokenizer, tiny_task.max_length, "train")
    _, directions = norm_factors.directions_of(moments_of(network, tokenizer, data))
    same = albert.factorized(network, directions[:-1])
    batch = tokenizer(tiny_task.data.texts("test")[:8], padding=True, return_tensors="pt")
    with torch.inference_mode():
        assert torch.allclose(network(**batch).logits, same(**batch).logits, atol=1e-4)


def test_directions_that_are_read_beat_directions_of_the_table_and_random_ones(
    tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    """The naive ways: the table's own principal directions (a third of its words is never read), or any."""
    network, tokenizer = load_classifier(tiny_teacher), load_tokenizer(tiny_teacher)
    data = tiny_task.data.encode(tokenizer, tiny_task.max_length, "train")
    batch = tokenizer(tiny_task.data.texts("test"), padding=True, return_tensors="pt")
    _, read = norm_factors.directions_of(moments_of(network, tokenizer, data))
    torch.manual_seed(0)
    _, anyhow = norm_factors.directions_of(norm_factors.read_moments(torch.randn(200, network.config.hidden_size)))
    _, table = norm_factors.directions_of(norm_factors.read_moments(network.bert.embeddings.word_embeddings.weight))
    with torch.inference_mode():
        right = network(**batch).logits
        wrong = [
            float((albert.factorized(network, directions[: SIZE - 1])(**batch).logits - right).abs().mean())
            for directions in (read, table, anyhow)
        ]
    assert wrong[0] < wrong[1]
    assert wrong[0] < wrong[2]


def test_the_result_is_a_stock_model_that_answers_as_its_teacher(
    factorized: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    network = AutoModelForSequenceClassification.from_pretrained(factorized)
    assert type(network).__name__ == "AlbertForSequenceClassification"
    assert network.config.embedding_size == SIZE
    assert network.config.num_hidden_groups == network.config.num_hidden_layers
    found = difference(tiny_teacher, factorized, tiny_task.data.texts("test"), tiny_task.max_length)
    assert found["label_agreement"] >= 0.9
    measured = json.loads((factorized / "measured.json").read_text())
    assert 0.3 < measured["energy"] <= 1


def test_the_plan_knows_its_size(factorized: Path, tiny_teacher: Path, tiny_task: TextClassification) -> None:
    config = json.loads((tiny_teacher / "config.json").read_text())
    shape = FactorizeEmbeddings(embedding_size=SIZE).predict(Shape.from_config(config, 3), task=tiny_task)
    network = load_classifier(factorized)
    assert parameters(shape) == sum(p.numel() for p in network.parameters())
    read = Shape.from_config(json.loads((factorized / "config.json").read_text()), 3)
    assert embedding_parameters(read) == embedding_parameters(shape)
    assert embedding_bytes(factorized) == pytest.approx(predicted_bytes(shape), rel=0.02, abs=600)


def test_a_table_budget_is_kept_and_what_cannot_be_is_named(tiny_task: TextClassification) -> None:
    shape = Shape(2, 64, 4, 128, vocab_size=1000, max_position_embeddings=64)
    size = FactorizeEmbeddings(table_mb=0.02).predict(shape, task=tiny_task).embedding_size
    assert size is not None
    eight = shape.with_(embedding_bits=8, weight_bits=8)
    assert predicted_bytes(eight.with_(embedding_size=size)) <= 20_000
    assert predicted_bytes(eight.with_(embedding_size=size + 1)) > 20_000 - 4 * 64
    with pytest.raises(UserError, match=r"give one of them"):
        FactorizeEmbeddings().predict(shape, task=tiny_task)
    with pytest.raises(UserError, match=r"embedding_size 65"):
        FactorizeEmbeddings(embedding_size=65).predict(shape, task=tiny_task)
    with pytest.raises(UserError, match=r"energy 2"):
        FactorizeEmbeddings(energy=2).predict(shape, task=tiny_task)
    with pytest.raises(UserError, match=r"table_mb 0\.001"):
        FactorizeEmbeddings(table_mb=0.001).predict(shape, task=tiny_task)
    with pytest.raises(UnknownShape):
        FactorizeEmbeddings(energy=0.9).predict(shape, task=tiny_task)


def test_int8_rows_and_layers_run_in_onnxruntime(
    int8: Path, factorized: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    texts = tiny_task.data.texts("test")
    assert difference(factorized, int8, texts, tiny_task.max_length)["label_agreement"] >= 0.9
    assert embedding_bytes(int8) * 8 <= embedding_bytes(tiny_teacher)


def test_embeddings_left_whole_fail_the_budget(int8: Path, factorized: Path, tiny_teacher: Path) -> None:
    """The limit itself: the int8 factors keep it, the factors left in fp32 and the teacher's own tables do not."""
    folders = {"whole": tiny_teacher, "fp32": factorized, "int8": int8}
    same = {"bytes": 1, "peak_rss_mb": 1, "latency_ms": {"p50": 1}}
    rows = [same | {"name": name, "embedding_bytes": embedding_bytes(f)} for name, f in folders.items()]
    budget = EmbeddingBudget(embedding_ratio=0.125)
    held = {name: verdicts(budget, name, "whole", "whole", rows, {}, {})[0] for name in folders}
    assert held["int8"].ok
    assert held["int8"].reference == "whole"
    assert not held["fp32"].ok
    assert not held["whole"].ok


def test_an_albert_that_shares_layers_is_refused(
    factorized: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig.from_pretrained(factorized, num_hidden_groups=1)
    AlbertForSequenceClassification(config).save_pretrained(tmp_path)
    load_tokenizer(factorized).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"AlbertForSequenceClassification cannot be made smaller"):
        QAT(max_steps=1)(tmp_path / "out", model=tmp_path, teacher=tmp_path, task=tiny_task)


def test_the_recipes_full_scale_is_planned(tmp_path: Path) -> None:
    full = multilingual.arguments("full", tmp_path)
    planned = Plan()
    multilingual.recipe(planned, **full)  # type: ignore[arg-type]
    rows = {row["name"]: row for row in planned.rows}
    assert rows["teacher"]["parameters"] > 160e6
    (verdict,) = [v for v in planned.verdicts if v["limit"] == "embedding_ratio"]
    assert verdict["ok"] is True


def test_embeddings_that_are_the_output_too_are_factorized_without_the_head(
    tiny_teacher: Path, tiny_task: TextClassification, tmp_path: Path
) -> None:
    """A masked language model's output matrix is its table (tied); as a classifier's base it comes without it."""
    from transformers import BertForMaskedLM

    language = BertForMaskedLM.from_pretrained(tiny_teacher)
    assert language.get_output_embeddings().weight is language.get_input_embeddings().weight
    language.save_pretrained(tmp_path / "language")
    base = load_classifier(tmp_path / "language", tiny_task.data.labels, replace_head=True)
    save(base, load_tokenizer(tiny_teacher), tmp_path / "base")
    (tmp_path / "out").mkdir()
    FactorizeEmbeddings(embedding_size=SIZE, max_steps=1, bf16="no")(
        tmp_path / "out", model=tmp_path / "base", task=tiny_task
    )
    network = load_classifier(tmp_path / "out", tiny_task.data.labels)
    assert network.get_output_embeddings() is None
    assert network.get_input_embeddings().weight.shape[1] == SIZE


@pytest.mark.slow
def test_the_recipe_ends_with_its_verdicts(tmp_path: Path) -> None:
    words = ["run", "multilingual", "--smoke", "--run-dir", str(tmp_path / "run"), "--curve", "rows-4-7", "mixed-8-4"]
    assert dispatch(words) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {verdict["limit"] for verdict in report["verdicts"]} == {"embedding_ratio", "drop:accuracy"}
    assert report["ok"] is True
    found = {model["name"]: model for model in report["models"]}
    whole = found["teacher"]["embedding_bytes"]
    assert found["int8"]["embedding_bytes"] * 8 <= whole
    assert found["rows-4-7x"]["embedding_bytes"] < found["mixed-8-4x"]["embedding_bytes"] < whole
    assert "embedding bytes" in (tmp_path / "run" / "report.html").read_text()
