"""Microcontrollers: what was predicted is counted, patches change no logit, and a wrong plan is caught."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from hfcompress.budget import ImageBudget, verdicts
from hfcompress.errors import UserError
from hfcompress.formats.runtimes.sessions import onnx_session
from hfcompress.planning.devices import microcontroller
from hfcompress.planning.devices.arena import run
from hfcompress.planning.devices.integer_graph import IntegerGraph, Operation, read_onnx
from hfcompress.planning.devices.mobilenet_graph import mobilenet_graph
from hfcompress.planning.devices.patches import cuts, fitting_patches, input_region, patched, smallest_patches
from hfcompress.planning.devices.tensor_lifetimes import MemoryPlan, lifetimes, plan_memory
from hfcompress.planning.plan import Plan
from tests import image_models, onnx_images


def conv(name: str, source: str, **settings: object) -> Operation:
    return Operation("Conv", name, (source,), name, kernel=(3, 3), pads=(1, 1, 1, 1), macs_per_value=9, **settings)


@pytest.fixture(scope="module")
def residual() -> IntegerGraph:
    """x [4, 8, 8] -> a -> b, and x + b -> y: 256 bytes each."""
    operations = (conv("a", "x"), conv("b", "a"), Operation("Add", "y", ("x", "b"), "y"))
    return IntegerGraph("x", "y", operations, dict.fromkeys("xaby", (4, 8, 8)))


@pytest.fixture(scope="module")
def network():
    return onnx_images.mobilenet()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, network) -> Path:
    folder = tmp_path_factory.mktemp("mobilenet")
    return onnx_images.quantize(onnx_images.export(network, folder), folder / "int8.onnx")


@pytest.fixture(scope="module")
def graph(model: Path) -> IntegerGraph:
    return read_onnx(model)


def by_onnxruntime(model: Path, pixel_values: np.ndarray) -> np.ndarray:
    return onnx_session(model, 1).run(None, {"pixel_values": pixel_values[None]})[0][0]


def test_a_residual_keeps_its_input_alive(residual: IntegerGraph) -> None:
    assert plan_memory(residual).live == [2 * 256, 3 * 256, 3 * 256]
    chain = replace(residual, operations=residual.operations[:2], output="b")
    assert plan_memory(chain).live == [2 * 256, 2 * 256]


def test_buffers_that_live_together_do_not_overlap(graph: IntegerGraph) -> None:
    plan = plan_memory(graph)
    for one in plan.lifetimes:
        for two in plan.lifetimes:
            if one is not two and one.first <= two.last and two.first <= one.last:
                a, b = plan.offsets[one.tensor], plan.offsets[two.tensor]
                assert a + one.bytes <= b or b + two.bytes <= a
    assert plan.arena >= plan.peak == max(plan.live)


def test_a_depthwise_convolution_in_place_needs_one_more_channel() -> None:
    operations = (conv("a", "x", group=4), Operation("GlobalAveragePool", "y", ("a",), "y"))
    graph = IntegerGraph("x", "y", operations, {"x": (4, 8, 8), "a": (4, 8, 8), "y": (4, 1, 1)})
    assert plan_memory(graph).peak == 2 * 256
    assert plan_memory(graph, in_place_depthwise=True).peak == 256 + 64


def test_flash_is_weights_biases_and_scales(model: Path, graph: IntegerGraph) -> None:
    weights = [t for t in onnx.load(str(model)).graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    kernels = [t for t in weights if t.name.endswith("quantized_uint8") and len(t.dims) in (2, 4)]
    channels = sum(t.dims[0] for t in kernels)
    assert graph.flash == sum(int(np.prod(t.dims)) for t in kernels) + 8 * channels


def test_a_halo_by_hand() -> None:
    operation = conv("a", "x")
    assert input_region(operation, (0, 0, 4, 4), (1, 8, 8)) == ((0, 0, 5, 5), (1, 1, 0, 0))
    assert input_region(operation, (4, 4, 8, 8), (1, 8, 8)) == ((3, 3, 8, 8), (0, 0, 1, 1))
    strided = replace(operation, stride=(2, 2), pads=(0, 0, 1, 1))
    assert input_region(strided, (0, 2, 2, 4), (1, 8, 8)) == ((0, 4, 5, 8), (0, 0, 0, 1))


def test_patches_by_hand() -> None:
    """Two 3x3 convolutions on 8 x 8 in 2 x 2 patches: the first makes 4 times 5 x 5 values where 8 x 8 are needed."""
    operations = (conv("a", "x"), conv("b", "a"))
    graph = IntegerGraph("x", "b", operations, {"x": (1, 8, 8), "a": (8, 8, 8), "b": (2, 8, 8)})
    split = patched(graph, 2, 2)
    assert split.macs - graph.macs == 9 * 8 * (4 * 25 - 64)
    assert plan_memory(graph).peak == 8 * 64 + 2 * 64
    assert plan_memory(split).peak == 64 + 8 * 25 + 2 * 64
    streamed = patched(graph, 2, 2, streamed=True)
    assert plan_memory(streamed).peak == 6 * 6 + 8 * 25 + 2 * 64


def test_the_shape_alone_says_what_the_exported_graph_says(graph: IntegerGraph, network) -> None:
    planned = mobilenet_graph(network.config.to_dict(), 32)
    described = [
        [
            (o.kind, o.kernel, o.stride, o.dilation, o.pads, o.group, o.macs_per_value, o.flash, g.shapes[o.output])
            for o in g.operations
        ]
        for g in (graph, planned)
    ]
    assert described[0] == described[1]
    assert plan_memory(graph).arena == plan_memory(planned).arena


def test_the_interpreter_counts_the_prediction_and_answers_as_onnxruntime(model: Path, graph: IntegerGraph) -> None:
    plan = plan_memory(graph)
    for pixel_values in onnx_images.images(3):
        counted = run(graph, plan, pixel_values)
        assert (counted.peak, counted.arena) == (plan.peak, plan.arena)
        expected = by_onnxruntime(model, pixel_values)
        assert np.ptp(expected) > 0.1
        assert np.array_equal(counted.logits, expected)


@pytest.mark.parametrize("streamed", [False, True])
def test_patches_need_less_memory_and_change_no_logit(graph: IntegerGraph, streamed: bool) -> None:
    found = smallest_patches(graph, streamed=streamed)
    assert found is not None
    assert found.overhead > 0
    pixel_values = onnx_images.images(1)[0]
    counted, whole = run(found.graph, found.memory, pixel_values), run(graph, plan_memory(graph), pixel_values)
    assert np.array_equal(counted.logits, whole.logits)
    assert (counted.peak, counted.arena) == (found.memory.peak, found.memory.arena)
    assert counted.arena < 0.5 * whole.arena


def test_every_cut_and_grid_gives_the_same_logits(graph: IntegerGraph) -> None:
    pixel_values = onnx_images.images(1)[0]
    expected = run(graph, plan_memory(graph), pixel_values).logits
    for operations, grid in ((cuts(graph)[0], 3), (cuts(graph)[2], 2), (cuts(graph)[2], 4)):
        split = patched(graph, operations, grid)
        assert np.array_equal(run(split, plan_memory(split), pixel_values).logits, expected)


def test_a_limit_takes_the_least_extra_work_that_keeps_it(graph: IntegerGraph) -> None:
    smallest = smallest_patches(graph)
    assert smallest is not None
    found = fitting_patches(graph, 1.5 * smallest.memory.arena)
    assert found is not None
    assert found.memory.arena <= 1.5 * smallest.memory.arena
    assert found.overhead < smallest.overhead or found.memory.arena == smallest.memory.arena
    assert fitting_patches(graph, 0.5 * smallest.memory.arena) is None


@pytest.mark.parametrize("symmetric", [False, True])
def test_all_operations_in_place_or_not_are_onnxruntimes(tmp_path: Path, symmetric: bool) -> None:
    import torch

    torch.manual_seed(0)
    float_model = onnx_images.export(onnx_images.Mixed(), tmp_path)
    model = onnx_images.quantize(float_model, tmp_path / "int8.onnx", symmetric=symmetric)
    graph = read_onnx(model)
    assert {o.kind for o in graph.operations} >= {"Conv", "MaxPool", "Add", "GlobalAveragePool", "Gemm"}
    pixel_values = onnx_images.images(1)[0]
    expected = by_onnxruntime(model, pixel_values)
    step = graph.quantization[graph.output].scale
    for in_place in (False, True):
        plan = plan_memory(graph, in_place_depthwise=in_place)
        counted = run(graph, plan, pixel_values)
        assert (counted.peak, counted.arena) == (plan.peak, plan.arena)
        assert np.abs(counted.logits - expected).max() <= 1.01 * step
    assert plan_memory(graph, in_place_depthwise=True).in_place


def residual_of(graph: IntegerGraph) -> str:
    """The tensor that the first Add reads and that is written before its branch."""
    return next(o for o in graph.operations if o.kind == "Add").inputs[0]


def test_a_residual_that_is_freed_too_early_is_caught(graph: IntegerGraph) -> None:
    name, plan = residual_of(graph), plan_memory(graph)
    early = tuple(replace(t, last=t.last - 1) if t.tensor == name else t for t in plan.lifetimes)
    with pytest.raises(RuntimeError, match="read after its planned lifetime"):
        run(graph, replace(plan, lifetimes=early), onnx_images.images(1)[0])


def test_a_place_that_is_taken_is_caught(graph: IntegerGraph) -> None:
    plan = plan_memory(graph)
    with pytest.raises(RuntimeError, match="would be written over"):
        run(graph, replace(plan, offsets=dict.fromkeys(plan.offsets, 0)), onnx_images.images(1)[0])


def test_a_lifetime_that_is_too_long_shows_in_the_count(graph: IntegerGraph) -> None:
    plan = plan_memory(graph)
    longer = tuple(replace(t, last=len(graph.operations) - 1) for t in plan.lifetimes)
    from hfcompress.planning.devices.tensor_lifetimes import place

    wasteful = MemoryPlan(longer, place(longer), frozenset(), plan.operations)
    assert run(graph, wasteful, onnx_images.images(1)[0]).peak > plan.peak
    assert len(lifetimes(graph)) == len(plan.lifetimes)


def test_an_operator_that_is_not_known_is_named(model: Path, tmp_path: Path) -> None:
    broken = onnx.load(str(model))
    next(n for n in broken.graph.node if n.op_type == "GlobalAveragePool").op_type = "GlobalMaxPool"
    onnx.save(broken, str(tmp_path / "odd.onnx"))
    with pytest.raises(UserError, match=r"odd\.onnx: the operator GlobalMaxPool .* is not one that is planned"):
        read_onnx(tmp_path / "odd.onnx")


def test_a_float_model_is_refused(tmp_path: Path, network) -> None:
    onnx_images.export(network, tmp_path).rename(tmp_path / "float.onnx")
    with pytest.raises(UserError, match="is not quantized"):
        read_onnx(tmp_path / "float.onnx")
    with pytest.raises(UserError, match="no such file"):
        read_onnx(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="exported for 32 pixels"):
        read_onnx(tmp_path / "float.onnx", 64)


def test_plan_says_what_fits(network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microcontroller, "WIDTHS", (0.35, 1.0))
    monkeypatch.setattr(microcontroller, "RESOLUTIONS", (32, 48, 64))
    plan = Plan()
    plan.rows = [{"name": "int8"}]
    budget = ImageBudget(sram_kb=16, flash_kb=600)
    microcontroller.add_to_plan(plan, "int8", network.config.to_dict(), 32, budget)
    assert plan.ok
    assert [v["limit"] for v in plan.verdicts] == ["sram_kb", "flash_kb"]
    assert plan.rows[0]["sram_kb"] == pytest.approx(15.0)
    found = microcontroller.plan_microcontroller(network.config.to_dict(), 32, budget)
    assert {fit.width for fit in found.fitting} == {0.35}  # the wide one does not fit the flash
    resolutions = {fit.way: fit.resolution for fit in found.fitting}
    assert resolutions["whole"] == 32 < resolutions["patches, image outside"]


def test_nothing_that_fits_is_said_in_one_line(network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microcontroller, "WIDTHS", (0.35,))
    monkeypatch.setattr(microcontroller, "RESOLUTIONS", (32,))
    plan = Plan()
    plan.rows = [{"name": "int8"}]
    microcontroller.add_to_plan(plan, "int8", network.config.to_dict(), 32, ImageBudget(sram_kb=1))
    assert not plan.ok
    assert plan.advice[-1].endswith("fits 1 KB of SRAM: raise the limit.")
    with pytest.raises(UserError, match=r"budget\.sram_kb -1"):
        ImageBudget(sram_kb=-1)
    with pytest.raises(UserError, match="a bert cannot be planned"):
        mobilenet_graph({"model_type": "bert"}, 32)


def test_count_runs_the_file(model: Path, graph: IntegerGraph) -> None:
    pixel_values = onnx_images.images(1)[0]
    whole = microcontroller.count(model, pixel_values)
    assert whole["sram_kb"] == whole["predicted_sram_kb"] == plan_memory(graph).arena / 1024
    assert whole["patches"] is None
    small = microcontroller.count(model, pixel_values, sram_kb=8)
    assert small["sram_kb"] == small["predicted_sram_kb"] <= 8
    assert small["patches"]["grid"] > 1


def test_the_budget_is_held_against_what_was_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_models.processor(32).save_pretrained(tmp_path)
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())
    row = {"name": "int8", "bytes": 1, "peak_rss_mb": 1, "latency_ms": {"p50": 1}}
    for limit, ok in ((8, True), (1, False)):
        rows = [dict(row)]
        budget = ImageBudget(sram_kb=limit, flash_kb=600)
        microcontroller.add_to_rows(rows, "int8", tmp_path, budget)
        found = {v.limit: v for v in verdicts(budget, "int8", "int8", "int8", rows, {}, {"sram_kb": 7})}
        assert (found["sram_kb"].ok, found["flash_kb"].ok) == (ok, True)
        assert found["sram_kb"].predicted == 7
    (tmp_path / "model.onnx").unlink()
    microcontroller.add_to_rows(rows := [dict(row)], "int8", tmp_path, budget)
    assert "SRAM and flash are not measured" in capsys.readouterr().err
    assert not any(v.ok for v in verdicts(budget, "int8", "int8", "int8", rows, {}, {}))
