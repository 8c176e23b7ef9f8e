"""What is cut together is found, what is cut is what was masked, and what cannot be cut is left alone or refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from benchmarks.cifar_resnet import CifarResNet
from hfcompress.architectures.layers import Batch, Layer, logits_of
from hfcompress.compress.prune import channel_groups
from hfcompress.compress.prune.channel_groups import Group, Units, cut, cut_and_check, find_groups, masked
from hfcompress.compress.prune.layer_costs import Costs
from hfcompress.errors import UserError
from hfcompress.planning.machine import Machine

PIXELS = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
TOKENS = {"input_ids": torch.arange(20).view(2, 10) % 7, "attention_mask": torch.ones(2, 10, dtype=torch.long)}
BERT_ROOTS = [f"bert.encoder.layer.{i}.{n}" for i in (0, 1) for n in ("attention.self.query", "intermediate.dense")]


def resnet(layer_type: str) -> nn.Module:
    sizes = [8, 16] if layer_type == "basic" else [16, 32]
    config = ResNetConfig(embedding_size=8, hidden_sizes=sizes, depths=[1, 2], layer_type=layer_type, num_labels=3)
    return ResNetForImageClassification(config)


def mobilenet() -> nn.Module:
    return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.35, image_size=32, num_labels=3))


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, num_labels=3,
        attn_implementation="eager",
    )  # fmt: skip
    return BertForSequenceClassification(config)


NETWORKS: dict[str, Any] = {
    "resnet-basic": (lambda: resnet("basic"), PIXELS, None),
    "resnet-bottleneck": (lambda: resnet("bottleneck"), PIXELS, None),
    "mobilenet": (mobilenet, PIXELS, None),
    "bert": (bert, TOKENS, BERT_ROOTS),
    "cifar-resnet": (lambda: CifarResNet(1), PIXELS, None),
}


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Batch, list[Group]]:
    """A network whose every weight and statistic is random, its inputs and its groups."""
    make, batch, roots = NETWORKS[request.param]
    torch.manual_seed(0)
    network = make().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    return network, batch, find_groups(network, batch, roots)[0]


def every_other(groups: list[Group]) -> Units:
    return {group.root: list(range(0, group.units, 2)) for group in groups}


def test_a_cut_network_answers_as_the_masked_one_did(case: tuple[nn.Module, Batch, list[Group]]) -> None:
    network, batch, groups = case
    whole = logits_of(network, batch)
    removed = every_other(groups)
    with masked(network, groups, removed):
        expected = logits_of(network, batch)
    cut(network, batch, groups, removed)
    found = logits_of(network, batch)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - whole).abs().max() > 1e-3, "what was cut did something"
    after = {group.root: group.units for group in find_groups(network, batch, [g.root for g in groups])[0]}
    assert after == {group.root: group.units // 2 for group in groups}


def test_flops_and_parameters_are_those_of_the_cut_network(case: tuple[nn.Module, Batch, list[Group]]) -> None:
    """Against torch's own counter, which counts a multiplication and an addition as two."""
    network, batch, groups = case
    one = {name: tensor[:1] for name, tensor in batch.items()}
    costs, removed = Costs(network, one, groups, Machine(1)), every_other(groups)
    kept = {group.root: group.units - len(removed[group.root]) for group in groups}
    for units, before in ((costs.whole(), True), (kept, False)):
        if not before:
            cut(network, batch, groups, removed)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(**one)
        assert costs.total("flops", units) == counter.get_total_flops()
        assert costs.total("parameters", units) == sum(p.numel() for p in network.parameters())
        floats = sum(t.numel() for t in network.state_dict().values() if t.is_floating_point())
        assert costs.total("bytes", units) == 4 * floats


