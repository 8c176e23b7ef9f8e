"""What a group of weights is worth: the rankings that pruning chooses by."""

import torch
from torch import Tensor


def l1_norm(weight: Tensor) -> Tensor:
    """Sum of |w| of each row: [rows, columns] -> [rows]. Source: Li et al. 2017, section 3.1."""
    return weight.abs().sum(dim=1)


def magnitude(weight: Tensor) -> Tensor:
    """Root of the sum of squares of each row: [rows, columns] -> [rows]. Source: Han et al. 2015, section 3."""
    return weight.square().sum(dim=1).sqrt()


def movement(weight: Tensor, gradient: Tensor) -> Tensor:
    """The step -dL/dW * W that movement pruning adds to a weight's score (times the learning rate).

    Positive where the weight moves away from zero; a group's score is the sum over its weights.
    Source: Sanh et al. 2020, section 4.
    """
    return -gradient * weight


class TopK(torch.autograd.Function):
    """1 for the k highest scores, 0 for the others; the gradient passes straight through to the scores.

    Source: Sanh et al. 2020, section 4 (straight-through estimator of Bengio et al. 2013).
    """

    @staticmethod
    def forward(ctx: object, scores: Tensor, k: int) -> Tensor:
        mask = torch.zeros_like(scores)
        return mask.scatter_(-1, scores.topk(k, dim=-1).indices, 1.0)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def top_k(scores: Tensor, k: int) -> Tensor:
    """Mask of the k highest scores along the last dimension; straight-through in the backward pass."""
    return TopK.apply(scores, k)


def top_share(scores: Tensor, share: float) -> Tensor:
    """Mask of the highest `share` of all entries of one matrix, whatever their rows; straight-through.

    The unstructured form of Sanh et al. 2020 (its Top_v): entries, not structures, so nothing becomes smaller.
    """
    return top_k(scores.flatten(), round(share * scores.numel())).view_as(scores)


def cubic_schedule(step: int, total: int, warm_up: float, cool_down: float) -> float:
    """The share of the way from nothing pruned (0) to the target (1) at a training step.

    0 during the first `warm_up` share of the steps, then 1 - (1 - t)^3, and 1 during the last `cool_down` share.
    Source: Zhu and Gupta 2018, equation 1, with the final cool-down of Sanh et al. 2020.
    """
    begin, end = warm_up * total, (1 - cool_down) * total
    if step <= begin:
        return 0.0
    if step >= end:
        return 1.0
    return 1 - (1 - (step - begin) / (end - begin)) ** 3
