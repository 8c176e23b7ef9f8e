"""Weight-only quantization computes what its formulas say, beats rounding, and keeps up with neural-compressor."""

import logging
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hfcompress.ops import autoround as autoround_file
from hfcompress.ops import awq as awq_file
from hfcompress.ops import hessian as moments
from hfcompress.ops import hqq as hqq_file
from hfcompress.ops import rtn as rtn_file
from hfcompress.ops.autoround import autoround
from hfcompress.ops.awq import awq_scales, clip_search, column_sizes
from hfcompress.ops.gptq import gptq
from hfcompress.ops.grid import Grid, Quantized, encode, scales_and_zeros
from hfcompress.ops.hessian import SecondMoment, output_error, relative_output_error
from hfcompress.ops.hqq import hqq
from hfcompress.ops.packing import unpack
from hfcompress.ops.rtn import rtn

GRIDS = [Grid(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (32, 0) for symmetric in (True, False)]
Algorithm = Callable[[Tensor, Tensor, Grid], Quantized]


def few_steps(weight: Tensor, hessian: Tensor, grid: Grid) -> Quantized:
    return autoround(weight, hessian, grid, steps=40)


ALGORITHMS: dict[str, Algorithm] = {
    "rtn": lambda weight, hessian, grid: rtn(weight, grid),
    "hqq": lambda weight, hessian, grid: hqq(weight, grid),
    "gptq": gptq,
    "autoround": few_steps,
}
CALIBRATED = {name: ALGORITHMS[name] for name in ("gptq", "autoround")}


def second_moment(inputs: Tensor) -> Tensor:
    moment = SecondMoment(inputs.shape[1])
    moment.add(inputs)
    return moment.finish().hessian


def layer(rows: int = 96, columns: int = 256, tokens: int = 1024, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and inputs Z A that are correlated and have some columns of outliers."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator) * torch.logspace(0, -1, columns) @ mix
    inputs[:, torch.randperm(columns, generator=generator)[:4]] *= 15
    return torch.randn(rows, columns, generator=generator) * 0.02, inputs


def same(one: Quantized, other: Quantized) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in ("codes", "scales", "zeros"))


# The second moment


@pytest.mark.parametrize("block", [3, 2048])
def test_batches_add_up_to_the_second_moment_of_all_inputs(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(moments, "BLOCK", block)
    inputs = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(8)
    for batch in inputs.split([20, 0, 30]):
        moment.add(batch)
    moment.finish()
    assert moment.count == 50
    assert torch.allclose(moment.hessian, inputs.T @ inputs / 50, atol=1e-6)
    assert torch.equal(moment.hessian, moment.hessian.T)
    assert torch.allclose(moment.mean_abs, inputs.abs().mean(0))


def test_the_output_error_is_that_of_the_outputs_themselves() -> None:
    weight, inputs = layer()
    quantized, hessian = rtn(weight, Grid(4, 32)), second_moment(inputs)
    outputs, change = inputs @ weight.T, inputs @ (weight - quantized.dequantize()).T
    assert output_error(weight, quantized, hessian) == pytest.approx(float(change.square().mean()), rel=1e-4)
    share = float(change.square().sum() / outputs.square().sum())
    assert relative_output_error(weight, quantized, hessian) == pytest.approx(share, rel=1e-4)
    assert relative_output_error(torch.zeros(2, 256), rtn(torch.zeros(2, 256), Grid(4, 32)), hessian) == 0


# Round to nearest


def test_nearest_codes_by_hand() -> None:
    weight = torch.tensor([[-0.8, 0.7, 0.12, 0.26, 0.79]])
    for sign in (1, -1):  # the larger end is code 0, whichever side it is on; the other side ends a step before it
        symmetric = rtn(sign * weight, Grid(4, 0))  # scale -0.8 / -8 = 0.1, or 0.8 / -8
        assert symmetric.scales.tolist() == [[pytest.approx(sign * 0.1, rel=1e-3)]]
        assert symmetric.codes.tolist() == [[0, 15, 8 + 1, 8 + 3, 15]]
        assert symmetric.zeros.tolist() == [[8]]
    asymmetric = rtn(torch.tensor([[-0.5, 1.0, 0.24, 0.26]]), Grid(2, 0, symmetric=False))  # scale 0.5, zero 1
    assert asymmetric.codes.tolist() == [[0, 3, 1, 2]]
    assert asymmetric.zeros.tolist() == [[1]]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_nearest_codes_are_those_of_the_grid(grid: Grid) -> None:
    weight, _ = layer(rows=300)
    assert same(rtn(weight, grid), encode(weight, *scales_and_zeros(weight, grid), grid))
    assert same(rtn(weight.bfloat16(), grid), rtn(weight.bfloat16().float(), grid))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_scales_and_codes_are_those_of_onnxruntime(bits: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=bits)
    weight, _ = layer()
    bytes_, float32_scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight.T.contiguous().numpy())
    found, theirs, scales = rtn(weight, Grid(bits, 32)), torch.from_numpy(bytes_), torch.from_numpy(float32_scales)
    assert torch.equal(found.scales, scales.half())
    assert (scales < 0).any()
    assert (scales > 0).any()
    codes = unpack(theirs.flatten(1), bits, weight.shape[1])
    assert torch.equal(codes, encode(weight, scales, found.zeros, found.grid).codes)
    assert (codes != found.codes).float().mean() < 0.02, "a float16 scale moves the borders between codes a little"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_signed_scale_beats_one_that_reaches_both_ends_alike(bits: int) -> None:
    """On gaussian weights, in squared error: 0.59, 0.74, 0.82 and 0.91 of it were measured."""
    weight, grid = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)), Grid(bits, 32)
    _, zeros = scales_and_zeros(weight, grid)
    alike = (weight.view(256, 32, 32).abs().amax(2) / (grid.middle - 0.5)).half()
    errors = [
        float((weight - found.dequantize()).square().mean())
        for found in (rtn(weight, grid), encode(weight, alike, zeros, grid))
    ]
    assert errors[0] < 0.95 * errors[1]


