"""Layers that read what is cut are fitted to do without it: the formula by hand, and what it is worth."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cifar_resnet import images, trained
from hfcompress.architectures.layers import Batch, logits_of
from hfcompress.compress.prune.channel_groups import Group, Member, masked
from hfcompress.compress.prune.iterations import Plan, prune
from hfcompress.compress.prune.reconstruction import columns_that_go, elimination_scores, reconstructed
from hfcompress.ops.hessian import row_errors
from hfcompress.ops.least_squares import Elimination, without_columns
from tests.compress.test_coupling import case

__all__ = ["case"]  # the fixture


def test_a_column_that_is_twice_another_is_given_to_it() -> None:
    """x = (a, b, 2a) with a and b independent, of mean square 1: w x = (w0 + 2 w2) a + w1 b."""
    moment = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 4.0]])
    found = without_columns(torch.tensor([[3.0, 5.0, 7.0]]), moment, torch.tensor([0, 1]), damping=0)
    torch.testing.assert_close(found, torch.tensor([[3.0 + 2 * 7, 5.0, 0.0]]))


def test_it_is_the_least_squares_solution_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    weight, kept = torch.randn(4, 6, generator=generator), torch.tensor([0, 2, 5])
    expected = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution.T
    found = without_columns(weight, inputs.T @ inputs / 200, kept, damping=0)
    torch.testing.assert_close(found[:, kept], expected, rtol=1e-4, atol=1e-4)
    assert not found[:, [1, 3, 4]].any()


def test_each_elimination_costs_what_the_best_fit_without_it_loses() -> None:
    """Two of three blocks, one after the other, against the least squares of what is left each time."""
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(200, 6, generator=generator) @ torch.randn(6, 6, generator=generator)).double()
    weight, moment = torch.randn(4, 6, generator=generator).double(), inputs.T @ inputs / 200
    blocks = torch.tensor([[0, 3], [1, 4], [2, 5]])
    elimination, before, stays = Elimination(weight, moment, blocks, damping=0), 0.0, torch.ones(6, dtype=torch.bool)
    for unit in (1, 0):
        cost = float(elimination.costs()[unit])
        stays[blocks[unit]] = False
        fitted = without_columns(weight, moment, stays.nonzero().flatten(), damping=0)
        lost = float(row_errors(weight - fitted, moment).sum() / row_errors(weight, moment).sum())
        assert cost == pytest.approx(lost - before, rel=1e-6)
        elimination.remove(unit)
        torch.testing.assert_close(elimination.weight, fitted)
        assert elimination.costs()[unit] == 0
        before = lost


def test_a_channel_that_another_can_replace_is_worth_least() -> None:
    """The third channel is twice the first, of all the largest weights; without one of the two nothing is lost."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 3, bias=False))
    with torch.no_grad():
        network[0].weight[2] = 2 * network[0].weight[0]
        network[0].weight[3] = torch.tensor([3.0, -2.0, 1.0])[:, None, None]
    groups = [Group("0", 4, 1, 1, (Member("0", True, torch.arange(4), torch.arange(4)),
                                   Member("1", False, torch.arange(4), torch.arange(4))))]  # fmt: skip
    found = elimination_scores(network, groups, [{"input": torch.randn(8, 3, 8, 8)}])["0"]
    order = found.argsort().tolist()
    assert order[0] in (0, 2)
    assert found[order[0]] < 0.2 * found[order[1]]


def test_where_the_inputs_say_nothing_the_weights_stay() -> None:
    found = without_columns(torch.tensor([[3.0, 5.0]]), torch.zeros(2, 2), torch.tensor([1]))
    assert found.tolist() == [[0.0, 5.0]]


def test_every_architectures_readers_come_nearer_to_what_they_answered(case: tuple[Any, Batch, list[Group]]) -> None:
    """Half of one group's units gone: the outputs of the layer that reads them, fitted and not; bias and stride too.

    Moments may have been added up in bf16, by which the predicted error is a few percent off.
    """
    network, batch, groups = case
    generator = torch.Generator().manual_seed(3)
    many = {name: torch.cat([tensor] * 4) for name, tensor in batch.items()}
    if "pixel_values" in many:
        many["pixel_values"] = torch.randn(8, 3, 32, 32, generator=generator)
    for group in groups:
        removed = {group.root: list(range(group.units // 2))}
        parameters, errors = reconstructed(network, groups, removed, [many])
        assert set(errors) == set(columns_that_go(network, groups, removed))
        assert errors
        for layer, error in errors.items():
            whole = output_of(network, layer, many)
            with masked(network, groups, removed):
                plain = output_of(network, layer, many)
            fitted = copy.deepcopy(network)
            fitted.load_state_dict(parameters, strict=False)
            given = output_of(fitted, layer, many)  # the columns that go are 0 in it
            scale = whole.square().sum()
            if len(errors) == 1:  # else a layer before this one was fitted too, and gives other inputs
                assert float((given - whole).square().sum() / scale) == pytest.approx(error, rel=0.1, abs=1e-4)
                assert error < float((plain - whole).square().sum() / scale)


def output_of(network: nn.Module, layer: str, batch: Batch) -> Tensor:
    """What a layer gives."""
    seen = list[Tensor]()
    hook = network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output))
    logits_of(network, batch)
    hook.remove()
    return seen[0]


def test_a_pruned_network_keeps_more_with_it(tmp_path: Path, real_data: Path) -> None:
    """The trained ResNet-20 on photographs, one cut to 0.6 of its FLOPs, no training: at least 10 points more."""
    pixels, labels = images(real_data, "train", 256)
    test, truth = images(real_data, "test", 400)
    batches = [{"pixel_values": pixels[i : i + 64], "labels": labels[i : i + 64]} for i in range(0, 256, 64)]
    right = {}
    for fit in (False, True):
        network = trained(real_data, 20)
        plan = Plan("flops", 0.6, "l1", reconstruct=fit)
        found = prune(network, plan, tmp_path / str(fit), batches, lambda *_: torch.zeros(()), lambda *_: {})
        assert bool(found["iterations"][0]["reconstruction_errors"]) == fit
        right[fit] = float((logits_of(network, {"pixel_values": test}).argmax(dim=1) == truth).float().mean())
    assert right[True] > right[False] + 0.1, right
