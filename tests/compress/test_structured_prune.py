"""structured_prune: the stage loads as it says, leaves its input, is the same twice and after a kill, and refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import hfcompress
from hfcompress.architectures import layers
from hfcompress.architectures.encoder_spec import Shape, parameters
from hfcompress.compress.prune.structured import StructuredPrune, StructuredPruneImages
from hfcompress.errors import UserError
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.planning.image_spec import ImageShape
from hfcompress.planning.plan import Plan
from hfcompress.runs.run import Run
from hfcompress.stage import content_key
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune_images import FinetuneImages
from hfcompress.training.new_images import NewResNet
from tests.image_models import write_mobilenet

IMAGES = ImageClassification(max_train_examples=160)
QUICK: dict[str, Any] = {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "bf16": "no", "saves_per_epoch": 1}
STAGE = StructuredPruneImages(keep_flops=0.5, iterations=2, num_train_epochs=1, scored_batches=2, round_to=1, **QUICK)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for long enough that its statistics are those of the images."""
    folder = tmp_path_factory.mktemp("resnet")
    base = folder / "base"
    NewResNet(side=16, widths=(8, 16), blocks=1)(base, task=IMAGES)
    (folder / "trained").mkdir()
    FinetuneImages(num_train_epochs=4, **QUICK)(folder / "trained", model=base, task=IMAGES)
    shutil.rmtree(folder / "trained" / "work")
    return folder / "trained"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, resnet: Path) -> tuple[Path, dict[str, Any]]:
    return made(tmp_path_factory.mktemp("pruned"), STAGE, resnet, IMAGES)


def made(out: Path, stage: Any, model: Path, task: Any, **inputs: Any) -> tuple[Path, dict[str, Any]]:
    out.mkdir(parents=True, exist_ok=True)
    return out, stage(out, model=model, task=task, **inputs)


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_it_loads_in_two_lines_smaller_and_dense(resnet: Path, pruned: tuple[Path, dict[str, Any]]) -> None:
    folder, measured = pruned
    network = hfcompress.load(folder)
    assert parameters_of(network) == measured["after"]["parameters"] < 0.6 * parameters_of(hfcompress.load(resnet))
    assert 0.3 < measured["after"]["flops"] / measured["before"]["flops"] <= 0.5
    assert measured["saved_as"] == "surgery"
    assert (folder / "surgery.json").is_file()
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all((weight.flatten(1).abs().sum(dim=1) > 0).all() for weight in weights), "no zeros pretending"
    assert all(entry["largest_difference_of_cut_to_masked"] < 1e-4 for entry in measured["iterations"])
    assert ImagePredictor(folder).logits(IMAGES.data.images("test")[:3]).shape == (3, 10)
    json.dumps(measured, allow_nan=False)


def test_the_input_is_left_as_it_was_and_the_record_is_complete(tmp_path: Path, resnet: Path) -> None:
    before = {file.name: file.read_bytes() for file in resnet.iterdir()}
    run = Run(tmp_path / "run", "test", "small")
    record = run(STAGE, model=resnet, task=IMAGES, name="pruned").record
    run.close()
    assert {file.name: file.read_bytes() for file in resnet.iterdir()} == before
    assert (record.stage, record.format) == ("StructuredPruneImages", "surgery")
    assert record.options["keep_flops"] == 0.5
    assert {"before", "after", "widths", "left_alone", "iterations", "steps"} <= set(record.measured)
    assert record.measured["difference_from_parent"]["examples"] > 0
    assert record.parameters >= record.measured["after"]["parameters"]
    assert not (run.folder / f"pruned-{record.key}" / "work").exists()


def test_the_same_seed_gives_the_same_model(tmp_path: Path, resnet: Path, pruned: tuple[Path, dict[str, Any]]) -> None:
    again, _ = made(tmp_path, STAGE, resnet, IMAGES)
    first, second = (load_file(folder / "model.safetensors") for folder in (pruned[0], again))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_key_is_stable_and_follows_the_options(resnet: Path) -> None:
    inputs = {"model": resnet, "task": IMAGES}
    key = content_key(STAGE, inputs)
    assert key == content_key(replace(STAGE), inputs)
    assert key != content_key(replace(STAGE, importance="l1"), inputs)


class KilledError(Exception):
    pass


