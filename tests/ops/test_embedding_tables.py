"""Tables in fewer bytes: each by its paper's formula, in torch as in onnxruntime, and against its naive baseline."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from hfcompress.architectures.click_inputs import write_config
from hfcompress.architectures.click_model import ClickModel, KnownIds, logits_of
from hfcompress.architectures.click_spec import ClickShape
from hfcompress.compress.embeddings.tables import CompressEmbeddings, float32_bytes, frequencies_of
from hfcompress.errors import UnknownShape, UserError
from hfcompress.formats.click_weights import export_clicks
from hfcompress.formats.onnx_export import OPSET
from hfcompress.formats.onnx_tables import Lookup, known_ids, look_up
from hfcompress.formats.runtimes.click_predictor import ClickPredictor
from hfcompress.formats.stored_tables import stored_table
from hfcompress.ops import factorized, hashed, mixed_dimension, quotient_remainder, row_codes, table_sizes
from hfcompress.ops.embedding_tables import make_table
from hfcompress.ops.table_sizes import describe_table, parts, table_bytes
from hfcompress.tasks.tabular_classification import Clicks
from hfcompress.training.clicks import ClickTrain, fit, new_click_model

ROWS, DIM = 300, 16
KINDS = ("rows", "factorized", "hashed", "quotient_remainder", "mixed")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def task() -> Clicks:
    return Clicks(users=1_500, items=2_000, categories=20, requests=15_000)


@pytest.fixture(scope="module")
def trained(task: Clicks) -> ClickModel:
    torch.manual_seed(0)
    network = new_click_model(task.data.rows, DIM, 16, (32,), "row")
    fit(network, task.data.logs["train"], ClickTrain(train_batch_size=512, num_train_epochs=4))
    return network


def described(kind: str, bits: int, rows: int = ROWS, ratio: float = 4.0) -> dict[str, Any]:
    frequency = 1000 / np.arange(1, rows + 1)
    allowed = 1e9 if kind == "rows" else 4 * DIM * rows / ratio
    found = describe_table(kind, rows, DIM, bits, allowed, frequency)
    assert found is not None
    return found


def started(kind: str, bits: int, rows: int = ROWS) -> torch.nn.Module:
    table = make_table(described(kind, bits, rows), rows, DIM)
    table.start(torch.randn(rows, DIM), 1000 / torch.arange(1, rows + 1))
    return table


def test_row_codes_are_those_of_the_formula() -> None:
    weight = torch.tensor([[0.7, -0.35, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0], [-14.0, 7.0, 3.0, 1.0]])
    codes, scales = row_codes.row_codes(weight, 4)
    assert codes.tolist() == [[7, -4, 1, 0], [0, 0, 0, 0], [-7, 4, 2, 0]]  # 3.5 and 1.5 go to the even code
    assert scales[2] == 2.0
    assert torch.equal(row_codes.rounded(weight, 4)[2], torch.tensor([-14.0, 8.0, 4.0, 0.0]))
    assert table_sizes.stored_bytes(100, 32, 4) == 100 * (16 + 2)
    assert table_sizes.stored_bytes(100, 32, 8) == 100 * (32 + 2)


def test_rounding_passes_the_gradient_straight_through() -> None:
    weight = torch.randn(3, 8, requires_grad=True)
    row_codes.rounded(weight, 4).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(3, 8))


def test_the_factors_are_the_truncated_svd() -> None:
    table = torch.randn(50, 8, dtype=torch.float64).float()
    u, s, v = np.linalg.svd(table.numpy(), full_matrices=False)
    values, _ = factorized.weighted_svd(table)
    assert values.numpy() == pytest.approx(s, rel=1e-4)
    a, b = factorized.factors(table, 3)
    assert (a @ b).numpy() == pytest.approx((u[:, :3] * s[:3]) @ v[:3], abs=1e-4)


def test_rank_by_energy_and_by_bytes() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])  # squares 9, 4, 1 of 14
    assert factorized.rank_for_energy(values, 9 / 14) == 1
    assert factorized.rank_for_energy(values, 0.9) == 2
    assert factorized.rank_for_energy(values, 1.0) == 3
    assert table_sizes.rank_for_bytes(100, 16, 32, 4 * 100 * 5 + 4 * 5 * 16) == 5
    assert table_sizes.rank_for_bytes(100, 16, 32, 4 * 100 * 5 + 4 * 5 * 16 - 1) == 4
    assert table_sizes.rank_for_bytes(100, 16, 4, 5) == 0


def test_weighting_by_frequency_lowers_the_error_of_what_is_read() -> None:
    frequency = 100 / torch.arange(1, 201).float()
    table = torch.randn(200, DIM) @ torch.randn(DIM, DIM)
    errors = []
    for weight in (None, frequency):
        a, b = factorized.factors(table, 4, weight)
        errors.append(float((frequency.unsqueeze(1) * (a @ b - table).square()).sum()))
    assert errors[1] < errors[0]


def test_a_hash_embedding_is_the_weighted_sum_of_its_rows() -> None:
    table = hashed.HashedTable(1000, 4, buckets=50, weights=1000, functions=2)
    table.pool.data.normal_()
    table.importance.data.copy_(torch.rand(1000, 2).half().float())
    (a1, b1), (a2, b2) = table.constants
    for number in (0, 7, 999):
        one, two = ((a1 * number + b1) % table_sizes.PRIME) % 50, ((a2 * number + b2) % table_sizes.PRIME) % 50
        p = table.importance[number]
        expected = p[0] * table.pool[one] + p[1] * table.pool[two]
        assert torch.allclose(table(torch.tensor([number]))[0], expected)


def test_hash_functions_are_spread_and_differ() -> None:
    ids = torch.arange(10_000)
    one, two = (hashed.hashed(ids, a, b, 100) for a, b in hashed.hash_constants(2, 0))
    counts = torch.bincount(one, minlength=100)
    assert counts.min() > 50
    assert counts.max() < 150
    assert float((one == two).float().mean()) < 0.03
    assert hashed.hash_constants(2, 0) == hashed.hash_constants(2, 0)
    assert int(hashed.hashed(torch.tensor([2**62]), *hashed.hash_constants(1, 0)[0], 100)) >= 0


def test_quotient_and_remainder_multiply_and_keep_ids_apart() -> None:
    table = quotient_remainder.QuotientRemainderTable(100, 4, divisor=7)
    table.quotient.data.normal_()
    table.remainder.data.normal_()
    assert torch.equal(table(torch.tensor([37]))[0], table.quotient[5] * table.remainder[2])
    assert len({tuple(row.tolist()) for row in table(torch.arange(100)).detach()}) == 100
    assert table_bytes({"kind": "quotient_remainder", "divisor": 7}, 100, 4) == 4 * 4 * (7 + 15)


@pytest.mark.parametrize("allowed", [4e4, 1e4, 3e3])
def test_the_divisor_uses_the_bytes_that_are_allowed(allowed: float) -> None:
    divisor = table_sizes.divisor_for_bytes(1000, 8, 32, allowed)
    used = [table_sizes.stored_bytes(m + -(-1000 // m), 8, 32) for m in range(1, 1001)]
    assert used[divisor - 1] == max(size for size in used if size <= allowed)
    assert table_sizes.divisor_for_bytes(1000, 8, 32, 100) == 0


def test_mixed_dimensions_follow_popularity() -> None:
    popularity = np.array([100.0, 10.0, 1.0])
    expected = [round(16 * (p / 100) ** table_sizes.ALPHA) for p in (100, 10, 1)]
    assert table_sizes.dimensions(popularity, 16.0, 16, 8) == expected == [16, 8, 4]
    assert table_sizes.dimensions(popularity, 3.0, 16, 4) == [4, 2, 2]  # even, as two codes share a byte
    assert sum(table_sizes.block_sizes(1000, 4)) == 1000


def test_a_mixed_table_reads_an_ids_own_block() -> None:
    table = mixed_dimension.MixedDimensionTable(5, 4, sizes=[2, 3], dims=[4, 1])
    weights = torch.randn(5, 4)
    table.start(weights, torch.tensor([1.0, 9.0, 1.0, 8.0, 1.0]))
    assert table.place.tolist() == [2, 0, 3, 1, 4]
    found = table(torch.arange(5))
    assert torch.allclose(found[[1, 3]], weights[[1, 3]], atol=1e-5)  # four numbers hold four
    assert torch.linalg.matrix_rank(found[[0, 2, 4]]) == 1
    described = {"kind": "mixed", "sizes": [2, 3], "dims": [4, 1]}
    assert table_bytes(described, 5, 4) == 4 * (2 * 4 + 3 * 1) + 4 * 4 * 5 + 4 * 5


def session_of(table: torch.nn.Module, rows: int, unknown: str) -> Any:
    graph = Lookup("table")
    result = look_up(graph, stored_table(table), known_ids(graph, "ids", rows - 1, unknown))
    made = helper.make_graph(
        graph.nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", DIM])],
        graph.tensors,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString()), graph


@pytest.mark.parametrize("unknown", ["row", "hash"])
@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_looks_up_what_torch_does_and_holds_the_bytes_that_are_claimed(
    kind: str, bits: int, unknown: str
) -> None:
    table = started(kind, bits)
    session, graph = session_of(table, ROWS, unknown)
    ids = torch.tensor([*range(ROWS - 1), ROWS - 1, ROWS, 10**12, -1, -(10**12)])
    with torch.no_grad():
        expected = table(KnownIds(ROWS - 1, unknown)(ids)).numpy()
    assert session.run(None, {"ids": ids.numpy()})[0] == pytest.approx(expected, abs=1e-5)
    stored = sum(
        onnx.numpy_helper.to_array(t).nbytes for t in graph.tensors if t.dims and t.data_type != TensorProto.INT64
    )
    assert stored == table_bytes(described(kind, bits), ROWS, DIM)
    found = parts(described(kind, bits), ROWS, DIM).values()
    assert sum(p.numel() for p in table.parameters()) == sum(prod(p.shape) for p in found if p.kind != "place")


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_with_one_row(kind: str) -> None:
    table = make_table(
        {
            "rows": {"kind": "rows", "bits": 8},
            "factorized": {"kind": "factorized", "rank": 1},
            "hashed": {"kind": "hashed", "buckets": 1, "weights": 1},
            "quotient_remainder": {"kind": "quotient_remainder", "divisor": 1},
            "mixed": {"kind": "mixed", "sizes": [1], "dims": [2]},
        }[kind],
        1,
        DIM,
    )
    weight = torch.randn(1, DIM)
    table.start(weight, torch.ones(1))
    assert torch.allclose(table(torch.tensor([0])), weight, atol=0.05)


@pytest.mark.parametrize("unknown", ["row", "hash"])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_one_id_go_all_the_way(kind: str, unknown: str, tmp_path: Path) -> None:
    """Two rows, of which one is the unknown id's: described, started, exported and looked up."""
    whole = new_click_model({"user": 1, "item": 1, "category": 1, "context": 1}, DIM, 8, (8,), unknown)
    found = describe_table(kind, 2, DIM, 8, 1e4, np.array([5.0, 1.0]))
    network = ClickModel(whole.config | {"tables": dict.fromkeys(whole.columns, found)})
    with torch.no_grad():
        for name, table in network.tables.items():
            table.start(whole.tables[name].weight, torch.tensor([5.0, 1.0]))
    network.eval()
    export_clicks(network, tmp_path)
    ids = {name: torch.tensor([0, 1, -7, 10**12]) for name in whole.columns}
    dense = torch.rand(4, 3)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    inputs = {"dense": dense.numpy()} | {name: array.numpy() for name, array in ids.items()}
    with torch.no_grad():
        assert session.run(None, inputs)[0] == pytest.approx(network(dense, **ids).numpy(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_an_odd_length_in_4_bits_are_no_table_but_as_factors(kind: str) -> None:
    found = describe_table(kind, 100, 15, 4, 1e9, np.ones(100))
    assert found == ({"kind": kind, "rank": 14, "bits": 4} if kind == "factorized" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_no_table_is_larger_than_what_is_allowed(kind: str) -> None:
    frequency = 1000 / np.arange(1, 5001)
    for ratio in (2, 5, 10, 40, 400):
        allowed = 4 * 32 * 5000 / ratio
        found = describe_table(kind, 5000, 32, 8, allowed, frequency)
        if found is not None:
            assert table_bytes(found, 5000, 32) <= allowed
    assert describe_table(kind, 5000, 32, 8, 1, frequency) is None


def test_unknown_ids_share_a_row_or_are_hashed() -> None:
    ids = torch.tensor([0, 9, 10, 25, -3])
    assert KnownIds(10, "row")(ids).tolist() == [0, 9, 10, 10, 10]
    assert KnownIds(10, "hash")(ids).tolist() == [0, 9, 0, 5, 7]


def compressed(trained: ClickModel, task: Clicks, **options: Any) -> ClickModel:
    frequencies = frequencies_of(task)
    network = ClickModel(CompressEmbeddings(**options).compressed(trained.config, frequencies))
    network.towers.load_state_dict(trained.towers.state_dict())
    with torch.no_grad():
        for name, table in network.tables.items():
            table.start(trained.tables[name].weight, torch.from_numpy(frequencies[name]))
    return network


@pytest.mark.parametrize("kind", ["factorized", "hashed", "quotient_remainder", "mixed"])
def test_fine_tuning_brings_it_nearer_to_the_whole_model(kind: str, trained: ClickModel, task: Clicks) -> None:
    """Each kind against its naive form: the tables replaced, and nothing trained afterwards."""
    network = compressed(trained, task, kind=kind, ratio=8)
    assert float32_bytes(trained.config) / network.table_bytes() >= 8
    gentle = ClickTrain(train_batch_size=512, learning_rate=5e-4, table_learning_rate=2e-3, id_dropout=0.0)
    log = task.data.logs["train"]
    said = logits_of(trained, log)
    before = divergence(said, logits_of(network, log))
    fit(network, log, gentle, None, said, 1.0)
    assert divergence(said, logits_of(network, log)) < 0.95 * before


def divergence(said: np.ndarray, found: np.ndarray) -> float:
    """Mean KL of two click models' answers, in nats."""
    p, q = (torch.distributions.Bernoulli(logits=torch.from_numpy(logits)) for logits in (said, found))
    return float(torch.distributions.kl_divergence(p, q).mean())


def test_the_best_factors_beat_the_first_columns(trained: ClickModel, task: Clicks) -> None:
    """Cutting every row to its first numbers is what one would do without the decomposition."""
    table, frequency = trained.tables["item"].weight.detach(), torch.from_numpy(frequencies_of(task)["item"])
    a, b = factorized.factors(table, 4, frequency)
    cut = table.clone()
    cut[:, 4:] = 0
    weight = frequency.unsqueeze(1)
    assert (weight * (a @ b - table).square()).sum() < 0.9 * (weight * (cut - table).square()).sum()


def test_ranks_by_energy_are_the_smallest_that_hold_it(trained: ClickModel, task: Clicks) -> None:
    frequencies = {name: torch.from_numpy(array) for name, array in frequencies_of(task).items()}
    found = CompressEmbeddings(kind="factorized", energy=0.9).by_energy(trained, frequencies)["tables"]
    table = trained.tables["item"].weight.detach().double() * frequencies["item"].double().sqrt().unsqueeze(1)
    energies = torch.linalg.svdvals(table).square()
    rank = found["item"]["rank"]
    assert energies[:rank].sum() >= 0.9 * energies.sum() > energies[: rank - 1].sum()
    assert found["context"] == {"kind": "rows", "bits": 8}
    whole = CompressEmbeddings(kind="factorized", energy=1.0).by_energy(trained, frequencies)["tables"]
    assert whole["item"]["rank"] == DIM
    with pytest.raises(UserError, match=r"energy 0\.9: .* factorized tables alone"):
        CompressEmbeddings(kind="hashed", energy=0.9)
    with pytest.raises(UnknownShape):
        CompressEmbeddings(kind="factorized", energy=0.9).predict(ClickShape(trained.config), task=task)


def test_a_ratio_that_cannot_be_reached_is_named(trained: ClickModel, task: Clicks) -> None:
    with pytest.raises(UserError, match=r"ratio 500: .* cannot be that small as factorized in 8 bits"):
        compressed(trained, task, kind="factorized", ratio=500)
    with pytest.raises(UserError, match=r"ratio 0\.5"):
        CompressEmbeddings(ratio=0.5)


@pytest.fixture
def exported_clicks(trained: ClickModel, task: Clicks, tmp_path: Path) -> tuple[ClickModel, Path]:
    network = compressed(trained, task, kind="hashed", ratio=8)
    export_clicks(network, tmp_path)
    write_config(network.config, tmp_path)
    return network, tmp_path


def test_a_whole_model_agrees_with_its_graph_at_any_batch(
    exported_clicks: tuple[ClickModel, Path], task: Clicks
) -> None:
    network, folder = exported_clicks
    predictor = ClickPredictor(folder, 1)
    for rows in (1, 2, 64):
        log = task.data.logs["test"].rows(slice(0, rows))
        assert predictor.judge(log, batch=50) == pytest.approx(logits_of(network, log), abs=1e-5)
