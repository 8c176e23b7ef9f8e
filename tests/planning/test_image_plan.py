"""Image classifiers planned from their configs: bytes near those of a real export, work as another count has it."""

import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextImageProcessor,
    MobileNetV2Config,
    ResNetConfig,
    ResNetForImageClassification,
)

import hfcompress
from hfcompress.architectures.image_layers import layers_of_config
from hfcompress.architectures.layers import layers_of
from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.models import load_classifier, load_image_processor, save
from hfcompress.architectures.native import named_shape
from hfcompress.budget import Budget, ImageBudget
from hfcompress.cli.running import print_plan
from hfcompress.compress.prune.iterations import prune
from hfcompress.compress.prune.structured import StructuredPruneImages, own_loss
from hfcompress.compress.prune.target import Importance
from hfcompress.compress.prune.target import Plan as Target
from hfcompress.errors import UserError
from hfcompress.formats.onnx_images import export_images
from hfcompress.formats.size import sizes
from hfcompress.planning.devices.mobilenet_graph import mobilenet_graph
from hfcompress.planning.image_graph import Writer
from hfcompress.planning.image_spec import ImageShape, traced
from hfcompress.planning.plan import Plan, render
from hfcompress.runs.prepare import refuse_impossible
from tests import image_recipe, onnx_images
from tests.image_models import write_mobilenet

LABELS = [f"class {i}" for i in range(10)]


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mobilenet(tmp_path_factory.mktemp("plan") / "mobilenet", LABELS, side=16)


def write_resnet(folder: Path, widths: list[int]) -> Path:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=widths[0], hidden_sizes=widths, depths=[2] * 3, layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=1.0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_resnet(tmp_path_factory.mktemp("plan") / "resnet", [16, 32, 64])


def exported(folder: Path, out: Path) -> dict[int, Path]:
    """Bits -> folder of the model as ONNX, its batch norms as after training: equal biases would be stored once."""
    network = hfcompress.load(folder)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
    found = {bits: out / str(bits) for bits in (32, 8)}
    for made in found.values():
        made.mkdir(parents=True)
        for name in image_recipe.COMPANIONS:
            (made / name).write_bytes((folder / name).read_bytes())
    export_images(network.eval(), found[32], (16, 16))
    onnx_images.quantize(found[32] / "model.onnx", found[8] / "model.onnx", 16)
    return found


@functools.cache
def exported_once(folder: Path) -> dict[int, Path]:
    return exported(folder, folder.with_name(f"{folder.name}-onnx"))


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_predicted_bytes_are_those_of_a_real_export(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    shape = ImageShape.read(folder).with_(format="onnx")
    for bits, made in exported_once(folder).items():
        predicted = shape.with_(weight_bits=bits).predicted()["disk_mb"] * 1e6
        assert predicted == pytest.approx(sizes(made)["bytes"], rel=0.03), bits


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_a_folder_of_safetensors_is_predicted(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    found = ImageShape.read(folder).predicted()
    assert found["disk_mb"] * 1e6 == pytest.approx(sizes(folder)["bytes"], rel=0.01)
    assert found["ram_mb"] is None
    assert found["latency_ms"] is None


def test_the_work_is_what_the_graph_of_the_microcontroller_counts(mobilenet: Path) -> None:
    shape = ImageShape.read(mobilenet)
    assert shape.size == (16, 16)
    assert shape.macs == mobilenet_graph(shape.config, 16).macs
    assert 0 < sum(layer.flops for layer in shape.network.two_sided) < 2 * shape.macs


CONFIGS = [
    (MobileNetV2Config(tf_padding=False, output_stride=8, first_layer_is_expansion=False, num_labels=7), (47, 33)),
    (MobileNetV2Config(depth_multiplier=0.35, min_depth=16, tf_padding=False), (224, 224)),
    (MobileNetV2Config(depth_multiplier=1.4, finegrained_output=False, tf_padding=False), (65, 65)),
    (ResNetConfig(), (224, 224)),
    (ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 3], layer_type="basic"), (33, 31)),
    (ResNetConfig(downsample_in_bottleneck=True, downsample_in_first_stage=True), (64, 64)),
]


@pytest.mark.parametrize(("config", "size"), CONFIGS)
def test_the_layers_of_a_config_are_those_of_the_modules(config: Any, size: tuple[int, int]) -> None:
    network = meta_model(AutoModelForImageClassification, config)
    real = layers_of(network, {"pixel_values": torch.empty((1, 3, *size), device="meta")})
    found = layers_of_config(json.loads(config.to_json_string()), size)
    assert list(found.items()) == list(real.items())


