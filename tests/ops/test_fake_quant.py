"""Fake quantization computes what its formulas say, and what int8 stands for."""

import math

import pytest
import torch
from torch import nn

from hfcompress.ops.fake_quant import (
    ActivationQuantizer,
    FakeQuantEmbedding,
    FakeQuantLinear,
    fake_quant_rows,
    integer_rows,
    row_scales,
)


def test_rows_are_scaled_by_their_largest_value() -> None:
    weight = torch.tensor([[127.0, -63.4, 0.4], [0.0, -1.0, 0.5]])
    assert row_scales(weight).tolist() == pytest.approx([1.0, 1 / 127])
    assert integer_rows(weight).tolist() == [[127, -63, 0], [0, -127, 64]]
    by_hand = torch.tensor([[127.0, -63.0, 0.0], [0.0, -1.0, 64 / 127]])
    assert torch.allclose(fake_quant_rows(weight), by_hand)


def test_integers_times_scales_are_the_fake_quantized_weights() -> None:
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    dequantized = integer_rows(weight).float() * row_scales(weight)[:, None]
    assert torch.allclose(dequantized, fake_quant_rows(weight), atol=1e-7)


def test_the_gradient_of_a_weight_passes_straight_through() -> None:
    weight = torch.tensor([[1.0, 0.3], [-0.2, 0.1]], requires_grad=True)
    (fake_quant_rows(weight) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def observed(x: torch.Tensor, symmetric: bool, learned: bool = True) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(symmetric, learned)
    quantizer.observing = True
    quantizer(x)
    quantizer.observing = False
    return quantizer


def test_an_asymmetric_range_covers_what_was_observed_and_holds_zero_exactly() -> None:
    quantizer = observed(torch.tensor([-1.0, 4.1]), symmetric=False).eval()
    assert float(quantizer.scale) == pytest.approx(5.1 / 255)
    assert int(quantizer.zero_point) == 50
    found = quantizer(torch.tensor([0.0, 0.031, 9.0, -9.0])).detach()
    assert found.tolist() == pytest.approx([0.0, 2 * 0.02, 205 * 0.02, -50 * 0.02])


def test_a_symmetric_range_has_no_zero_point() -> None:
    quantizer = observed(torch.tensor([-1.0, 2.54]), symmetric=True).eval()
    assert float(quantizer.scale) == pytest.approx(0.02)
    assert int(quantizer.zero_point) == 0
    assert quantizer(torch.tensor([0.05, -9.0])).detach().tolist() == pytest.approx([0.04, -2.56])


def test_the_step_size_learns_by_lsqs_gradient() -> None:
    """Esser et al. 2020, equation 3 and section 2.2, by hand: round(v) - v inside, the level outside, scaled."""
    quantizer = observed(torch.tensor([-1.0, 4.1]), symmetric=False)
    x = torch.tensor([[0.031, 9.0, -9.0]])  # one example of three features
    quantizer(x).sum().backward()
    v = 0.031 / float(quantizer.scale)
    by_hand = ((round(v) - v) + (255 - 50) + (0 - 50)) / math.sqrt(3 * 255)
    assert quantizer.scale.grad is not None
    assert float(quantizer.scale.grad) == pytest.approx(by_hand, rel=1e-4)


def test_the_step_size_learns_alike_however_large_the_batch() -> None:
    x, gradients = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), []
    for copies in (1, 4):
        quantizer = observed(torch.tensor([-1.0, 1.0]), symmetric=False)
        (quantizer(x.repeat(copies, 1)).sum() / copies).backward()
        assert quantizer.scale.grad is not None
        gradients.append(float(quantizer.scale.grad))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_a_moving_average_follows_the_data_in_training_only() -> None:
    quantizer = observed(torch.tensor([0.0, 1.0]), symmetric=False, learned=False)
    before = float(quantizer.scale)
    quantizer.eval()(torch.tensor([0.0, 100.0]))
    assert float(quantizer.scale) == before
    quantizer.train()(torch.tensor([0.0, 101.0]))
    assert float(quantizer.maximum) == pytest.approx(1 + 0.05 * 100)
    assert float(quantizer.scale) > before


def test_layers_that_share_a_quantizer_store_it_once() -> None:
    quantizer = ActivationQuantizer(symmetric=False, learned=True)
    pair = nn.ModuleList(FakeQuantLinear(nn.Linear(4, 4), quantizer, owner=i == 0) for i in range(2))
    assert [name for name in pair.state_dict() if name.endswith("quantizer.scale")] == ["0.quantizer.scale"]


def test_an_embedding_gives_its_quantized_rows() -> None:
    table = FakeQuantEmbedding(nn.Embedding(10, 6))
    ids = torch.tensor([[1, 7], [7, 0]])
    assert torch.allclose(table(ids), fake_quant_rows(table.weight)[ids])


def test_eight_bits_beat_four_and_rows_beat_one_scale() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 64, generator=generator) * torch.logspace(-2, 0, 64)[:, None]
    whole = weight.abs().max() / 127
    one_scale = (weight / whole).round() * whole
    assert (fake_quant_rows(weight) - weight).square().mean() < 0.2 * (one_scale - weight).square().mean()