def test_a_killed_stage_ends_in_the_same_model(
    tmp_path: Path, resnet: Path, pruned: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid the training after the second cut: the first is not trained again, the second goes on at its checkpoint."""
    from transformers import Trainer

    original, steps = Trainer.training_step, list[int]()

    def dies(self: Any, *arguments: Any, **more: Any) -> Any:
        steps.append(self.state.global_step)
        if len(steps) == 7:
            raise KilledError
        return original(self, *arguments, **more)

    stage = replace(STAGE, saves_per_epoch=2, shift=0.0)
    whole, expected = made(tmp_path / "whole", stage, resnet, IMAGES)
    monkeypatch.setattr(Trainer, "training_step", dies)
    with pytest.raises(KilledError):
        made(tmp_path / "cut", stage, resnet, IMAGES)
    killed_at = steps[-1]
    folder, measured = made(tmp_path / "cut", stage, resnet, IMAGES)
    assert killed_at > 0
    assert 0 < measured["resumed_at_step"] <= killed_at
    assert len(steps) - 7 < expected["steps"], "what was trained is not trained again"
    assert measured["widths"] == expected["widths"]
    first, second = (load_file(place / "model.safetensors") for place in (whole, folder))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_uniformly_narrower_resnet_is_a_stock_one(tmp_path: Path, resnet: Path) -> None:
    stage = replace(STAGE, ranking="uniform", importance="l1", iterations=1)
    folder, measured = made(tmp_path, stage, resnet, IMAGES)
    assert measured["saved_as"] == "transformers"
    network = AutoModelForImageClassification.from_pretrained(folder)
    assert parameters_of(network) == measured["after"]["parameters"]
    assert network.config.hidden_sizes[1] < 16


def test_a_mobilenet_is_pruned_through_its_depthwise_convolutions(tmp_path: Path) -> None:
    model = write_mobilenet(tmp_path / "model", IMAGES.data.labels, side=16)
    stage = StructuredPruneImages(
        keep_parameters=0.6, importance="l1", iterations=1, round_to=4, max_steps=1, num_train_epochs=1, **QUICK
    )
    folder, measured = made(tmp_path / "out", stage, model, IMAGES)
    network = hfcompress.load(folder)
    assert parameters_of(network) == measured["after"]["parameters"] <= 0.6 * measured["before"]["parameters"]
    depthwise = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(m.groups == m.in_channels == m.out_channels and m.groups % 4 == 0 for m in depthwise)
    again, second = made(tmp_path / "again", replace(stage, keep_parameters=0.8), folder, IMAGES)
    assert second["saved_as"] == "surgery"
    assert parameters_of(hfcompress.load(again)) <= 0.8 * parameters_of(network), "a cut model can be cut again"


def test_an_image_teacher_gives_soft_labels(tmp_path: Path, resnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.training.teacher_outputs import LiveTeacher

    asked = []
    original = LiveTeacher.__call__
    monkeypatch.setattr(LiveTeacher, "__call__", lambda self, batch: asked.append(1) or original(self, batch))
    _, measured = made(tmp_path, replace(STAGE, iterations=1, max_steps=2), resnet, IMAGES, teacher=resnet)
    assert len(asked) == 2
    assert np.isfinite(measured["final_loss"])
    shutil.copytree(resnet, tmp_path / "other")
    config = json.loads((resnet / "config.json").read_text())
    config["id2label"] = dict(zip(config["id2label"], reversed(config["id2label"].values()), strict=True))
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="or the same in another order"):
        STAGE(tmp_path, model=resnet, teacher=tmp_path / "other", task=IMAGES)


def test_states_are_held_to_the_teachers_and_residual_streams_stay(
    tmp_path: Path, resnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that blocks pass on is compared, since only channels within them were cut."""
    from hfcompress.ops import losses

    compared = []
    original = losses.states_mse
    monkeypatch.setattr(losses, "states_mse", lambda s, t: compared.append((s, t)) or original(s, t))
    stage = replace(STAGE, keep_flops=0.9, iterations=1, max_steps=2, states_weight=5.0)
    folder, measured = made(tmp_path, stage, resnet, IMAGES, teacher=resnet)
    pixels = torch.randn(1, 3, 32, 32)
    states = [hfcompress.load(f)(pixels, output_hidden_states=True).hidden_states for f in (resnet, folder)]
    assert [s.shape for s in states[0]] == [s.shape for s in states[1]]
    assert measured["after"]["flops"] <= 0.9 * measured["before"]["flops"]
    assert len(compared) == 2
    assert len(compared[0][0]) == len(states[0])
    with pytest.raises(UserError, match=r"states_weight 5: for models that have a teacher"):
        stage.predict(ImageShape({"model_type": "resnet"}, (32, 32)), task=IMAGES)


def test_heads_and_neurons_of_a_bert_are_cut_and_the_teacher_is_asked(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    stage = StructuredPrune(
        keep_flops=0.5, iterations=2, num_train_epochs=1, epochs_between=0.5, learning_rate=5e-4, bf16="no",
        per_device_train_batch_size=16,
    )  # fmt: skip
    run = Run(tmp_path / "run", "test", "small")
    made = run(stage, model=tiny_teacher, teacher=tiny_teacher, task=tiny_task, name="slim")
    run.close()
    measured, network = made.record.measured, hfcompress.load(made.path)
    assert made.record.format == "surgery"
    assert measured["after"]["flops"] <= 0.5 * measured["before"]["flops"]
    found = []
    for layer in network.bert.encoder.layer:
        attention = layer.attention.self
        assert attention.query.out_features == 16 * attention.num_attention_heads
        found += [attention.num_attention_heads, layer.intermediate.dense.out_features]
    assert [width[1] for width in measured["widths"].values()] == found
    assert sum(found) < 4 * (4 + 128)
    planned = parameters(Plan().base(str(made.path)).shape)
    assert planned == pytest.approx(made.record.parameters, rel=0.02), "what was cut is planned as such"
    assert measured["best_metric"] > 0.5


def test_uniform_neurons_of_a_bert_are_a_stock_bert_of_the_planned_shape(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    stage = StructuredPrune(
        keep_parameters=0.75, importance="l1", ranking="uniform", heads=False, iterations=1, max_steps=2, bf16="no",
        per_device_train_batch_size=16,
    )  # fmt: skip
    folder, measured = made(tmp_path, stage, tiny_teacher, tiny_task)
    assert measured["saved_as"] == "transformers"
    assert not (folder / "surgery.json").exists()
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    whole = Shape.from_config(hfcompress.load(tiny_teacher).config.to_dict(), 3)
    planned = stage.predict(whole)
    assert abs(network.config.intermediate_size - planned.intermediate_size) <= 1
    assert network.config.intermediate_size < whole.intermediate_size


def test_latency_is_a_target_too(tmp_path: Path, resnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pretended machine: time follows the layers' FLOPs."""
    from hfcompress.planning.machine import Machine

    monkeypatch.setattr(layers, "BLOCK", 1)  # the widths here are 8 and 16
    monkeypatch.setattr(Machine, "graph_ms", lambda self, layer, graph, shape: 1e-6 * layer.flops)
    stage = StructuredPruneImages(keep_latency=0.5, importance="l1", iterations=1, max_steps=1, round_to=1, **QUICK)
    _, measured = made(tmp_path, stage, resnet, IMAGES)
    assert 0 < measured["after"]["latency"] <= 0.5 * measured["before"]["latency"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one"),
        ({"keep_flops": 0.5, "keep_bytes": 0.5}, "exactly one"),
        ({"keep_flops": 0.0}, r"keep_flops 0"),
        ({"keep_flops": 0.5, "iterations": 0}, r"iterations 0"),
        ({"keep_flops": 0.5, "round_to": 0}, r"round_to 0"),
        ({"keep_flops": 0.5, "epochs_between": 0.0}, r"epochs_between 0"),
        ({"keep_flops": 0.5, "temperature": 0.0}, r"temperature 0"),
        ({"keep_flops": 0.5, "logits_weight": 0.0, "hard_weight": 0.0}, "not all of them 0"),
        ({"keep_flops": 0.5, "heads": False, "neurons": False}, "one of them at least"),
    ],
)
def test_options_that_cannot_be_are_refused_by_the_plan_already(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        StructuredPrune(**options).predict(Shape(4, 64, 4, 128, vocab_size=175))


def test_a_share_that_empties_layers_is_refused_before_any_training(tmp_path: Path, resnet: Path) -> None:
    with pytest.raises(UserError, match=r"keep_flops 0\.001: would empty layers"):
        made(tmp_path, replace(STAGE, keep_flops=0.001, iterations=1), resnet, IMAGES)
