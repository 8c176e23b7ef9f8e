"""A student is cut from its teacher, learns to answer like it, and is a stock model at the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hfcompress.architectures import encoders
from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.models import load_classifier, load_tokenizer, save
from hfcompress.compress.distill import Distill, evenly_spread
from hfcompress.errors import UserError
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training import teacher_outputs

QUICK: dict[str, Any] = {"learning_rate": 1e-3, "per_device_train_batch_size": 16, "bf16": "no"}
EVERY_LOSS: dict[str, Any] = {
    "hard_weight": 0.5, "hidden_weight": 1.0, "attention_weight": 1.0, "relation_weight": 1.0, "relation_heads": 4,
}  # fmt: skip


def distilled(out: Path, stage: Distill, teacher: Path, task: TextClassification) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    return stage(out, model=teacher, task=task)


@pytest.mark.parametrize(
    ("layers", "count", "chosen"),
    [(12, 4, [2, 5, 8, 11]), (6, 3, [1, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (24, 1, [23]), (12, 5, [1, 4, 6, 9, 11])],
)
def test_layers_are_evenly_spread_and_end_at_the_last(layers: int, count: int, chosen: list[int]) -> None:
    assert evenly_spread(layers, count) == chosen


def test_layers_are_never_taken_twice() -> None:
    for layers in range(1, 33):
        for count in range(1, layers + 1):
            chosen = evenly_spread(layers, count)
            assert len(set(chosen)) == count
            assert chosen[-1] == layers - 1


def test_the_student_starts_as_the_heaviest_parts_of_the_teacher(tiny_model: Path) -> None:
    teacher = load_classifier(tiny_model)
    with torch.no_grad():
        for layer in encoders.layers(teacher):
            layer.attention.self.value.weight[16:48] *= 10  # heads 1 and 2
            layer.intermediate.dense.weight[::2] *= 10
    student, layers = Distill(num_hidden_layers=2, num_attention_heads=2, intermediate_size=64).student(teacher)
    old, new = encoders.layers(teacher)[3], encoders.layers(student)[1]
    assert layers == [1, 3]
    dimensions = encoders.weight_scores(teacher)[2].topk(32).indices.sort().values
    assert torch.equal(new.attention.self.key.weight, old.attention.self.key.weight[16:48][:, dimensions])
    assert torch.equal(new.intermediate.dense.weight, old.intermediate.dense.weight[::2][:, dimensions])


def test_a_student_of_the_teachers_own_shape_is_the_teacher(tiny_model: Path) -> None:
    teacher = load_classifier(tiny_model)
    student, _ = Distill(num_hidden_layers=4).student(teacher)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_with_every_loss_and_less_width_the_result_is_a_stock_model_as_good_as_the_teacher(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    stage = Distill(
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_train_epochs=10, **EVERY_LOSS, **QUICK
    )
    measured = distilled(tmp_path, stage, tiny_teacher, tiny_task)
    loaded = load_classifier(tmp_path, tiny_task.data.labels)
    assert set(load_file(tmp_path / "model.safetensors")) == set(loaded.state_dict())  # no projection was saved
    assert stage.predict(Shape.from_config(load_classifier(tiny_teacher).config.to_dict(), 3)) == Shape.from_config(
        loaded.config.to_dict(), 3
    )
    right = Predictor(tmp_path, 1).logits(tiny_task.data.texts("test"), 32).argmax(axis=1)
    assert (right == tiny_task.data.label_ids("test")).mean() >= 0.9
    assert measured["teacher_layers"] == [1, 3]
    json.dumps(measured, allow_nan=False)


@pytest.mark.parametrize(
    "weight", ["logits_weight", "hard_weight", "hidden_weight", "attention_weight", "relation_weight"]
)
def test_each_loss_alone_is_zero_for_the_teacher_itself_and_above_for_another(
    tiny_teacher: Path, tiny_task: TextClassification, weight: str
) -> None:
    """A student that is the teacher has nothing left to learn; the true labels are the one loss it can still have."""
    from tests.training.test_teacher_outputs import padded

    stage = Distill(**({"logits_weight": 0.0} | {weight: 2.0}), num_hidden_layers=4, relation_heads=4)  # type: ignore[arg-type]
    student = encoders.with_attention_maps(stage.student(load_classifier(tiny_teacher))[0])
    wanted = stage._wanted([1, 2, 3, 4], 4)
    loss = stage.loss(teacher_outputs.LiveTeacher(tiny_teacher, wanted, bf16="no"), wanted)
    batch = padded(tiny_task, tiny_teacher, list(range(8)))
    same = loss(student, batch).item()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    other = loss(student, batch).item()
    assert other > same + 1e-6
    assert same == pytest.approx(0.0, abs=1e-5) or weight == "hard_weight"


def test_cached_and_recomputed_teacher_lead_to_the_same_student(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    weights = []
    for cache in (True, False):
        stage = Distill(num_hidden_layers=2, max_steps=5, cache=cache, **QUICK)
        distilled(tmp_path / str(cache), stage, tiny_teacher, tiny_task)
        weights.append(load_file(tmp_path / str(cache) / "model.safetensors"))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-4, rtol=1e-3)


def test_extra_text_is_taught_by_the_teacher_alone(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlabelled lines join the data with the label -100: the teacher answers for them, the true labels do not."""
    seen: list[dict[str, list[int]]] = []
    original = teacher_outputs.CachedTeacher.__call__

    def watch(self: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append({name: batch[name].tolist() for name in ("index", "labels")})
        return original(self, batch)

    monkeypatch.setattr(teacher_outputs.CachedTeacher, "__call__", watch)
    extra = tmp_path / "extra.txt"
    extra.write_text("the river and the ocean\n\niron of the party\n" * 10, encoding="utf-8")
    stage = Distill(num_hidden_layers=1, num_train_epochs=1, hard_weight=1.0, extra_text=extra, **QUICK)
    measured = distilled(tmp_path / "out", stage, tiny_teacher, tiny_task)
    labels = {i: label for batch in seen for i, label in zip(batch["index"], batch["labels"], strict=True)}
    assert sorted(labels) == list(range(240 + 20))
    assert {label for i, label in labels.items() if i >= 240} == {-100}
    assert [labels[i] for i in range(240)] == tiny_task.data.label_ids("train")
    assert measured["steps"] == 17
    (logits,) = (tmp_path / "teacher-logits").glob("*/logits.bin")
    assert logits.stat().st_size == 260 * 3 * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_hidden_layers": 5}, ["num_hidden_layers 5", "1 to 4"]),
        ({"hidden_size": 40}, ["hidden_size 40", "32"]),
        ({"intermediate_size": 129}, ["intermediate_size 129", "1 to 128"]),
        ({"relation_weight": 1.0, "relation_heads": 12}, ["relation_heads 12", "1, 2, 4, 8, 16, 32, 64"]),
        ({"relation_weight": 1.0, "relation_heads": 64, "num_attention_heads": 3}, ["64 and 48", "1, 2, 4, 8, 16"]),
        ({"temperature": 0.0}, ["temperature 0"]),
        ({"logits_weight": 0.0}, ["not all of them 0"]),
        ({"hard_weight": -1.0}, ["hard_weight -1", "at least 0"]),
    ],
)
def test_options_that_cannot_be_are_refused_by_the_plan_already(options: dict[str, Any], words: list[str]) -> None:
    shape = Shape(4, 64, 4, 128, vocab_size=175)
    with pytest.raises(UserError) as error:
        Distill(**({"num_hidden_layers": 2} | options)).predict(shape)
    for word in words:
        assert word in str(error.value)