def test_the_smallest_and_the_largest_scales_keep_their_sign() -> None:
    weight = torch.tensor([[1e-9, -1e-10], [-1e-9, 1e-10], [1e9, 1.0], [-1e9, 1.0]])
    scales = rtn(weight, Grid(4, 0)).scales.flatten().tolist()
    assert scales == [-(2.0**-24), 2.0**-24, -65504.0, 65504.0]


# GPTQ


def test_the_second_column_makes_up_for_the_first_ones_error_by_hand() -> None:
    hessian, grid = torch.tensor([[4.0, 1.0], [1.0, 2.0]]), Grid(8, 0)
    weight = torch.tensor([[0.3, 1.0]])
    found = gptq(weight, hessian, grid, damping=0.0).dequantize()
    step = float(rtn(weight, grid).scales)
    inverse = torch.linalg.inv(hessian)
    first = round(0.3 / step) * step
    second = 1.0 - (0.3 - first) * float(inverse[0, 1] / inverse[0, 0])  # w2 -= err Hinv01 / Hinv00
    assert found[0].tolist() == pytest.approx([first, min(round(second / step), 127) * step])


def naive_gptq(weight: Tensor, hessian: Tensor, like: Quantized, order: list[int], damping: float) -> Tensor:
    """Frantar et al. 2022, equations 2 and 3, one column at a time in float64: codes [rows, columns]."""
    columns = weight.shape[1]
    rest, group_size = weight.double().clone(), columns // like.scales.shape[1]
    damped = hessian.double() + damping * hessian.diagonal().mean().double() * torch.eye(columns)
    codes, left = torch.empty_like(like.codes), list(order)
    while left:
        inverse = torch.linalg.inv(damped[left][:, left])
        column, group = left[0], left[0] // group_size
        scale, zero = like.scales[:, group].double(), like.zeros[:, group].double()
        code = (rest[:, column] / scale + zero).round().clamp(0, like.grid.levels - 1)
        error = rest[:, column] - (code - zero) * scale
        rest[:, left] -= error.unsqueeze(1) * inverse[0] / inverse[0, 0]
        codes[:, column] = code.to(torch.uint8)
        left.pop(0)
    return codes


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("block", [16, 24, 128])
def test_blocks_and_factors_give_the_codes_of_one_column_after_the_other(activation_order: bool, block: int) -> None:
    weight, inputs = layer(rows=8, columns=64)
    hessian = second_moment(inputs)
    found = gptq(weight, hessian, Grid(4, 32, symmetric=False), activation_order=activation_order, block=block)
    order = list(range(64))
    if activation_order:
        order = hessian.diagonal().argsort(descending=True).tolist()
    naive = naive_gptq(weight, hessian, found, order, 0.01)
    assert (found.codes == naive).float().mean() > 0.99  # float32 against float64: a tie may fall to the other side