def test_any_other_network_is_traced_to_the_same(resnet: Path) -> None:
    shape = ImageShape.read(resnet)
    by_hand, by_torch = shape.network, traced(shape.config, [], shape.size)
    assert (by_hand.layers, by_hand.parameters, by_hand.stored) == (
        by_torch.layers, by_torch.parameters, by_torch.stored
    )  # fmt: skip
    assert sorted(by_hand.names) == sorted(by_torch.names)


def test_a_pruned_shape_is_that_of_a_narrower_network(resnet: Path, tmp_path: Path) -> None:
    narrow = ImageShape.read(write_resnet(tmp_path / "narrow", [8, 16, 32]))
    whole = ImageShape.read(resnet)
    pruned = whole.with_(keep_flops=narrow.macs / whole.macs, uniform=True)
    assert pruned.width_share == pytest.approx(0.5, abs=0.01)
    assert pruned.predicted()["parameters"] == pytest.approx(narrow.predicted()["parameters"], rel=0.01)
    assert pruned.predicted()["mmacs"] == pytest.approx(narrow.macs / 1e6)


def cut_to(folder: Path, out: Path, keep: float, importance: Importance) -> Path:
    """The folder's network, pruned by some ranking without training."""
    network = load_classifier(folder)
    generator = torch.Generator().manual_seed(0)
    batches = [{"pixel_values": torch.randn(8, 3, 16, 16, generator=generator), "labels": torch.arange(8) % 2}]
    target = Target("flops", keep, importance)
    prune(network, target, out / "work", batches, own_loss, lambda *_: None)
    named_shape(load_classifier(folder), network)
    save(network, load_image_processor(folder), out)
    shutil.rmtree(out / "work")
    return out


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_what_pruning_leaves_lies_in_what_is_planned(
    name: str, importance: Importance, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    found = ImageShape.read(folder).with_(keep_flops=0.6).predicted()
    real = sizes(cut_to(folder, tmp_path, 0.6, importance))
    assert found["at_least"]["disk_mb"] < real["bytes"] / 1e6 < found["disk_mb"]
    assert found["at_least"]["parameters"] < real["parameters"] < found["parameters"]
    # Nothing is left open of a folder that was cut already.
    assert ImageShape.read(tmp_path).predicted()["disk_mb"] * 1e6 == pytest.approx(real["bytes"], rel=0.02)


def test_a_folder_that_was_cut_is_planned_with_its_own_widths(mobilenet: Path, tmp_path: Path) -> None:
    folder = cut_to(mobilenet, tmp_path / "cut", 0.6, "l1")
    shape = ImageShape.read(folder)
    assert shape.format == "surgery"
    assert shape.macs < 0.6 * ImageShape.read(mobilenet).macs
    assert shape.network.parameters == sum(p.numel() for p in load_classifier(folder).parameters())
    for bits, made in exported(folder, tmp_path / "onnx").items():
        predicted = shape.with_(format="onnx", weight_bits=bits).predicted()["disk_mb"] * 1e6
        assert predicted == pytest.approx(sizes(made)["bytes"], rel=0.04), bits
    flash = {}
    for base in (mobilenet, folder):
        plan = Plan()
        int8 = plan(image_recipe.ToOnnx(8), model=plan.base(str(base)), name="int8")
        budget = ImageBudget(flash_kb=1000)
        plan.compare(int8, reference=int8, candidate=int8, budget=budget, task=None, measure=image_recipe.MEASURE)
        flash[base] = plan.predictions["int8"]["flash_kb"]
    assert flash[folder] < flash[mobilenet]


def test_edits_that_do_not_fit_are_one_line(mobilenet: Path, tmp_path: Path) -> None:
    write_mobilenet(tmp_path, LABELS, side=16)
    for module, to in (("nowhere", {"out_channels": 4}), ("classifier", {"in_features": "4"})):
        edit = {"edit": "resize", "module": module, "to": to}
        (tmp_path / "surgery.json").write_text(json.dumps({"edits": [edit]}))
        with pytest.raises(UserError, match=r"surgery\.json does not fit a mobilenet_v2"):
            ImageShape.read(tmp_path).predicted()


def test_a_folder_of_factors_is_planned_as_it_was_made(resnet: Path, tmp_path: Path) -> None:
    for name in image_recipe.COMPANIONS:
        (tmp_path / name).write_bytes((resnet / name).read_bytes())
    module = "resnet.encoder.stages.2.layers.1.layer.1.convolution"
    edit = {"edit": "low_rank_linear", "module": module, "rank": 4}
    (tmp_path / "surgery.json").write_text(json.dumps({"edits": [edit]}))
    saved = ImageShape.read(resnet).network.parameters - ImageShape.read(tmp_path).network.parameters
    assert saved == 64 * 64 * 9 - 4 * (64 * 9 + 64)


def test_an_onnx_folder_is_refused(resnet: Path, tmp_path: Path) -> None:
    for name in image_recipe.COMPANIONS:
        (tmp_path / name).write_bytes((resnet / name).read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"model.onnx is an exported graph.*give the folder it was exported from"):
        Plan().base(str(tmp_path))


def test_pruning_twice_leaves_the_share_of_a_share(resnet: Path) -> None:
    stage = StructuredPruneImages(keep_flops=0.5)
    twice = stage.predict(stage.predict(ImageShape.read(resnet)))
    assert twice.macs == 0.25 * ImageShape.read(resnet).macs
    uniform = replace(stage, ranking="uniform")
    assert uniform.predict(uniform.predict(ImageShape.read(resnet))).uniform
    assert not uniform.predict(twice).uniform, "the data have decided already"


def plan_of(base: Path, budget: Any) -> Plan:
    plan = Plan()
    image_recipe.recipe(plan, str(base), budget=budget)
    return plan


def test_a_recipe_is_planned_with_sram_and_flash(
    mobilenet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfcompress.planning.devices import microcontroller

    monkeypatch.setattr(microcontroller, "WIDTHS", (0.25,))  # the search itself is tested elsewhere
    monkeypatch.setattr(microcontroller, "RESOLUTIONS", (48,))
    budget = ImageBudget(disk_mb=4, peak_over_bare_mb=64, sram_kb=256, flash_kb=100, drop={"accuracy": 0.01})
    options = {"base": str(mobilenet), "budget": budget}
    assert print_plan(image_recipe.recipe, options, "text", "here") == 1, "the flash is too small"
    text = capsys.readouterr().out
    assert "On a microcontroller" in text
    assert "Millions of multiply-accumulates an image of 16x16: tuned 0.5" in text
    plan = plan_of(mobilenet, budget)
    found = {verdict["limit"]: (verdict["predicted"], verdict["ok"]) for verdict in plan.verdicts}
    assert found["disk_mb"][1] is True
    assert found["peak_over_bare_mb"][1] is True
    assert found["drop:accuracy"] == (None, None)
    assert found["sram_kb"][1] is True
    assert found["flash_kb"][1] is False, "whatever pruning takes"
    assert not plan.predictions["int8"], "a bound is no prediction"


def test_a_limit_between_the_most_and_the_least_that_can_be_left_does_not_fail(mobilenet: Path) -> None:
    row = next(row for row in plan_of(mobilenet, ImageBudget(disk_mb=4)).rows if row["name"] == "int8")
    least, most = row["at_least"]["disk_mb"], row["disk_mb"]
    assert least < 0.8 * most
    answers = {}
    for limit in (1.01 * most, 0.99 * most, 1.01 * least, 0.9 * least):
        plan = plan_of(mobilenet, ImageBudget(disk_mb=limit))
        answers[limit] = plan.verdicts[0]["ok"]
        assert plan.ok is not (answers[limit] is False)
        assert "disk_mb" not in plan.predictions["int8"]
        if plan.ok:
            refuse_impossible(plan.verdicts, plan.advice)
        else:
            with pytest.raises(UserError, match=r"int8 would take 0\.\d+ MB"):
                refuse_impossible(plan.verdicts, plan.advice)
    assert list(answers.values()) == [True, None, None, False]


def test_a_run_is_refused_for_a_size_that_is_sure(mobilenet: Path) -> None:
    plan = Plan()
    int8 = plan(image_recipe.ToOnnx(8), model=plan.base(str(mobilenet)), name="int8")
    plan.compare(
        int8, reference=int8, candidate=int8, budget=Budget(disk_mb=0.1), task=None, measure=image_recipe.MEASURE
    )
    assert plan.verdicts[0]["ok"] is False
    with pytest.raises(UserError, match=r"budget\.disk_mb 0\.1: int8 would take 0\.6\d* MB"):
        refuse_impossible(plan.verdicts, plan.advice)


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
@pytest.mark.parametrize("bits", [32, 8])
def test_what_is_timed_has_the_nodes_of_a_real_export(
    name: str, bits: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As onnxruntime optimizes them; in float it may fuse one sum more or less, by what it knows of the shapes."""
    folder = request.getfixturevalue(name)
    shape = ImageShape.read(folder).with_(format="onnx", weight_bits=bits)
    assert shape.timed is not None
    written = Writer(bits == 8).network(shape.timed).save(tmp_path / "written.onnx", 4)
    real = exported_once(folder)[bits] / "model.onnx"
    found, wanted = (kernels(file, tmp_path / "optimized.onnx") for file in (written, real))
    for kind in ("Conv", "QLinearConv", "QLinearAdd", "MaxPool", "NhwcMaxPool", "Gemm", "QGemm", "GlobalAveragePool"):
        assert found[kind] == wanted[kind], (kind, found, wanted)
    assert abs(found["Add"] - wanted["Add"]) <= 1


def kernels(file: Path, out: Path) -> Counter[str]:
    """What onnxruntime makes of a graph, fused convolutions as convolutions."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(out), 3
    onnxruntime.InferenceSession(file, options)
    names = (node.op_type.removeprefix("Fused") for node in onnx.load(str(out)).graph.node)
    return Counter(names)


def test_a_graph_is_timed_and_a_cut_one_takes_at_most_as_long(mobilenet: Path) -> None:
    plan = plan_of(mobilenet, ImageBudget(disk_mb=4, latency_ms=1e4, latency_ratio=1e-4))
    rows = {row["name"]: row for row in plan.rows}
    assert rows["tuned"]["latency_ms"] is rows["tuned"]["ram_mb"] is None
    assert rows["onnx"]["latency_ratio"] == 1
    assert rows["int8"]["latency_ms"] == pytest.approx(rows["int8"]["latency_ratio"] * rows["onnx"]["latency_ms"])
    assert rows["int8"]["latency_ms"] > 0
    answers = {verdict["limit"]: verdict["ok"] for verdict in plan.verdicts}
    assert (answers["latency_ms"], answers["latency_ratio"]) == (True, None)


def test_of_other_networks_only_bytes_and_work_are_said() -> None:
    config = json.loads(ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2).to_json_string())
    shape = ImageShape(config, (32, 32), format="onnx")
    found = shape.predicted()
    assert min(found["disk_mb"], found["mmacs"]) > 0
    assert found["ram_mb"] is found["peak_over_bare_mb"] is shape.timed is None
    assert shape.with_(keep_flops=0.5).predicted()["at_least"]["disk_mb"] < found["disk_mb"]


def test_a_uniformly_pruned_network_is_timed_as_a_narrower_one(resnet: Path, tmp_path: Path) -> None:
    narrow = ImageShape.read(write_resnet(tmp_path / "narrow", [8, 16, 32])).with_(format="onnx")
    whole = ImageShape.read(resnet).with_(format="onnx")
    share = narrow.macs / whole.macs
    assert whole.with_(keep_flops=share, uniform=True, round_to=4).timed == narrow.network.layers
    assert whole.with_(keep_flops=share, round_to=4).timed == whole.network.layers
    assert whole.with_(keep_flops=share, round_to=2).timed is None
    eights = whole.with_(keep_flops=0.5, uniform=True, round_to=8).timed
    assert eights is not None
    assert {layer.outputs for layer in list(eights.values())[:-1]} == {8, 24, 40}
    assert ImageShape.read(resnet).timed is None


def test_a_resnet_is_planned_without_sram(resnet: Path) -> None:
    plan = plan_of(resnet, ImageBudget(sram_kb=64))
    assert [(v["limit"], v["ok"]) for v in plan.verdicts] == [("sram_kb", None)]
    assert "cannot be predicted, only a MobileNetV2's" in "\n".join(plan.advice)
    assert plan.ok


def spoil(change: Callable[[Path], Any], folder: Path, out: Path) -> Path:
    out.mkdir()
    for name in image_recipe.COMPANIONS:
        (out / name).write_bytes((folder / name).read_bytes())
    change(out)
    return out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), r"has no preprocessor_config\.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{}"), "is damaged"),
    ],
)
def test_a_folder_that_cannot_be_planned_is_named(
    change: Callable[[Path], Any], told: str, mobilenet: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        Plan().base(str(spoil(change, mobilenet, tmp_path / "spoilt")))


def test_a_size_that_the_network_cannot_read_is_named(mobilenet: Path) -> None:
    with pytest.raises(UserError, match="cannot be planned for 0x0"):
        ImageShape.read(mobilenet).with_(size=(0, 0)).predicted()


def test_the_plan_reads_as_text(mobilenet: Path) -> None:
    text = render(plan_of(mobilenet, ImageBudget(disk_mb=0.5)))
    assert "Pruned to 75% of the FLOPs, which can leave, in MB: spoilt" in text
    assert "predicted ≤ 0.6" in text
    assert "is decided by what pruning leaves: run it" in text