def test_a_linear_second_teacher_moves_the_student_towards_it(
    tmp_path: Path, tiny_teacher: Path, tiny_task: TextClassification
) -> None:
    """With all the weight on it, the student of a teacher with mixed-up labels still learns the task."""
    wrong = tmp_path / "wrong"
    network, tokenizer = load_classifier(tiny_teacher), load_tokenizer(tiny_teacher)
    with torch.no_grad():
        network.classifier.weight.copy_(network.classifier.weight.roll(1, dims=0))
        network.classifier.bias.copy_(network.classifier.bias.roll(1, dims=0))
    save(network, tokenizer, wrong)
    truth = torch.tensor(tiny_task.data.label_ids("test"))
    right = {}
    for weight in (0.0, 1.0):
        out = tmp_path / str(weight)
        stage = Distill(num_hidden_layers=2, num_train_epochs=6, linear_weight=weight, **QUICK)
        distilled(out, stage, wrong, tiny_task)
        answers = Predictor(out).logits(tiny_task.data.texts("test"), 32).argmax(axis=1)
        right[weight] = float((torch.from_numpy(answers) == truth).float().mean())
    assert right[0.0] < 0.3
    assert right[1.0] > 0.8


@pytest.mark.parametrize("options", [{"linear_weight": 1.5}, {"linear_weight": 0.5, "extra_text": Path("x.txt")}])
def test_a_linear_weight_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"linear_weight"):
        Distill(**options).predict(Shape(4, 64, 4, 128, vocab_size=175))
