"""Structured pruning ranks, holds back what must stay, meets its target, and goes on after a kill."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar_resnet import CifarResNet, Examples, images, trained
from hfcompress.architectures.layers import Batch
from hfcompress.compress.prune.channel_groups import Group, find_groups
from hfcompress.compress.prune.iterations import choose, prune, taylor_of_batches, unit_scores
from hfcompress.compress.prune.layer_costs import Costs
from hfcompress.compress.prune.target import Importance, Plan, one_target
from hfcompress.errors import UserError
from hfcompress.planning.machine import Machine
from hfcompress.training.trainer import Train, train

PLAN = Plan("parameters", 0.5, "l1")


class Two(nn.Module):
    """Two hidden layers of four and eight channels, on pixels [batch, 4, 1, 1]."""

    def __init__(self, first: int = 4, second: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, first, 1, bias=False)
        self.second = nn.Conv2d(first, second, 1, bias=False)
        self.last = nn.Linear(second, 4, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(pixels)))).flatten(1))


@pytest.fixture
def two() -> tuple[list[Group], Costs]:
    network, example = Two(), {"pixels": torch.ones(1, 4, 1, 1)}
    groups, _ = find_groups(network, example)
    return groups, Costs(network, example, groups, Machine(1))


SCORES = {
    "first": torch.tensor([9.0, 1.0, 8.0, 7.0]),
    "second": torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 11.0, 12.0]),
}


def test_global_takes_the_lowest_of_all_layers(two: tuple[list[Group], Costs]) -> None:
    """16 + 32 + 32 parameters; without first's 1 and second's 2 and 3: 3 x 4 + 3 x 6 + 6 x 4 = 54."""
    groups, costs = two
    assert costs.total("parameters", costs.whole()) == 80
    chosen = choose(replace(PLAN, ranking="global"), groups, SCORES, costs, 54)
    assert (chosen.removed, chosen.held) == ({"first": [1], "second": [0, 1]}, [])
    assert choose(PLAN, groups, SCORES, costs, 53).removed == {"first": [1], "second": [0, 1, 2]}


def test_taylor_is_ranked_by_what_is_lost_for_each_parameter_saved(two: tuple[list[Group], Costs]) -> None:
    """A channel of the first layer has 4 + 8 parameters, one of the second 4 + 4: 13 / 12 is less than 9 / 8."""
    groups, costs = two
    scores = {"first": torch.full((4,), 13.0), "second": torch.full((8,), 9.0)}
    assert choose(PLAN, groups, scores, costs, 79).removed == {"second": [0]}
    assert choose(replace(PLAN, importance="taylor"), groups, scores, costs, 79).removed == {"first": [0]}


def test_uniform_takes_the_same_share_of_every_layer(two: tuple[list[Group], Costs]) -> None:
    groups, costs = two
    chosen = choose(replace(PLAN, ranking="uniform"), groups, SCORES, costs, 32)  # 2 x 4 + 2 x 4 + 4 x 4
    assert chosen.removed == {"first": [1, 3], "second": [0, 1, 2, 3]}


def test_what_would_be_emptied_keeps_one_and_is_named(two: tuple[list[Group], Costs]) -> None:
    groups, costs = two
    low = {"first": torch.tensor([0.1, 0.2, 0.3, 0.4]), "second": SCORES["second"]}
    chosen = choose(PLAN, groups, low, costs, 20)
    assert chosen.removed["first"] == [0, 1, 2]
    assert chosen.held == ["first"]


def test_widths_are_rounded_up_to_whole_multiples(two: tuple[list[Group], Costs]) -> None:
    groups, costs = two
    chosen = choose(replace(PLAN, round_to=4), groups, SCORES, costs, 54)
    assert chosen.removed == {"second": [0, 1, 2, 3]}, "4 x 4 + 4 x 4 + 4 x 4 = 48"


def test_a_share_that_would_empty_layers_is_refused_in_one_line(two: tuple[list[Group], Costs]) -> None:
    groups, costs = two
    with pytest.raises(UserError, match=r"keep_parameters 0\.5: would empty layers.* 0\.113 of what") as error:
        choose(PLAN, groups, SCORES, costs, 8.9)  # 4 + 1 + 4 = 9 are the least
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"flops": None, "bytes": None}, "exactly one"),
        ({"flops": 0.5, "bytes": 0.5}, "exactly one"),
        ({"flops": 0.0, "bytes": None}, r"keep_flops 0: a share"),
        ({"flops": None, "bytes": 1.5}, r"keep_bytes 1\.5: a share"),
        ({"flops": float("nan"), "bytes": None}, "a share"),
    ],
)
def test_there_is_exactly_one_possible_target(keep: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        one_target(keep)


def test_each_iteration_leaves_the_same_share_of_what_it_finds() -> None:
    assert [Plan("flops", 0.25, iterations=2).share(i) for i in (1, 2)] == [0.5, 0.25]


def test_a_unit_is_worth_what_all_layers_that_write_it_give_it() -> None:
    """A residual stream of two writers; norms are divided by the group's mean, Taylor is not."""
    torch.manual_seed(0)
    network = Residual()
    groups, _ = find_groups(network, {"pixels": torch.ones(1, 3, 4, 4)})
    stream = next(group for group in groups if group.root == "stem")
    filters = {"stem": torch.tensor([1.0, 2.0, 3.0]), "out": torch.tensor([10.0, 0.0, 2.0])}
    total = torch.tensor([11.0, 2.0, 5.0])
    assert torch.equal(unit_scores(network, [stream], "taylor", filters.__getitem__)["stem"], total)
    torch.testing.assert_close(unit_scores(network, [stream], "l1", filters.__getitem__)["stem"], total / 6)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.out = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)
        self.last = nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        stem = self.stem(pixels)
        return self.last((stem + self.out(self.inner(stem))).mean(dim=(2, 3)))