def test_a_hessian_that_is_not_positive_definite_is_damped_until_it_is() -> None:
    weight, inputs = layer(columns=64)
    hessian = second_moment(inputs) - 0.5 * torch.eye(64)
    assert torch.linalg.eigvalsh(hessian).min() < -0.1
    assert gptq(weight, hessian, Grid(4, 32)).dequantize().isfinite().all()
    few = second_moment(inputs[:5])  # rank 5, and no damping to begin with
    assert relative_output_error(weight, gptq(weight, few, Grid(4, 32), damping=0.0), few) < 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    weight, inputs = layer(columns=64)
    hessian = second_moment(inputs)
    hessian[3, 4] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        gptq(weight, hessian, Grid(4, 32))
    weight[0, 0] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        gptq(weight, torch.eye(64), Grid(4, 32))


def test_columns_that_read_nothing_are_rounded_to_nearest() -> None:
    weight, inputs = layer()
    inputs[:, 5:20] = 0
    found = gptq(weight, second_moment(inputs), Grid(4, 32))
    assert torch.equal(found.codes[:, 5:20], encode(weight, found.scales, found.zeros, found.grid).codes[:, 5:20])


# AutoRound


def test_no_step_of_autoround_is_nearly_round_to_nearest() -> None:
    weight, inputs = layer()
    for grid in GRIDS:
        found = autoround(weight, second_moment(inputs), grid, steps=0)
        assert (found.codes == rtn(weight, grid).codes).float().mean() > 0.9


def test_autoround_weighs_errors_against_each_other_by_hand() -> None:
    hessian = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for end in (-8.0, 8.0):
        weight = torch.tensor([[0.4, 0.4, end]])  # scale 1 or -1: both first weights go to 0, and their sum is 0.8 off
        found = autoround(weight, hessian, Grid(4, 0), steps=100).dequantize()
        assert abs(float(found[0, :2].sum()) - 0.8) < 0.3


# HQQ


def test_an_outlier_does_not_set_the_scale_of_its_group() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    weight[:, 7] = 5.0
    for grid in (Grid(3, 0), Grid(3, 0, symmetric=False)):
        nearest, found = rtn(weight, grid), hqq(weight, grid)
        assert found.scales.float().abs().mean() < 0.9 * nearest.scales.float().abs().mean()
        errors = [(weight - quantized.dequantize()).square().sum(1) for quantized in (found, nearest)]
        assert (errors[0] <= errors[1]).all()


# AWQ


def folded(weight: Tensor, inputs: Tensor, grid: Grid) -> float:
    """Relative error of a layer's outputs with AWQ's scales and clipping."""
    hessian = second_moment(inputs)
    scales = awq_scales([weight], hessian, inputs.abs().mean(0), grid)
    moment = hessian / scales / scales.unsqueeze(1)
    quantized = encode(weight * scales, *clip_search(weight * scales, moment.diagonal(), grid), grid)
    return relative_output_error(weight * scales, quantized, moment)


def test_scales_grow_with_the_inputs_and_are_balanced() -> None:
    weight, inputs = layer()
    mean_abs = inputs.abs().mean(0)
    scales = awq_scales([weight[:40], weight[40:]], second_moment(inputs), mean_abs, Grid(3, 32))
    assert float(scales.max() * scales.min()) == pytest.approx(1.0, rel=1e-4)
    assert scales.max() > 1.5
    terms = torch.stack([mean_abs.log(), column_sizes(weight, Grid(3, 32)).log(), torch.ones(256)], 1).double()
    wanted = scales.log().double().unsqueeze(1)
    found = torch.linalg.lstsq(terms, wanted).solution
    assert torch.allclose(terms @ found, wanted, atol=1e-4)
    alpha, of_sizes = found[:2, 0].tolist()
    assert 0 < alpha < 1
    assert of_sizes == pytest.approx(alpha - 1, abs=1e-3) or of_sizes == pytest.approx(0, abs=1e-3)


