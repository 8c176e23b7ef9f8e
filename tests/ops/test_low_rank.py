"""Factors of matrices, convolutions and tables: held against their formulas, and weighted against plain."""

import pytest
import torch
from torch import Tensor, nn

from hfcompress.architectures.factors import CPConv, LowRankConv, LowRankLinear, TTEmbedding, Tucker2Conv, fill
from hfcompress.ops import tensor_train
from hfcompress.ops.conv_factors import CP, Tucker2
from hfcompress.ops.low_rank import LowRank, rank_step, root_of_moment, steps_to


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


@pytest.fixture(scope="module")
def uneven() -> Tensor:
    """Inputs [tokens, 24] whose directions differ in size by a factor of a hundred."""
    turn, _ = torch.linalg.qr(noise(24, 24, seed=1))
    return noise(400, 24, seed=2) * torch.logspace(0, -2, 24) @ turn


def moment_of(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def test_svd_loses_the_squared_singular_values_that_it_drops() -> None:
    """Eckart and Young 1936: diag(4, 3, 2, 1) at rank 2 loses 2^2 + 1^2 of 30."""
    turns = [torch.linalg.qr(noise(4, 4, seed=seed))[0] for seed in (1, 2)]
    weight = turns[0] @ torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])) @ turns[1]
    form = LowRank(weight)
    assert form.error((2,)) == pytest.approx(5 / 30)
    v, u = form.factors((2,))
    assert (v.shape, u.shape) == ((2, 4), (4, 2))
    assert squared(weight - u @ v) == pytest.approx(5.0, rel=1e-5)
    assert form.parts((2,)) == [8, 8]


def test_weighted_svd_is_the_best_for_the_inputs_that_were_seen(uneven: Tensor) -> None:
    """It loses at the output what it says; plain SVD of the same rank loses several times as much, and no other
    matrix of this rank that is near it loses less."""
    weight = noise(20, 24, seed=3)
    form = LowRank(weight, moment_of(uneven))
    lost = {}
    for name, found in (("weighted", form), ("plain", LowRank(weight))):
        v, u = found.factors((6,))
        lost[name] = squared(uneven @ (weight - u @ v).T) / squared(uneven @ weight.T)
    assert lost["weighted"] == pytest.approx(form.error((6,)), rel=0.02)
    assert lost["weighted"] < lost["plain"] / 4
    v, u = form.factors((6,))
    for seed in range(5):
        other = (u + 0.01 * noise(*u.shape, seed=seed)) @ v
        assert squared(uneven @ (weight - other).T) / squared(uneven @ weight.T) > lost["weighted"]


def test_the_root_of_a_moment_is_one_and_there_for_few_examples_too() -> None:
    inputs = noise(3, 10)  # three examples of ten columns: the moment has rank 3
    root, inverse = root_of_moment(moment_of(inputs), 10)
    assert torch.allclose(root @ inverse, torch.eye(10, dtype=torch.float64), atol=1e-6)
    assert torch.allclose((root @ root.T).float(), moment_of(inputs), atol=1e-3)
    for bad in (torch.zeros(10, 10), torch.full((10, 10), float("nan"))):
        with pytest.raises(ValueError, match="all 0, or not finite"):
            root_of_moment(bad, 10)


def test_ranks_that_would_grow_the_layer_are_no_candidates() -> None:
    form = LowRank(noise(32, 32))
    assert form.candidates()[-1] == (15,)  # at 16 the factors have as many weights as the layer
    assert sum(form.parts((16,))) == form.dense
    assert LowRank(noise(2, 1)).candidates() == []
    assert CP(noise(2, 2, 1, 1)).candidates() == []
    assert all(sum(t.parts(r)) < t.dense for t in [Tucker2(noise(8, 8, 3, 3))] for r in t.candidates())
    assert steps_to(0) == []
    assert rank_step(1024) == 8
    for form_of, most in ((LowRank(noise(4, 6)), (5,)), (Tucker2(noise(4, 6, 3, 3)), (7, 4))):
        for ranks in (most, (0,) * len(most)):
            with pytest.raises(ValueError, match="a rank of"):
                form_of.factors(ranks)  # type: ignore[attr-defined]


def test_a_weight_of_tucker_rank_comes_back_exactly() -> None:
    core, out, into = noise(5, 4, 3, 3), noise(12, 5, seed=1), noise(10, 4, seed=2)
    weight = torch.einsum("pqhw,op,iq->oihw", core, out, into)
    form = Tucker2(weight)
    assert form.error((4, 5)) < 1e-9
    assert form.error((3, 5)) > 1e-3
    down, middle, up = form.factors((4, 5))
    back = torch.einsum("pqhw,op,qi->oihw", middle, up[..., 0, 0], down[..., 0, 0])
    assert torch.allclose(back, weight, atol=1e-4)
    assert form.parts((4, 5)) == [40, 180, 60]