def test_a_mask_instead_of_a_cut_is_refused(
    case: tuple[nn.Module, Batch, list[Group]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batch, groups = case
    removed = every_other(groups)
    costs = Costs(network, {name: t[:1] for name, t in batch.items()}, groups, Machine(1))
    parameters = int(costs.total("parameters", {g.root: g.units - len(removed[g.root]) for g in groups}))

    def only_zeroed(network: nn.Module, example: Batch, groups: list[Group], removed: Units) -> None:
        masked(network, groups, removed).__enter__()

    monkeypatch.setattr(channel_groups, "cut", only_zeroed)
    with pytest.raises(RuntimeError, match="something was left in it"):
        cut_and_check(network, batch, groups, removed, batch, parameters)


def test_other_channels_than_the_chosen_ones_are_seen(
    case: tuple[nn.Module, Batch, list[Group]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batch, groups = case
    removed = every_other(groups)
    costs = Costs(network, {name: t[:1] for name, t in batch.items()}, groups, Machine(1))
    parameters = int(costs.total("parameters", {g.root: g.units - len(removed[g.root]) for g in groups}))
    true_cut = channel_groups.cut
    others = {root: [unit + 1 for unit in units] for root, units in removed.items()}
    monkeypatch.setattr(
        channel_groups, "cut", lambda network, example, found, _: true_cut(network, example, found, others)
    )
    with pytest.raises(RuntimeError, match="differ by"):
        cut_and_check(network, batch, groups, removed, batch, parameters)


def test_heads_go_whole_and_attention_knows_how_many_are_left() -> None:
    torch.manual_seed(0)
    network = bert().eval()
    groups, _ = find_groups(network, TOKENS, BERT_ROOTS)
    assert [(g.root, g.units, g.size) for g in groups[:2]] == [(BERT_ROOTS[0], 4, 8), (BERT_ROOTS[1], 24, 1)]
    cut(network, TOKENS, groups, {BERT_ROOTS[0]: [1]})
    attention: Any = network.get_submodule("bert.encoder.layer.0.attention.self")
    assert (attention.num_attention_heads, attention.all_head_size, attention.query.out_features) == (3, 24, 24)
    assert network.get_submodule("bert.encoder.layer.1.attention.self").num_attention_heads == 4


def test_classes_residual_streams_with_layer_norm_and_padded_shortcuts_are_left_alone() -> None:
    assert sorted(find_groups(bert(), TOKENS)[1]) == ["bert.embeddings.word_embeddings", "classifier"]
    groups, left = find_groups(CifarResNet(1), PIXELS)
    assert [group.root for group in groups] == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    assert sorted(left) == ["conv1", "linear"]


class Shared(nn.Module):
    """Two layers with one weight, or one layer that is called twice."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second, self.tied = nn.Linear(4, 4), nn.Linear(4, 4), tied
        self.last = nn.Linear(4, 2)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.second if self.tied else self.first)(self.first(x)))


@pytest.mark.parametrize(("tied", "words"), [(True, "two modules share"), (False, "first is used 2 times")])
def test_a_layer_in_two_places_is_refused_in_one_line(tied: bool, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        find_groups(Shared(tied), {"x": torch.ones(1, 4)})
    assert "\n" not in str(error.value)


def test_a_layers_cost_by_hand() -> None:
    """3 x 3 over 8 -> 16 channels on 10 x 10 outputs: 16 x 8 x 9 weights, each used 100 times, 2 FLOPs each time."""
    plain = Layer("convolution", 8, 16, kernel=(3, 3), stride=(2, 2), size=(20, 20), positions=100)
    assert (plain.parameters, plain.flops, plain.bytes) == (1152, 230_400, 4608)
    depthwise = Layer("convolution", 8, 8, groups=8, kernel=(3, 3), positions=100, bias=True)
    assert (depthwise.parameters, depthwise.narrowed(3, 3).parameters, depthwise.flops) == (80, 50, 14_400)
    assert Layer("norm", 8, 8).bytes == 4 * (16 + 16)
    assert (plain.narrowed(2, 5).rounded().inputs, plain.narrowed(2, 5).rounded().outputs) == (8, 16)


def test_latency_is_the_sum_of_what_each_layer_takes_at_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is a pretended one, that takes a millisecond a thousand weights; the graphs are real."""
    network = CifarResNet(1).eval()
    groups, _ = find_groups(network, PIXELS)
    machine, asked = Machine(1), []

    def pretend(key: Layer, graph: Any, shape: tuple[int, ...]) -> float:
        asked.append((key, sum(value.size for value in graph.values.values()), shape))
        return key.weights / 1000

    monkeypatch.setattr(machine, "graph_ms", pretend)
    costs = Costs(network, {"pixel_values": PIXELS["pixel_values"][:1]}, groups, machine)
    rounded = [layer.rounded() for layer in costs.layers.values() if layer.kind != "norm"]
    assert costs.total("latency", costs.whole()) == pytest.approx(sum(layer.weights for layer in rounded) / 1000)
    assert all(key.weights == size for key, size, _ in asked)
    half = costs.whole() | {"layer3.0.conv1": 32}
    assert costs.total("latency", costs.whole()) - costs.total("latency", half) == pytest.approx(
        (32 * 32 * 9 + 64 * 32 * 9) / 1000
    )


def test_a_convolution_and_a_linear_layer_are_really_timed() -> None:
    machine = Machine(1)
    layers = [
        Layer("convolution", 8, 16, kernel=(3, 3), stride=(2, 2), size=(16, 16), positions=64),
        Layer("convolution", 8, 8, groups=8, kernel=(3, 3), size=(16, 16), positions=256),
        Layer("linear", 16, 8, positions=4),
    ]
    costs = Costs(nn.Identity(), {"input": torch.ones(1, 1)}, [], machine)
    assert all(costs.milliseconds(layer) >= 0 for layer in layers)
    assert len(machine._known) == 3


def test_a_network_is_left_as_it_was_by_looking_for_groups() -> None:
    network = CifarResNet(1).train()
    before = copy.deepcopy(network.state_dict())
    find_groups(network, PIXELS)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
