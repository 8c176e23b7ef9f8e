"""Movement pruning ends in a smaller stock model, finds what the task needs, and survives a kill."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from hfcompress.architectures import encoders
from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.models import load_classifier, load_tokenizer, save
from hfcompress.compress.prune.movement import MovementPrune, cut_and_check
from hfcompress.compress.prune.pruner import Pruner
from hfcompress.errors import UserError
from hfcompress.recipes import tiny
from hfcompress.tasks.text_classification import TextClassification

SHAPE: dict[str, int] = {"num_attention_heads": 2, "intermediate_size": 48}
QUICK: dict[str, Any] = {"per_device_train_batch_size": 16, "bf16": "no"}


def pruned(out: Path, stage: MovementPrune, model: Path, teacher: Path, task: TextClassification) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    return stage(out, model=model, teacher=teacher, task=task)


def with_noise(out: Path, teacher: Path, heads: int, neurons: int) -> Path:
    """The teacher, in every layer of which the first heads and neurons are overwritten with large random weights.

    What the task needs is small, what is large is noise: large weights of pretraining that a transfer does not need.
    """
    network, generator = load_classifier(teacher), torch.Generator().manual_seed(0)
    size = encoders.head_size(network)
    with torch.no_grad():
        for layer in encoders.layers(network):
            for weight in (
                layer.attention.self.value.weight[: heads * size],
                layer.attention.output.dense.weight[:, : heads * size],
                layer.intermediate.dense.weight[:neurons],
                layer.output.dense.weight[:, :neurons],
            ):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    save(network, load_tokenizer(teacher), out)
    return out


IMPORTANCES: tuple[Literal["movement", "magnitude", "l1"], ...] = ("movement", "magnitude", "l1")


def compared(
    folder: Path, model: Path, teacher: Path, task: TextClassification, **options: Any
) -> dict[str, dict[str, Any]]:
    """What each importance leads to with the same budget and the same steps."""
    return {
        importance: pruned(
            folder / importance, MovementPrune(importance=importance, **options, **QUICK), model, teacher, task
        )
        for importance in IMPORTANCES
    }


def test_movement_wins_where_the_large_neurons_are_not_the_needed_ones(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    """Magnitude and L1 keep the noise and know nothing; movement keeps the task (Sanh et al. 2020, figure 1)."""
    model = with_noise(tmp_path / "model", tiny_teacher, heads=0, neurons=64)
    options = {"num_attention_heads": 4, "intermediate_size": 32, "learning_rate": 1e-5, "num_train_epochs": 3}
    measured = compared(tmp_path, model, tiny_teacher, tiny_task, **options)
    accuracy = {name: result["validation"]["accuracy"] for name, result in measured.items()}
    assert accuracy["movement"] >= 0.85
    assert accuracy["movement"] > max(accuracy["magnitude"], accuracy["l1"]) + 0.3


@pytest.mark.slow
def test_movement_finds_the_heads_that_the_task_needs(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    model = with_noise(tmp_path / "model", tiny_teacher, heads=2, neurons=0)
    options = {"num_attention_heads": 2, "intermediate_size": 128, "learning_rate": 1e-4, "num_train_epochs": 5}
    measured = compared(tmp_path, model, tiny_teacher, tiny_task, **options)
    kept = {name: result["kept"]["heads"] for name, result in measured.items()}
    assert kept["magnitude"] == kept["l1"] == [[0, 1]] * 4  # the noise
    assert sum(head >= 2 for layer in kept["movement"] for head in layer) >= 7  # of 8
    accuracy = {name: result["validation"]["accuracy"] for name, result in measured.items()}
    assert accuracy["movement"] >= max(accuracy["magnitude"], accuracy["l1"])


def test_the_result_is_a_smaller_stock_model_without_masks_or_zeros(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    stage = MovementPrune(**SHAPE, num_train_epochs=6, learning_rate=1e-3, **QUICK)
    measured = pruned(tmp_path, stage, tiny_teacher, tiny_teacher, tiny_task)
    loaded, weights = load_classifier(tmp_path, tiny_task.data.labels), load_file(tmp_path / "model.safetensors")
    assert set(weights) == set(loaded.state_dict())
    assert not any((weight.abs().sum(dim=-1) == 0).any() for name, weight in weights.items()
                   if weight.ndim == 2 and "word_embeddings" not in name)  # fmt: skip
    shape = Shape.from_config(load_classifier(tiny_teacher).config.to_dict(), 3)
    assert Shape.from_config(loaded.config.to_dict(), 3) == stage.predict(shape)
    assert weights["bert.encoder.layer.0.intermediate.dense.weight"].shape == (48, 32)
    assert measured["validation"]["accuracy"] >= 0.85
    assert measured["largest_difference_of_cut_to_masked"] <= 1e-5
    assert measured["schedule"][0]["neurons"] == 128
    assert measured["schedule"][-1] == {"step": 90, "heads": 2, "neurons": 48, "dimensions": 32}
    assert all(len(heads) == 2 for heads in measured["kept"]["heads"])
    json.dumps(measured, allow_nan=False)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("step", [22, 40])  # amid an epoch: while pruning, and in the cool-down
def test_a_killed_training_ends_in_the_same_model(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Scores, masks and the schedule come back with the checkpoint."""
    stage = MovementPrune(**SHAPE, num_train_epochs=3, learning_rate=1e-3, saves_per_epoch=3, **QUICK)
    whole = pruned(tmp_path / "whole", stage, tiny_teacher, tiny_teacher, tiny_task)
    original = Pruner.advance
    steps: list[int] = []

    def dies(self: Pruner, now: int, total: int) -> None:
        if now == step:
            raise KilledError
        original(self, now, total)

    def counts(self: Pruner, now: int, total: int) -> None:
        steps.append(now)
        original(self, now, total)

    monkeypatch.setattr(Pruner, "advance", dies)
    with pytest.raises(KilledError):
        pruned(tmp_path / "cut", stage, tiny_teacher, tiny_teacher, tiny_task)
    monkeypatch.setattr(Pruner, "advance", counts)
    resumed = pruned(tmp_path / "cut", stage, tiny_teacher, tiny_teacher, tiny_task)
    assert steps == list(range(step // 5 * 5, 45))
    assert resumed["kept"] == whole["kept"]
    assert resumed["schedule"] == whole["schedule"]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    for name in first:
        assert torch.equal(first[name], second[name])


def test_a_cut_that_is_not_what_was_masked_is_refused(tiny_teacher: Path, tiny_task: TextClassification) -> None:
    network = load_classifier(tiny_teacher)
    pruner = Pruner(network, 2, 48, "l1", 0.1, 0.4)
    pruner.finish()
    honest = pruner.kept()

    def wrong() -> encoders.Kept:
        return encoders.Kept(honest.layers, honest.heads, [torch.arange(48)] * 4, honest.dimensions)

    pruner.kept = wrong  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"differ by"):
        cut_and_check(pruner, load_tokenizer(tiny_teacher), tiny_task)


def test_a_teacher_of_another_task_is_refused(tmp_path: Path, tiny_model: Path, tiny_task: TextClassification) -> None:
    other = tiny.write_model(tmp_path / "other", labels=["x", "y", "z"])
    with pytest.raises(UserError, match=r"other labels"):
        pruned(tmp_path / "out", MovementPrune(**SHAPE), tiny_model, other, tiny_task)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_attention_heads": 5}, ["num_attention_heads 5", "1 to 4"]),
        ({"intermediate_size": 256}, ["intermediate_size 256", "1 to 128"]),
        ({"warm_up": 0.6, "cool_down": 0.4}, ["warm_up 0.6", "together below 1"]),
        ({"warm_up": -0.1}, ["warm_up -0.1"]),
        ({"temperature": 0.0}, ["temperature 0"]),
        ({"logits_weight": 0.0}, ["logits_weight"]),
    ],
)
def test_options_that_cannot_be_are_refused_by_the_plan_already(options: dict[str, Any], words: list[str]) -> None:
    shape = Shape(4, 64, 4, 128, vocab_size=175)
    with pytest.raises(UserError) as error:
        MovementPrune(**({"num_attention_heads": 2, "intermediate_size": 32} | options)).predict(shape)
    for word in words:
        assert word in str(error.value)