def test_even_inputs_and_no_inputs_leave_every_scale_at_one_where_weights_are_even() -> None:
    weight = layer(columns=64)[0].sign()
    for mean_abs in (torch.ones(64), torch.zeros(64)):
        assert torch.allclose(awq_scales([weight], torch.eye(64), mean_abs, Grid(4, 32)), torch.ones(64))


def test_columns_of_small_weights_are_scaled_up_though_inputs_are_even() -> None:
    weight, inputs = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)), torch.eye(64)
    weight *= torch.logspace(0, -1, 32).repeat(2)
    assert folded(weight, inputs, Grid(4, 32)) < 0.8 * relative_output_error(weight, rtn(weight, Grid(4, 32)), inputs)


def test_clipping_is_never_worse_on_the_diagonal_it_minimises() -> None:
    weight, inputs = layer()
    importance = second_moment(inputs).diagonal()
    for grid in GRIDS:
        errors = [
            float(((weight - quantized.dequantize()).square() * importance).sum())
            for quantized in (encode(weight, *clip_search(weight, importance, grid), grid), rtn(weight, grid))
        ]
        assert errors[0] <= errors[1]


# All of them


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", CALIBRATED)
def test_calibration_beats_rounding_on_correlated_inputs(name: str, grid: Grid) -> None:
    weight, inputs = layer()
    hessian = second_moment(inputs)
    found, nearest = CALIBRATED[name](weight, hessian, grid), rtn(weight, grid)
    assert output_error(weight, found, hessian) < 0.8 * output_error(weight, nearest, hessian)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_awq_and_hqq_beat_rounding(bits: int, symmetric: bool) -> None:
    weight, inputs = layer()
    hessian, grid = second_moment(inputs), Grid(bits, 32, symmetric)
    nearest = relative_output_error(weight, rtn(weight, grid), hessian)
    assert folded(weight, inputs, grid) < 0.8 * nearest
    assert relative_output_error(weight, hqq(weight, grid), hessian) < nearest


@pytest.mark.parametrize("name", ALGORITHMS)
def test_zeros_stay_zeros(name: str) -> None:
    weight, inputs = layer(rows=8, columns=64)
    hessian = second_moment(inputs)
    for grid in GRIDS:
        assert not ALGORITHMS[name](torch.zeros(8, 64), hessian, grid).dequantize().any()
        assert not ALGORITHMS[name](torch.zeros(8, 64), torch.zeros(64, 64), grid).dequantize().any()
        gap = weight.clone()
        gap[2] = 0
        found = ALGORITHMS[name](gap, torch.zeros(64, 64), grid).dequantize()
        assert not found[2].any()
        assert found.isfinite().all()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_same_again_gives_the_same_and_leaves_its_inputs_alone(name: str) -> None:
    weight, inputs = layer(columns=64)
    hessian = second_moment(inputs)
    kept = weight.clone(), hessian.clone()
    with torch.inference_mode():
        first = ALGORITHMS[name](weight, hessian, Grid(4, 32, symmetric=False))
    assert same(first, ALGORITHMS[name](weight, hessian, Grid(4, 32, symmetric=False)))
    assert torch.equal(weight, kept[0])
    assert torch.equal(hessian, kept[1])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_chunks_of_rows_give_what_the_whole_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = layer(rows=50, columns=64)
    hessian, grid = second_moment(inputs), Grid(4, 32, symmetric=False)
    whole = ALGORITHMS[name](weight, hessian, grid)
    for file in (rtn_file, hqq_file, awq_file, autoround_file):
        monkeypatch.setattr(file, "CHUNK_ROWS", 16)
    chunked = ALGORITHMS[name](weight, hessian, grid)
    if name == "autoround":  # a matrix product adds up in another order for another number of rows
        errors = [output_error(weight, quantized, hessian) for quantized in (whole, chunked)]
        assert errors[0] == pytest.approx(errors[1], rel=0.02)
    else:
        assert same(whole, chunked)


# Against neural-compressor 3.10, on the same layer, inputs, bits and groups: at most 5% more error.


@pytest.fixture(scope="module")
def theirs() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        from neural_compressor.torch.algorithms.weight_only.awq import AWQQuantizer
        from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ
        from neural_compressor.torch.algorithms.weight_only.hqq.config import HQQModuleConfig, QTensorConfig
        from neural_compressor.torch.algorithms.weight_only.hqq.core import HQQLinear
        from neural_compressor.torch.algorithms.weight_only.utility import quant_tensor
    return SimpleNamespace(
        AWQQuantizer=AWQQuantizer, GPTQ=GPTQ, HQQLinear=HQQLinear, HQQModuleConfig=HQQModuleConfig,
        QTensorConfig=QTensorConfig, quant_tensor=quant_tensor,
    )  # fmt: skip


