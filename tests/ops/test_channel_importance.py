"""The rankings of structured pruning, on numbers worked out by hand and against torch-pruning's own."""

from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from hfcompress.ops import channel_importance

WEIGHT = torch.tensor([[[[1.0, -2.0]]], [[[0.5, 0.5]]], [[[-3.0, 0.0]]]])  # three filters of 1 x 1 x 2


def test_l1_norm_is_the_sum_of_the_filters_absolute_weights() -> None:
    assert channel_importance.l1_norm(WEIGHT).tolist() == [3.0, 1.0, 3.0]


def test_taylor_is_the_sum_of_squared_products_not_the_square_of_their_sum() -> None:
    gradient = torch.tensor([[[[2.0, 1.0]]], [[[4.0, -4.0]]], [[[0.0, 9.0]]]])
    assert channel_importance.taylor(WEIGHT, gradient).tolist() == [4.0 + 4.0, 4.0 + 4.0, 0.0]


def test_geometric_median_is_the_sum_of_distances_to_all_filters() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    assert channel_importance.geometric_median(weight).tolist() == [5.0 + 8.0, 5.0 + 5.0, 8.0 + 5.0]


def test_the_filter_that_others_can_stand_in_for_goes_first_by_the_median_but_not_by_its_norm() -> None:
    """Figure 1 of the paper: a small filter far from the others carries what none of them does."""
    weight = torch.tensor([[0.1, 0.1], [5.0, 5.0], [5.1, 5.0], [5.0, 5.1], [9.0, 2.0]])
    assert channel_importance.l1_norm(weight).argmin() == 0
    assert channel_importance.geometric_median(weight).argmin() in (1, 2, 3)


def test_random_depends_on_the_seed_alone() -> None:
    first, again, other = (channel_importance.random(6, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= first.min() <= first.max() < 1


def scored_by_torch_pruning(importance: Any, weight: Tensor, gradient: Tensor) -> Tensor:
    network = nn.Sequential(nn.Conv2d(weight.shape[1], len(weight), 3, padding=1, bias=False), nn.Conv2d(5, 2, 1))
    graph = torch_pruning.DependencyGraph().build_dependency(network, torch.ones(1, weight.shape[1], 4, 4))
    network[0].weight.data.copy_(weight)
    network[0].weight.grad = gradient
    network[1].weight.grad = torch.ones_like(network[1].weight)
    group = graph.get_pruning_group(network[0], torch_pruning.prune_conv_out_channels, list(range(5)))
    return importance(group)


@pytest.fixture
def layer() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(5, 3, 3, 3, generator=generator) for _ in range(2))  # type: ignore[return-value]


def test_l1_norm_is_torch_prunings_of_the_first_layer(layer: tuple[Tensor, Tensor]) -> None:
    reference = torch_pruning.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None)
    torch.testing.assert_close(channel_importance.l1_norm(layer[0]), scored_by_torch_pruning(reference, *layer))


def test_geometric_median_is_torch_prunings_where_no_weight_is_negative(layer: tuple[Tensor, Tensor]) -> None:
    """Its own takes |w| before the distance, which the paper does not."""
    weight, gradient = layer[0].abs(), layer[1]
    reference = torch_pruning.importance.FPGMImportance(p=1, group_reduction="first", normalizer=None)
    expected = scored_by_torch_pruning(reference, weight, gradient)
    torch.testing.assert_close(channel_importance.geometric_median(weight), expected, rtol=1e-4, atol=1e-4)


def test_taylor_is_torch_prunings_squared_where_a_filter_has_one_weight(layer: tuple[Tensor, Tensor]) -> None:
    """Its own sums |g w| over the filter, the paper's equation 8 sums squares: the same for one weight."""
    weight, gradient = (torch.zeros(5, 3, 3, 3).index_put_((torch.arange(5),) + (torch.tensor(0),) * 3, t[:, 0, 0, 0])
                        for t in layer)  # fmt: skip
    reference = torch_pruning.importance.TaylorImportance(group_reduction="first", normalizer=None)
    expected = scored_by_torch_pruning(reference, weight, gradient).square()
    torch.testing.assert_close(channel_importance.taylor(weight, gradient), expected)
