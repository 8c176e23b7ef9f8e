"""The pruner's masks compute what the cut model will, and its scores follow the paper."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hfcompress.architectures import encoders
from hfcompress.compress.prune.pruner import KINDS, Pruner
from hfcompress.ops.importance import movement
from tests.architectures.test_bert import batch, network


def pruner_on(model: Any, importance: str = "movement", heads: int = 2, neurons: int = 3) -> Pruner:
    return Pruner(model, heads, neurons, importance, warm_up=0.2, cool_down=0.4)


def randomize(pruner: Pruner, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for kind in KINDS:
        scores = getattr(pruner, kind)
        scores.data = torch.randn(scores.shape, generator=generator)


def outputs(model: Any) -> tuple[Tensor, Tensor]:
    """Logits, and the pooler's output."""
    with torch.inference_mode():
        return model(**batch()).logits, model.bert(**batch())[1]


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_model_computes_what_the_masked_one_did(seed: int) -> None:
    model = network()
    pruner = pruner_on(model)
    randomize(pruner, seed)
    pruner.finish()
    masked, masked_pooled = outputs(model)
    dimensions = pruner.kept().dimensions
    slim = pruner.cut()
    logits, pooled = outputs(slim)
    torch.testing.assert_close(logits, masked, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, masked_pooled[:, dimensions], atol=1e-5, rtol=0)
    assert slim.config.hidden_size == 8
    assert not [n for n, _ in slim.named_parameters() if "pruner" in n or "norm." in n.split("LayerNorm")[0]]
    assert all(parameter.abs().sum() > 0 for name, parameter in slim.named_parameters() if name.endswith("weight"))


def test_at_the_start_nothing_is_masked() -> None:
    model = network()
    before, _ = outputs(model)
    pruner_on(model)
    torch.testing.assert_close(outputs(model)[0], before)


def test_a_masks_gradient_is_minus_the_movement_of_its_groups_weights() -> None:
    """Scores of heads and neurons: the sum of W * dL/dW over the columns that the mask multiplies."""
    model = network()
    pruner = pruner_on(model)
    torch.nn.functional.cross_entropy(model(**batch()).logits, torch.tensor([0, 1, 2])).backward()
    for i, layer in enumerate(encoders.layers(model)):
        heads, neurons = layer.attention.output.dense.weight, layer.output.dense.weight
        of_columns = -movement(heads.detach(), heads.grad).sum(dim=0)
        torch.testing.assert_close(pruner.heads.grad[i], of_columns.view(4, 4).sum(dim=1))
        torch.testing.assert_close(pruner.neurons.grad[i], -movement(neurons.detach(), neurons.grad).sum(dim=0))
    assert pruner.dimensions.grad.abs().min().item() > 0


def test_a_dropped_structure_still_gets_a_gradient_and_can_come_back() -> None:
    model = network()
    pruner = pruner_on(model)
    randomize(pruner)
    pruner.fraction = 1.0
    model(**batch()).logits.sum().backward()
    assert (pruner.masks["heads"] == 0).any()
    assert pruner.heads.grad.abs().min().item() > 0
    dropped = (pruner.masks["heads"][0] == 0).nonzero().flatten()[0]
    pruner.heads.data[0, dropped] = 100.0
    model(**batch())
    assert pruner.masks["heads"][0, dropped].item() == 1.0


def test_masks_follow_the_schedule_then_freeze() -> None:
    model = network()
    pruner = pruner_on(model)
    randomize(pruner)
    kept = {}
    for step in range(100):
        pruner.advance(step, 100)
        model(**batch())
        kept[step] = int(pruner.masks["neurons"][0].sum())
    assert [kept[s] for s in (0, 20, 30, 60, 99)] == [8, 8, 5, 3, 3]
    assert list(kept.values()) == sorted(kept.values(), reverse=True)
    frozen = pruner.masks["neurons"].clone()
    randomize(pruner, seed=9)
    model(**batch())
    assert torch.equal(pruner.masks["neurons"], frozen)


def test_every_layer_keeps_as_many_heads_and_neurons() -> None:
    pruner = pruner_on(network(layers=3))
    randomize(pruner)
    pruner.finish()
    assert [len(h) for h in pruner.kept().heads] == [2, 2, 2]
    assert [len(n) for n in pruner.kept().neurons] == [3, 3, 3]


def test_the_schedule_of_the_record_begins_full_and_ends_at_the_target() -> None:
    schedule = pruner_on(network()).schedule(200)
    assert schedule[0] == {"step": 0, "heads": 4, "neurons": 8, "dimensions": 16}
    assert schedule[-1] == {"step": 200, "heads": 2, "neurons": 3, "dimensions": 8}
    assert len(schedule) == 21


@pytest.mark.parametrize("importance", ["magnitude", "l1"])
def test_the_baselines_keep_what_is_large_now(importance: str) -> None:
    model = network()
    pruner = pruner_on(model, importance)
    with torch.no_grad():
        for layer in encoders.layers(model):
            layer.intermediate.dense.weight[[1, 4, 6]] *= 10
            layer.attention.self.value.weight[8:16] *= 10
    pruner.finish()
    assert [n.tolist() for n in pruner.kept().neurons] == [[1, 4, 6], [1, 4, 6]]
    assert [h.tolist() for h in pruner.kept().heads] == [[2, 3], [2, 3]]
    assert not any(getattr(pruner, kind).requires_grad for kind in KINDS)


def test_scores_and_frozen_masks_survive_in_a_state_dict() -> None:
    first = network()
    pruner = pruner_on(first)
    randomize(pruner)
    pruner.finish()
    second = network()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    restored = pruner_on(second)
    missing = second.load_state_dict(first.state_dict(), strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    restored.finish()  # frozen already: nothing is chosen anew
    assert restored.kept_as_lists() == pruner.kept_as_lists()
    torch.testing.assert_close(outputs(second)[0], outputs(first)[0])


def test_a_frozen_pruner_still_gives_every_score_a_gradient_for_ddp() -> None:
    model = network()
    pruner = pruner_on(model)
    pruner.finish()
    model(**batch()).logits.sum().backward()
    assert all(getattr(pruner, kind).grad is not None for kind in KINDS)
    assert all(getattr(pruner, kind).grad.abs().max().item() == 0.0 for kind in KINDS)
