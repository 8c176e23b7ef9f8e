"""A masked LayerNorm computes what the smaller one will."""

import torch
from torch import nn

from hfcompress.ops.masks import MaskedLayerNorm
from hfcompress.ops.slicing import cut_layer_norm


def random_norm(size: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(size, eps=1e-12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_with_all_dimensions_it_is_the_layer_norm() -> None:
    torch.manual_seed(0)
    norm, x = random_norm(16), torch.randn(2, 3, 16)
    masked = MaskedLayerNorm(norm)
    assert torch.equal(masked(x), norm(x))
    masked.mask = torch.ones(16)
    torch.testing.assert_close(masked(x), norm(x))


def test_its_kept_outputs_are_those_of_the_cut_layer_norm_and_the_others_are_zero() -> None:
    torch.manual_seed(0)
    norm, x = random_norm(16), torch.randn(2, 3, 16) * 5 + 3
    mask = (torch.rand(16) < 0.5).float()
    kept = mask.nonzero().flatten()
    masked = MaskedLayerNorm(norm)
    masked.mask = mask
    out = masked(x)
    torch.testing.assert_close(out[..., kept], cut_layer_norm(norm, kept)(x[..., kept]))
    assert out[..., mask == 0].abs().max().item() == 0.0


def test_multiplying_the_output_of_a_plain_layer_norm_would_not_be_the_cut_one() -> None:
    """Why this module exists: mean and variance over all dimensions are not those of the kept ones."""
    torch.manual_seed(0)
    norm, x = random_norm(16), torch.randn(2, 3, 16) * 5 + 3
    kept = torch.arange(8)
    assert (norm(x)[..., kept] - cut_layer_norm(norm, kept)(x[..., kept])).abs().max().item() > 0.1


def test_a_masked_dimension_still_hears_whether_it_would_have_helped() -> None:
    torch.manual_seed(0)
    masked = MaskedLayerNorm(random_norm(4))
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0], requires_grad=True)
    masked.mask = mask
    masked(torch.randn(3, 4)).square().sum().backward()
    masked(torch.randn(3, 4)).sum().backward()
    assert mask.grad is not None
    assert mask.grad[3].item() != 0.0
