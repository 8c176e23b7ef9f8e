"""A pretrained base with other labels than the task's gets a new head; a teacher with other labels is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from hfcompress.architectures.models import load_classifier, save
from hfcompress.compress.prune.structured import StructuredPruneImages
from hfcompress.compress.quantize.qat_images import QATImages
from hfcompress.errors import UserError
from hfcompress.planning.image_spec import ImageShape
from hfcompress.planning.plan import Plan
from hfcompress.recipes import tiny
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune
from hfcompress.training.finetune_images import FinetuneImages
from tests.image_models import processor, write_mobilenet
from tests.tasks.test_image_task import class_folders, picture

ELEVEN = [f"imagenet {i}" for i in range(11)]
QUICK: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 4, "bf16": "no"}


def write_resnet(folder: Path, labels: list[str]) -> Path:
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **named)
    ResNetForImageClassification(config).save_pretrained(folder)
    processor(32).save_pretrained(folder)
    return folder


def write_narrow(folder: Path, labels: list[str]) -> Path:
    return write_mobilenet(folder, labels, side=32, width=0.1)


@pytest.fixture
def animals(tmp_path: Path) -> ImageClassification:
    return ImageClassification(dataset=str(class_folders(tmp_path / "data", train__owl__one=picture())))


@pytest.mark.parametrize("write", [write_narrow, write_resnet])
@pytest.mark.parametrize("labels", [ELEVEN, ["x", "y", "z"]], ids=["eleven", "as many as before"])
def test_finetuning_starts_with_the_pretrained_body_and_a_new_head(
    tmp_path: Path,
    animals: ImageClassification,
    labels: list[str],
    write: Callable[[Path, list[str]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = write(tmp_path / "base", labels)
    old = load_classifier(base)
    torch.manual_seed(1)
    new = load_classifier(base, animals.data.labels, replace_head=True)
    assert f"base was made for the labels {labels[0]}" in capsys.readouterr().err
    state = new.base_model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in old.base_model.state_dict().items())
    weights = [next(p for p in model.classifier.parameters()) for model in (old, new)]
    assert len(weights[1]) == 3
    assert not torch.equal(weights[0][:3], weights[1])
    FinetuneImages(**QUICK)(tmp_path / "out", model=base, task=animals)
    made = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert list(made.config.id2label.values()) == animals.data.labels == ["cat", "dog", "owl"]
    assert made(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 3)


def test_a_text_base_with_other_labels_gets_a_new_head_too(tmp_path: Path, tiny_task: TextClassification) -> None:
    base = tiny.write_model(tmp_path / "base", labels=["yes", "no"])
    Finetune(**QUICK)(tmp_path / "out", model=base, task=tiny_task)
    assert load_classifier(tmp_path / "out", tiny_task.data.labels).config.num_labels == 3


def test_a_teacher_with_other_labels_is_still_refused(tmp_path: Path, animals: ImageClassification) -> None:
    teacher = write_narrow(tmp_path / "teacher", ELEVEN)
    model = write_narrow(tmp_path / "model", animals.data.labels)
    for stage in (QATImages(**QUICK), StructuredPruneImages(keep_flops=0.8, **QUICK)):
        with pytest.raises(UserError, match="other labels"):
            stage(tmp_path / "out", model=model, teacher=teacher, task=animals)
        with pytest.raises(UserError, match=r"was made for the labels imagenet 0, .* give a teacher of this task"):
            stage(tmp_path / "out", model=teacher, teacher=teacher, task=animals)


def test_a_cut_base_with_other_labels_is_refused(tmp_path: Path, animals: ImageClassification) -> None:
    network: Any = load_classifier(write_narrow(tmp_path / "whole", ELEVEN))
    network.edits = [{"edit": "resize", "module": "classifier", "to": {"out_features": 11}}]
    save(network, processor(32), tmp_path / "cut")
    with pytest.raises(UserError, match="cannot get a new head: give the model that it was made from"):
        FinetuneImages(**QUICK)(tmp_path / "out", model=tmp_path / "cut", task=animals)


def test_the_plan_counts_the_tasks_labels(tmp_path: Path, animals: ImageClassification) -> None:
    base = write_narrow(tmp_path / "base", ELEVEN)
    plan: Any = Plan()
    planned = plan(FinetuneImages(), model=plan.base(str(base)), task=animals, name="teacher").shape
    assert planned.labels == ["cat", "dog", "owl"]
    features = load_classifier(base).classifier.in_features
    assert ImageShape.read(base).network.parameters - planned.network.parameters == 8 * (features + 1)
    on_hub = ImageClassification(dataset="frgfm/imagenette")
    assert FinetuneImages().predict(ImageShape.read(base), task=on_hub).labels == ELEVEN, "the Hub is not asked"