def test_a_weight_of_cp_rank_comes_back_exactly() -> None:
    out, into, down, across = (noise(size, 2, seed=size) for size in (7, 6, 3, 4))
    weight = torch.einsum("or,ir,hr,wr->oihw", out, into, down, across)
    form = CP(weight)
    assert form.error((2,)) < 1e-6
    first, vertical, horizontal, last = form.factors((2,))
    back = torch.einsum(
        "ri,rh,rw,or->oihw", first[..., 0, 0], vertical[:, 0, :, 0], horizontal[:, 0, 0], last[..., 0, 0]
    )
    assert torch.allclose(back, weight, atol=1e-2)
    assert form.parts((2,)) == [12, 6, 8, 14]


@pytest.mark.parametrize(("form", "ranks"), [(Tucker2, (6, 8)), (CP, (20,))])
def test_channels_that_are_read_strongly_are_kept_better(form: type, ranks: tuple[int, ...], uneven: Tensor) -> None:
    weight = noise(16, 24, 3, 3, seed=4)
    pixels = uneven.T.reshape(1, 24, 20, 20)
    wanted = nn.functional.conv2d(pixels, weight, padding=1)
    lost = []
    for moment in (moment_of(uneven), None):
        layer = nn.Conv2d(24, 16, 3, padding=1, bias=False)
        made = Tucker2Conv(layer, ranks) if form is Tucker2 else CPConv(layer, ranks[0])  # type: ignore[arg-type]
        fill(made, layer, form(weight, moment).factors(ranks))
        with torch.inference_mode():
            lost.append(squared(made(pixels) - wanted) / squared(wanted))
    assert lost[0] < lost[1] / 2


@pytest.mark.parametrize("rows", [60, 64])
def test_a_tensor_train_of_whole_rank_is_the_table_and_of_a_lower_one_the_best_of_two_cuts(rows: int) -> None:
    table = noise(rows, 24)
    whole = tensor_train.lookup(torch.arange(rows), *tensor_train.cores(table, 12))
    assert torch.allclose(whole, table, atol=1e-4)
    (n1, n2, n3), (d1, d2, d3) = tensor_train.row_bases(rows), tensor_train.dim_factors(24)
    assert n1 * n2 * n3 >= rows
    assert d1 * d2 * d3 == 24
    cut = tensor_train.cores(table, 5)
    assert sum(core.numel() for core in cut) == tensor_train.train_weights(rows, 24, 5)
    padded = torch.cat([table, torch.zeros(n1 * n2 * n3 - rows, 24)])
    modes = padded.reshape(n1, n2, n3, d1, d2, d3).permute(0, 3, 1, 4, 2, 5).double()
    cuts = [modes.reshape(size, -1) for size in (n1 * d1, n1 * d1 * n2 * d2)]
    tails = [float(torch.linalg.svdvals(matrix)[5:].square().sum()) for matrix in cuts]
    lost = squared(tensor_train.lookup(torch.arange(rows), *cut) - table)
    # Oseledets 2011, theorem 2.2; the error in the padding is not looked at.
    assert max(tails) * 0.9 <= lost <= sum(tails) * (1 + 1e-6)
    with pytest.raises(ValueError, match="a rank of 0"):
        tensor_train.cores(table, 0)


@pytest.mark.parametrize(
    "settings",
    [{"padding": 1}, {"stride": 2, "padding": (2, 1)}, {"dilation": 2, "padding": "same"}, {"kernel_size": (1, 3)}],
)
def test_a_convolution_of_whole_rank_does_what_the_layer_did(settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 5, **({"kernel_size": 3} | settings)).eval()  # type: ignore[arg-type]
    pixels, weight = noise(2, 4, 11, 12), layer.weight.detach()
    for made, factors in (
        (LowRankConv(layer, 5), LowRank(weight).factors((5,))),
        (Tucker2Conv(layer, (4, 5)), Tucker2(weight).factors((4, 5))),
    ):
        fill(made, layer, factors)
        assert torch.allclose(made(pixels), layer(pixels), atol=1e-4)
        assert (made.kernel_size, made.stride) == (layer.kernel_size, layer.stride)
    found = CP(weight)
    made = CPConv(layer, 16)
    fill(made, layer, found.factors((16,)))
    wanted = layer(pixels)
    assert squared(made(pixels) - wanted) < 4 * max(found.error((16,)), 1e-3) * squared(wanted)


def test_a_linear_layer_and_a_table_of_whole_rank_do_what_they_did() -> None:
    layer, table = nn.Linear(6, 4), nn.Embedding(30, 12)
    made = LowRankLinear(layer, 4)
    fill(made, layer, LowRank(layer.weight).factors((4,)))
    assert torch.allclose(made(noise(3, 7, 6)), layer(noise(3, 7, 6)), atol=1e-5)
    train = TTEmbedding(table, 8)
    fill(train, table, tensor_train.cores(table.weight, 8))
    ids = torch.randint(0, 30, (2, 5))
    assert torch.allclose(train(ids), table(ids), atol=1e-4)
