"""Rankings against the papers' formulas, by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from hfcompress.ops.importance import cubic_schedule, l1_norm, magnitude, movement, top_k, top_share


def test_l1_and_magnitude_of_rows() -> None:
    weight = torch.tensor([[3.0, -4.0], [1.0, 1.0]])
    assert l1_norm(weight).tolist() == [7.0, 2.0]
    torch.testing.assert_close(magnitude(weight), torch.tensor([5.0, 2.0**0.5]))


def test_movement_is_positive_where_a_step_of_descent_moves_a_weight_away_from_zero() -> None:
    weight, gradient = torch.tensor([2.0, 2.0, -2.0, -2.0]), torch.tensor([-1.0, 1.0, 1.0, -1.0])
    score = movement(weight, gradient)
    assert score.tolist() == [2.0, -2.0, 2.0, -2.0]
    assert torch.equal(score > 0, (weight - 0.1 * gradient).abs() > weight.abs())


def test_the_gradient_of_a_score_is_weight_times_gradient_through_the_mask() -> None:
    """Sanh et al. 2020, section 4: dL/dS = dL/da * W x, for kept and for masked weights."""
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    scores = torch.randn(3, 4, requires_grad=True)
    x, target = torch.randn(5, 4), torch.randn(5, 3)
    masked = weight * top_share(scores, 0.5)
    masked.retain_grad()
    (functional.linear(x, masked) - target).square().mean().backward()
    assert scores.grad is not None
    assert masked.grad is not None
    torch.testing.assert_close(scores.grad, -movement(weight, masked.grad))


def test_the_gradient_of_a_groups_mask_is_the_sum_over_its_weights() -> None:
    """A mask on an input of a Linear multiplies one column: its gradient is the column's sum of W * dL/dW."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    mask = torch.ones(4, requires_grad=True)
    layer(torch.randn(5, 4) * mask).square().sum().backward()
    assert mask.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(mask.grad, -movement(layer.weight.detach(), layer.weight.grad).sum(dim=0))


def test_steps_on_the_scores_accumulate_movement() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    scores = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([{"params": [scores], "lr": 0.5}, {"params": [weight], "lr": 0.1}])
    expected = torch.zeros(3)
    for target in (torch.tensor([3.0, 0.0, 1.0]), torch.tensor([2.0, -1.0, 0.0])):
        optimizer.zero_grad()
        before = weight.detach().clone()
        (weight * top_k(scores, 3) - target).square().sum().backward()
        assert weight.grad is not None
        expected += 0.5 * movement(before, weight.grad)
        optimizer.step()
    torch.testing.assert_close(scores.detach(), expected)


def test_top_k_keeps_the_highest_of_each_row_and_lets_every_gradient_through() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 4.0]], requires_grad=True)
    mask = top_k(scores, 2)
    assert mask.tolist() == [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
    factors = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    (mask * factors).sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, factors)


def test_top_share_ranks_all_entries_whatever_their_row() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [9.0, 8.0, 7.0]])
    assert top_share(scores, 0.5).tolist() == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert top_share(scores, 1.0).sum().item() == 6


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (20, 0.0), (40, 1 - 0.5**3), (50, 1 - 0.25**3), (60, 1.0), (99, 1.0), (100, 1.0)],
)
def test_the_schedule_is_cubic_between_warm_up_and_cool_down(step: int, expected: float) -> None:
    assert cubic_schedule(step, 100, 0.2, 0.4) == pytest.approx(expected)