def share(change: Tensor, outputs: Tensor) -> float:
    return float(change.square().sum() / outputs.square().sum())


def scheme(grid: Grid) -> str:
    return "sym" if grid.symmetric else "asym"


COMPARED = [Grid(bits, 128, symmetric) for bits in (2, 3, 4) for symmetric in (True, False)]


@pytest.mark.parametrize("grid", COMPARED, ids=str)
def test_rtn_keeps_up(theirs: SimpleNamespace, grid: Grid) -> None:
    weight, inputs = layer()
    other = theirs.quant_tensor(weight.clone(), bits=grid.bits, group_size=128, scheme=scheme(grid))
    error = relative_output_error(weight, rtn(weight, grid), second_moment(inputs))
    assert error <= 1.05 * share(inputs @ (weight - other).T, inputs @ weight.T)


@pytest.mark.parametrize("grid", COMPARED, ids=str)
def test_gptq_keeps_up(theirs: SimpleNamespace, grid: Grid) -> None:
    weight, inputs = layer()
    linear = nn.Linear(*reversed(weight.shape), bias=False)
    solver = theirs.GPTQ(linear, weight.clone())
    no = dict.fromkeys(("mse", "use_double_quant", "double_quant_sym"), False)
    solver.quantizer.configure({"bits": grid.bits, "sym": grid.symmetric, "dtype": "int", "perchannel": True} | no)
    solver.add_batch(inputs, None)
    *_, other = solver.fasterquant(weight.clone(), groupsize=128, act_order=True, static_groups=True)
    error = relative_output_error(weight, gptq(weight, second_moment(inputs), grid), second_moment(inputs))
    assert error <= 1.05 * share(inputs @ (weight - other).T, inputs @ weight.T)


@pytest.mark.parametrize("bits", [4, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 3))])
def test_hqq_keeps_up_though_its_zeros_are_integers(theirs: SimpleNamespace, bits: int) -> None:
    config = theirs.HQQModuleConfig(
        weight=theirs.QTensorConfig(nbits=bits, group_size=128, round_zero=True), scale=None, zero=None
    )
    errors, other_errors = [], []
    for seed in range(6):  # neither knows the inputs, and what falls on their outliers is chance
        weight, inputs = layer(seed=seed)
        linear = nn.Linear(*reversed(weight.shape), bias=False)
        linear.weight.data = weight.clone()
        with torch.no_grad():
            other = theirs.HQQLinear.from_float(linear, config).dequantize_weight().float()
        found = hqq(weight, Grid(bits, 128, symmetric=False))
        errors.append(relative_output_error(weight, found, second_moment(inputs)))
        other_errors.append(share(inputs @ (weight - other).T, inputs @ weight.T))
    assert sum(errors) <= 1.05 * sum(other_errors)


class Block(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight.data = weight.clone()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.linear(hidden_states)


class Tiny(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(weight)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.layers[0](hidden_states)


@pytest.mark.parametrize("grid", COMPARED, ids=str)
def test_awq_keeps_up(theirs: SimpleNamespace, grid: Grid) -> None:
    weight, inputs = layer(tokens=512)
    config = {"dtype": "int", "bits": grid.bits, "group_size": 128, "scheme": scheme(grid), "group_dim": 1,
              "use_full_range": False, "use_mse_search": True, "use_auto_scale": True, "folding": False,
              "use_double_quant": False, "double_quant_dtype": "int", "double_quant_bits": 8,
              "double_quant_scheme": "sym", "double_quant_group_size": 256}  # fmt: skip
    quantizer = theirs.AWQQuantizer({"layers.0.linear": config})
    model = quantizer.prepare(Tiny(weight))
    with torch.no_grad():
        model(inputs)
        other = quantizer.convert(model, bits=grid.bits, group_size=128, scheme=scheme(grid), example_inputs=inputs)
        change = inputs @ weight.T - other(inputs)
    assert folded(weight, inputs, grid) <= 1.05 * share(change, inputs @ weight.T)
