"""Cutting a BERT: a stock model with exactly what was kept."""

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hfcompress.architectures import albert, encoders
from hfcompress.errors import UserError


def network(layers: int = 2, **changes: Any) -> BertForSequenceClassification:
    """Hidden size 16, four heads of 4, eight neurons; weights far from their initial scale."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=8,
        max_position_embeddings=32, num_labels=3, initializer_range=0.5, **changes,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def batch() -> dict[str, torch.Tensor]:
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1)),
            "attention_mask": mask}  # fmt: skip


def everything(model: BertForSequenceClassification) -> encoders.Kept:
    layers = range(model.config.num_hidden_layers)
    return encoders.Kept(
        list(layers), [torch.arange(4) for _ in layers], [torch.arange(8) for _ in layers], torch.arange(16)
    )


def test_keeping_everything_changes_nothing() -> None:
    model = network()
    new = encoders.cut(model, everything(model))
    with torch.inference_mode():
        assert torch.equal(new(**batch()).logits, model(**batch()).logits)
    assert new.config.to_dict() == model.config.to_dict()


def test_a_dead_head_neuron_and_layer_can_be_cut_without_a_change() -> None:
    """What contributes nothing is found at the right rows and columns, and only that is removed."""
    model = network(layers=3)
    with torch.no_grad():
        for layer in encoders.layers(model):
            layer.attention.output.dense.weight[:, 4:8] = 0  # head 1
            layer.output.dense.weight[:, 5] = 0  # neuron 5
    kept = everything(model)
    for i in range(3):
        kept.neurons[i] = torch.tensor([0, 1, 2, 3, 4, 6, 7])
    with torch.inference_mode():
        torch.testing.assert_close(encoders.cut(model, kept)(**batch()).logits, model(**batch()).logits)
        wrong = encoders.Kept(kept.layers, kept.heads, [torch.arange(7)] * 3, kept.dimensions)
        assert (encoders.cut(model, wrong)(**batch()).logits - model(**batch()).logits).abs().max().item() > 1e-3


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_tables_of_relative_positions_go_with_their_layers(kind: str) -> None:
    if "position_embedding_type" not in signature(BertConfig.__init__).parameters:
        pytest.skip("transformers 5 has no tables of relative positions")
    model = network(layers=3, position_embedding_type=kind)
    with torch.inference_mode():
        assert torch.equal(encoders.cut(model, everything(model))(**batch()).logits, model(**batch()).logits)
        kept = everything(model)
        less = encoders.cut(model, encoders.Kept([0, 2], kept.heads[:2], kept.neurons[:2], kept.dimensions))
    tables = [layer.attention.self.distance_embedding.weight for layer in encoders.layers(model)]
    found = [layer.attention.self.distance_embedding.weight for layer in encoders.layers(less)]
    assert torch.equal(found[0], tables[0])
    assert torch.equal(found[1], tables[2])
    with pytest.raises(UserError, match=f"position_embedding_type {kind}"):
        albert.factorized(model, torch.eye(16)[:2])


def test_layers_are_chosen_by_their_old_numbers() -> None:
    model = network(layers=3)
    kept = everything(model)
    new = encoders.cut(model, encoders.Kept([0, 2], kept.heads[:2], kept.neurons[:2], kept.dimensions))
    assert torch.equal(
        encoders.layers(new)[1].intermediate.dense.weight, encoders.layers(model)[2].intermediate.dense.weight
    )
    assert new.config.num_hidden_layers == 2


def test_the_smaller_model_loads_as_a_stock_model(tmp_path: Path) -> None:
    model = network()
    two = torch.tensor([1, 3])
    kept = encoders.Kept([0, 1], [two, two], [torch.arange(4)] * 2, torch.arange(0, 16, 2))
    new = encoders.cut(model, kept)
    new.save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(**batch()).logits, new(**batch()).logits)
    sizes = (loaded.config.hidden_size, loaded.config.num_attention_heads, loaded.config.intermediate_size)
    assert sizes == (8, 2, 4)


@pytest.mark.parametrize(
    "kept",
    [
        encoders.Kept([0, 1], [torch.arange(4), torch.arange(3)], [torch.arange(8)] * 2, torch.arange(16)),
        encoders.Kept([0, 1], [torch.arange(4)] * 2, [torch.arange(8), torch.arange(7)], torch.arange(16)),
        encoders.Kept([0, 1], [torch.arange(2)] * 2, [torch.arange(8)] * 2, torch.arange(16)),
    ],
)
def test_shapes_that_the_stock_class_cannot_express_are_refused(kept: encoders.Kept) -> None:
    with pytest.raises(ValueError, match=r"heads"):
        encoders.cut(network(), kept)


def test_weight_scores_count_what_belongs_to_a_head_a_neuron_and_a_dimension() -> None:
    model = network(layers=1)
    layer = encoders.layers(model)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layer.attention.self.value.weight[4:8, 0] = -1  # head 1, four entries
        layer.attention.output.dense.weight[2, 15] = 3  # head 3, dimension 2
        layer.intermediate.dense.weight[6, :2] = 0.5  # neuron 6
        layer.output.dense.weight[2, 7] = -5  # neuron 7, dimension 2
        model.bert.embeddings.word_embeddings.weight[:10, 9] = 1
    heads, neurons, dimensions = encoders.weight_scores(model)
    assert heads.tolist() == [[0, 4, 0, 3]]
    assert neurons.tolist() == [[0, 0, 0, 0, 0, 0, 1, 5]]
    assert dimensions.nonzero().flatten().tolist() == [2, 9]
    assert dimensions[[2, 9]].tolist() == [8, 10]


def test_attention_maps_come_out_and_the_answers_stay(tmp_path: Path) -> None:
    model = network()
    eager = encoders.with_attention_maps(model)
    with torch.inference_mode():
        result = eager(**batch(), output_attentions=True)
        torch.testing.assert_close(result.logits, model(**batch()).logits, atol=1e-5, rtol=1e-5)
    assert result.attentions[0].shape == (3, 4, 7, 7)
    eager.save_pretrained(tmp_path)
    assert "attn" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_the_last_layer_can_start_as_the_mean_of_the_tokens() -> None:
    """[CLS] of the last layer against the mean of its inputs by hand; the padding counts nothing, gradients flow."""
    model = network()
    encoders.start_as_mean(model)
    ids = torch.arange(5, 11).repeat(2, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    result = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    before, after = result.hidden_states[-2], result.hidden_states[-1][:, 0]
    mean = torch.stack([before[0].mean(dim=0), before[1, :4].mean(dim=0)])
    expected = torch.nn.functional.layer_norm(before[:, 0] + encoders.MEAN_OVER_CLS * mean, before.shape[-1:])
    assert torch.allclose(after, expected, atol=1e-4)
    logits = torch.tanh(expected) @ model.classifier.weight.T + model.classifier.bias
    assert torch.allclose(result.logits, logits, atol=1e-4)
    result.logits[0, 0].backward()
    layer = encoders.layers(model)[-1]
    for linear in (layer.attention.self.query, layer.attention.self.value, layer.output.dense):
        assert linear.weight.grad is not None
        assert linear.weight.grad.abs().max() > 0


def test_every_linear_of_the_encoder_is_in_a_group() -> None:
    model = network()
    found = {id(getattr(parent, name)) for group in encoders.linear_groups(model) for parent, name in group}
    linears = {id(m) for n, m in model.bert.named_modules() if isinstance(m, torch.nn.Linear)}
    assert found == linears
    assert len(found) == 6 * 2 + 1