def planted(useful: Tensor, others: Tensor, read: float) -> Two:
    """Four channels that carry the class and eight that do not; `read` is how much of those is read."""
    network = Two(12, 4)
    with torch.no_grad():
        network.first.weight.copy_(torch.cat([useful * torch.eye(4), others])[:, :, None, None])
        carried = torch.cat([torch.eye(4), read * torch.ones(4, 8)], dim=1)
        network.second.weight.copy_(carried[:, :, None, None])
        network.last.weight.copy_(torch.eye(4))
    return network


def accuracy_after(importance: Importance, network: Two, folder: Path, seed: int = 0) -> float:
    """With a third of the first layer's channels and no training."""
    labels = torch.arange(4).repeat(8)
    noise = 0.05 * torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    pixels = (F.one_hot(labels, 4) + noise)[:, :, None, None]
    batch = {"pixels": pixels, "labels": labels}
    pruned = copy.deepcopy(network)
    plan = Plan("parameters", (4 * 4 + 4 * 4 + 16) / (12 * 4 + 12 * 4 + 16), importance, seed=seed, roots=("first",))
    prune(pruned, plan, folder, [batch], cross_entropy, lambda *_: {})
    assert pruned.first.out_channels == 4
    return float((pruned(pixels).argmax(dim=1) == labels).float().mean())


def cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "index")}
    return F.cross_entropy(network(**inputs), batch["labels"])


def test_l1_and_taylor_keep_the_channels_that_carry_the_class_and_random_does_not(tmp_path: Path) -> None:
    """What is small is noise for both; what is large and hardly read fools L1 and not Taylor."""
    others = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    small, large = planted(torch.tensor(2.0), 0.05 * others, 0.05), planted(torch.tensor(2.0), 9 * others, 0.0)
    assert accuracy_after("l1", small, tmp_path / "a") == 1.0
    assert accuracy_after("taylor", small, tmp_path / "b") == 1.0
    assert accuracy_after("taylor", large, tmp_path / "c") == 1.0
    assert accuracy_after("l1", large, tmp_path / "d") < 0.6
    drawn = [accuracy_after("random", small, tmp_path / f"r{seed}", seed) for seed in range(5)]
    assert np.mean(drawn) < 0.8


def test_taylor_is_the_mean_over_batches_of_the_squares() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(2.0)
        network[1].weight.fill_(3.0)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return network(batch["x"]).sum()  # 6 x: both gradients times their weight are 6 x

    found = taylor_of_batches(network, [{"x": torch.full((1, 1), x)} for x in (1.0, 2.0)], loss)
    assert found["0"].tolist() == found["1"].tolist() == [(36 + 144) / 2]
    assert network[0].weight.grad is None


