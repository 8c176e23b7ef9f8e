"""Image classifiers planned from their configs: bytes near those of a real export, work as another count has it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ConvNextImageProcessor,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hfcompress.budget import Budget, ImageBudget
from hfcompress.cli.running import print_plan, refuse_impossible
from hfcompress.errors import UserError
from hfcompress.evaluation.size import sizes
from hfcompress.image_onnx import export_images
from hfcompress.image_shape import ImageShape
from hfcompress.mobilenet_graph import mobilenet_graph
from hfcompress.plan import Plan, render
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


def exported(folder: Path, kind: Any, out: Path) -> dict[int, int]:
    """Bits -> bytes of the model in ONNX, its batch norms as after training: the exporter stores equal biases once."""
    network = kind.from_pretrained(folder)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
    out.mkdir()
    export_images(network.eval(), out, (16, 16))
    for name in image_recipe.COMPANIONS:
        (out / name).write_bytes((folder / name).read_bytes())
    found = {32: int(sizes(out)["bytes"])}
    onnx_images.quantize(out / "model.onnx", out / "int8.onnx", 16)
    (out / "model.onnx").unlink()
    return found | {8: int(sizes(out)["bytes"])}


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_predicted_bytes_are_those_of_a_real_export(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    kind = {"mobilenet": MobileNetV2ForImageClassification, "resnet": ResNetForImageClassification}[name]
    shape = ImageShape.read(folder).with_(format="onnx")
    for bits, measured in exported(folder, kind, tmp_path / "onnx").items():
        predicted = shape.with_(weight_bits=bits).predicted()["disk_mb"] * 1e6
        assert predicted == pytest.approx(measured, rel=0.03), bits


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
    assert shape.counts.one_sided_macs > 0


def test_a_pruned_shape_is_that_of_a_narrower_network(resnet: Path, tmp_path: Path) -> None:
    narrow = ImageShape.read(write_resnet(tmp_path / "narrow", [8, 16, 32]))
    whole = ImageShape.read(resnet)
    pruned = whole.with_(keep_flops=narrow.macs / whole.macs)
    assert pruned.width_share == pytest.approx(0.5, abs=0.01)
    assert pruned.predicted()["parameters"] == pytest.approx(narrow.predicted()["parameters"], rel=0.01)
    assert pruned.predicted()["mmacs"] == pytest.approx(narrow.macs / 1e6)


def test_a_pruned_mobilenet_keeps_the_share_of_its_work(mobilenet: Path) -> None:
    shape = ImageShape.read(mobilenet).with_(keep_flops=0.4)
    share, counts = shape.width_share, shape.counts
    left = share**2 * counts.two_sided_macs + share * counts.one_sided_macs
    assert left == pytest.approx(0.4 * (counts.two_sided_macs + counts.one_sided_macs))


def plan_of(base: Path, budget: Any) -> Plan:
    plan = Plan()
    image_recipe.recipe(plan, str(base), budget=budget)
    return plan


def test_a_recipe_is_planned_with_sram_and_flash(
    mobilenet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfcompress import microcontroller

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
    assert found["peak_over_bare_mb"] == (None, None)
    assert found["drop:accuracy"] == (None, None)
    assert found["sram_kb"][1] is True
    assert found["flash_kb"][1] is False
    assert plan.predictions["int8"]["flash_kb"] == found["flash_kb"][0] > 100
    assert "sram_kb" not in plan.predictions["tuned"]


def test_a_run_is_refused_for_a_size_that_is_sure_and_not_for_one_that_pruning_decides(mobilenet: Path) -> None:
    pruned = plan_of(mobilenet, ImageBudget(disk_mb=0.1))
    assert pruned.verdicts[0]["ok"] is False
    refuse_impossible(pruned.verdicts, pruned.advice)
    plan = Plan()
    int8 = plan(image_recipe.ToOnnx(8), model=plan.base(str(mobilenet)), name="int8")
    plan.compare(int8, reference=int8, candidate=int8, budget=Budget(disk_mb=0.1), task=None, measure=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--budget\.disk-mb 0\.1: int8 would take 0\.7 MB"):
        refuse_impossible(plan.verdicts, plan.advice)


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
    text = render(plan_of(mobilenet, ImageBudget(disk_mb=4)))
    assert "Pruned to 75% of the FLOPs" in text
