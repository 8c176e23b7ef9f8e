"""resnet_prune: a ResNet loses its least important channels, a few at a time, with training in between."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hfcompress.budget import ImageBudget
from hfcompress.compress.prune.structured import StructuredPruneImages
from hfcompress.compress.prune.target import Importance
from hfcompress.errors import UserError
from hfcompress.evaluation.measure_images import MeasureImages
from hfcompress.formats.onnx_image_stages import ExportImages, StaticInt8Images
from hfcompress.runs.run import Run
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.training.finetune_images import FinetuneImages
from hfcompress.training.new_images import NEW, NewResNet

SCALES = ("small", "full")
NEEDED = {"new": "without {.base} new"}
RANKINGS: tuple[Importance, ...] = ("l1", "taylor", "geometric_median", "reconstruction", "random")


DISTILLED: dict[str, Any] = {"temperature": 4.0, "logits_weight": 0.9, "hard_weight": 0.1, "states_weight": 20.0}


def recipe(
    run: Run,
    base: str = "microsoft/resnet-50",
    task: ImageClassification = ImageClassification(),
    budget: ImageBudget = ImageBudget(drop={"accuracy": 0.01}),
    new: NewResNet = NewResNet(),
    train: FinetuneImages = FinetuneImages(),
    prune: StructuredPruneImages = StructuredPruneImages(keep_flops=0.5, **DISTILLED),
    compared: tuple[Importance, ...] = RANKINGS,
    static: StaticInt8Images = StaticInt8Images(),
    measure: MeasureImages = MeasureImages(),
) -> dict[str, Any]:
    """Train a ResNet, prune its channels by several rankings, and hold one of them against the unpruned model.

    Args:
        base: the ResNet to start from: a Hub id (org/name@revision) or a folder; new: one of random weights.
        task: the images.
        budget: the limits that the pruned model's ONNX is held against; a drop is counted from the unpruned model that
            was trained on for as many steps, the latency ratio from its ONNX.
        new: its shape, where the base is new.
        train: how the unpruned model is trained.
        prune: target, schedule and ranking of the model that the verdicts are about; the unpruned model that was
            trained on is the teacher of all.
        compared: rankings that are measured beside it, at the same target and schedule.
        static: how its ONNX is brought to int8.
        measure: how the models are measured.
    """
    start = run(new, task=task, name="base") if base == NEW else run.base(base)
    unpruned = run(train, model=start, task=task, name="unpruned")
    longer = run(as_long(prune), model=unpruned, task=task, name="unpruned-finetuned")
    kinds = [prune.importance, *(kind for kind in compared if kind != prune.importance)]
    pruned = [
        run(replace(prune, importance=kind), model=unpruned, task=task, teacher=longer, name=shown(kind))
        for kind in kinds
    ]
    whole = run(ExportImages(), model=longer, task=task, name="unpruned-onnx")
    onnx = run(ExportImages(), model=pruned[0], task=task, name=f"{shown(kinds[0])}-onnx")
    int8 = run(static, model=onnx, task=task, name=f"{shown(kinds[0])}-int8")
    return run.compare(
        unpruned,
        longer,
        whole,
        *pruned,
        onnx,
        int8,
        reference=longer,
        candidate=onnx,
        latency_reference=whole,
        deliver=(onnx, int8),
        budget=budget,
        base=base,
        task=task,
        measure=measure,
    )


def shown(kind: str) -> str:
    """A ranking as its model is named."""
    return kind.replace("_", "-")


def as_long(prune: StructuredPruneImages) -> FinetuneImages:
    """The same training without cuts: as many passes over the same images, with the same options."""
    if prune.max_steps > 0:
        raise UserError("--prune.max-steps: the unpruned model could not be trained for as long; give epochs")
    shared = {field.name: getattr(prune, field.name) for field in fields(FinetuneImages)}
    between = (prune.iterations - 1) * prune.epochs_between
    return FinetuneImages(**shared | {"num_train_epochs": between + prune.num_train_epochs})


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """What a scale changes of the recipe's defaults; `folder` is the run's."""
    return {"small": small, "full": full, "smoke": smoke}[scale](folder)


def small(folder: Path) -> dict[str, Any]:
    """scikit-learn's digits, 32 x 32, and a ResNet-14 that the first stage trains from nothing: minutes."""
    shared: dict[str, Any] = {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "bf16": "no"}
    return {
        "base": NEW,
        "budget": ImageBudget(drop={"accuracy": 0.03}),
        "train": FinetuneImages(num_train_epochs=12, **shared),
        "prune": StructuredPruneImages(
            keep_flops=0.5,
            epochs_between=1.0,
            num_train_epochs=6,
            round_to=4,  # of 16 channels multiples of 8 would leave a ranking nothing to choose
            **DISTILLED,
            **shared,
        ),
    }


def full(folder: Path) -> dict[str, Any]:
    """ResNet-50 on Imagenette's ten classes of ImageNet, or on the data set that --task.dataset names; on a GPU."""
    shared: dict[str, Any] = {"per_device_train_batch_size": 64, "learning_rate": 1e-4, "flip": True}
    return {
        "task": ImageClassification(dataset="frgfm/imagenette", config="320px"),
        "train": FinetuneImages(num_train_epochs=5, **shared),
        "prune": StructuredPruneImages(
            keep_flops=0.5, iterations=10, epochs_between=2.0, num_train_epochs=20, **DISTILLED, **shared
        ),
    }


def smoke(folder: Path) -> dict[str, Any]:
    """A ResNet-8 on two hundred digits: every stage, in less than a minute."""
    shared: dict[str, Any] = {"per_device_train_batch_size": 16, "learning_rate": 5e-3, "bf16": "no"}
    return {
        "base": NEW,
        "new": NewResNet(side=16, widths=(8, 16), blocks=1),
        "task": ImageClassification(max_train_examples=200),
        "budget": ImageBudget(drop={"accuracy": 0.9}),
        "train": FinetuneImages(num_train_epochs=2, **shared),
        "prune": StructuredPruneImages(keep_flops=0.6, iterations=2, num_train_epochs=1, round_to=4, **shared),
        "compared": ("random",),
        "static": StaticInt8Images(calibration_images=32),
        "measure": MeasureImages(runs=5, resamples=200),
    }