def test_every_iteration_is_trained_and_the_target_is_met(tmp_path: Path) -> None:
    network, seen = CifarResNet(1), []
    batch = {"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.arange(8)}

    def note(pruned: nn.Module, work: Path, number: int) -> dict[str, Any]:
        seen.append((number, sum(p.numel() for p in pruned.parameters())))
        return {"number": number}

    found = prune(network, Plan("flops", 0.4, "l1", iterations=3), tmp_path, [batch], cross_entropy, note)
    assert [number for number, _ in seen] == [1, 2, 3]
    assert seen[0][1] > seen[1][1] > seen[2][1] == found["after"]["parameters"]
    assert 0.35 < found["after"]["flops"] / found["before"]["flops"] <= 0.4
    assert [entry["training"] for entry in found["iterations"]] == [{"number": n} for n in (1, 2, 3)]
    assert max(entry["largest_difference_of_cut_to_masked"] for entry in found["iterations"]) < 1e-4
    removed = sum(entry["removed"].get("layer3.0.conv1", 0) for entry in found["iterations"])
    assert found["widths"]["layer3.0.conv1"] == [64, 64 - removed]
    assert network.layer3[0].conv1.out_channels == 64 - removed  # type: ignore[index,union-attr]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("dies_in", [1, 3])
def test_a_killed_run_ends_in_the_same_network(tmp_path: Path, dies_in: int) -> None:
    """Killed after a training and before its weights are kept: finished iterations are not trained again."""
    torch.manual_seed(0)
    network = CifarResNet(1)
    batch = {"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.arange(8)}
    plan, calls = Plan("flops", 0.4, "taylor", iterations=3), list[int]()

    def step(pruned: nn.Module, work: Path, number: int) -> dict[str, Any]:
        calls.append(number)
        optimizer = torch.optim.SGD(pruned.parameters(), lr=0.05)
        cross_entropy(pruned.train(), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if number == dies_in and len(calls) == dies_in:
            raise KilledError
        return {}

    whole, killed, resumed = (copy.deepcopy(network) for _ in range(3))
    with pytest.raises(KilledError):
        prune(killed, plan, tmp_path / "cut", [batch], cross_entropy, step)
    again = prune(resumed, plan, tmp_path / "cut", [batch], cross_entropy, step)
    assert calls == [*range(1, dies_in + 1), *range(dies_in, 4)]
    calls += [0] * 9  # and the whole one is not killed
    expected = prune(whole, plan, tmp_path / "whole", [batch], cross_entropy, step)
    assert again == expected
    states = (whole.state_dict(), resumed.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.slow
def test_taylor_and_l1_beat_random_on_a_trained_resnet_20(tmp_path: Path, real_data: Path) -> None:
    """A quarter of the FLOPs gone, a few steps of training, on images that none of them saw."""
    pixels, labels = images(real_data, "train", 1500)
    test, truth = images(real_data, "test", 800)
    plain, varied = Examples(pixels, labels, varied=False), Examples(pixels, labels, varied=True)
    batches = [plain_batch(plain, i) for i in range(0, 512, 64)]
    options = Train(max_steps=10, learning_rate=5e-4, per_device_train_batch_size=64, bf16="no")

    def finetune(network: Any, work: Path, number: int) -> dict[str, Any]:
        return train(network, None, work, options, varied, loss=cross_entropy).as_dict()

    right = {}
    for importance in ("taylor", "l1", "random"):
        network = trained(real_data, 20)
        plan = Plan("flops", 0.75, importance, iterations=2)  # type: ignore[arg-type]
        prune(network, plan, tmp_path / importance, batches, cross_entropy, finetune)
        with torch.no_grad():
            right[importance] = float((network.eval()(test).argmax(dim=1) == truth).float().mean())
    assert max(right["taylor"], right["l1"]) > right["random"] + 0.02, right
    assert right["taylor"] > 0.7, right


def plain_batch(plain: Examples, first: int) -> Batch:
    rows = slice(first, first + 64)
    return {"pixel_values": plain.pixels[rows], "labels": plain.labels[rows]}
