"""iot_camera: a MobileNetV2 that fits a camera: channels pruned, then int8 by calibration and by training."""

from pathlib import Path
from typing import Any, Literal

from hfcompress.budget import ImageBudget
from hfcompress.compress.prune.structured import StructuredPruneImages
from hfcompress.compress.quantize.qat_images import QATImages
from hfcompress.evaluation.measure_images import MeasureImages
from hfcompress.formats.litert import ExportLiteRT
from hfcompress.formats.onnx_image_stages import ExportImages, StaticInt8Images
from hfcompress.formats.runtimes.litert_network import find_python
from hfcompress.formats.tensorrt_stage import NOTE, ExportTensorRT
from hfcompress.runs.run import Run
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.training.finetune_images import FinetuneImages
from hfcompress.training.new_images import NEW, NewMobileNet

SCALES = ("small", "full")
NEEDED = {
    "new": "without {.base} new",
    "litert": "without {.deliver} litert",
    "tensorrt": "without {.deliver} tensorrt-onnx",
}
CAMERA_MB = 256


def recipe(
    run: Run,
    base: str = "google/mobilenet_v2_1.0_224",
    task: ImageClassification = ImageClassification(),
    budget: ImageBudget = ImageBudget(disk_mb=4, ram_mb=CAMERA_MB, peak_over_bare_mb=64, drop={"accuracy": 0.01}),
    new: NewMobileNet = NewMobileNet(),
    finetune: FinetuneImages = FinetuneImages(),
    prune: StructuredPruneImages = StructuredPruneImages(keep_flops=0.7),
    static: StaticInt8Images = StaticInt8Images(),
    qat: QATImages = QATImages(),
    deliver: Literal["onnx", "litert", "tensorrt-onnx"] = "onnx",
    litert: ExportLiteRT = ExportLiteRT(),
    tensorrt: ExportTensorRT = ExportTensorRT(),
    measure: MeasureImages = MeasureImages(),
) -> dict[str, Any]:
    """Fine-tune a MobileNetV2, prune its channels, bring it to int8, and hold it to a camera's storage and memory.

    Args:
        base: the model to start from: a Hub id (org/name@revision) or a folder; new: one of random weights.
        task: the images.
        budget: the limits of the camera; drops are counted from the fine-tuned model, the latency ratio from its ONNX.
        new: its shape, where the base is new.
        finetune: the model before anything is compressed.
        prune: how many channels go, and the training in between.
        static: int8 with ranges calibrated on training images.
        qat: int8 learned by training with the fine-tuned model as teacher.
        deliver: what the verdicts are about and what is pushed: the ONNX that was trained in int8, or the pruned model
            as LiteRT or as ONNX for TensorRT; litert needs `make litert`.
        litert: how LiteRT is written.
        tensorrt: how ONNX for TensorRT is written.
        measure: how the models are measured.
    """
    if deliver == "litert":
        find_python()  # refused now, not when everything else is done
    start = run(new, task=task, name="base") if base == NEW else run.base(base)
    teacher = run(finetune, model=start, task=task, name="teacher")
    teacher_onnx = run(ExportImages(), model=teacher, task=task, name="teacher-onnx")
    teacher_int8 = run(static, model=teacher_onnx, task=task, name="teacher-static-int8")
    slim = run(prune, model=teacher, teacher=teacher, task=task, name="slim")
    slim_onnx = run(ExportImages(), model=slim, task=task, name="slim-onnx")
    slim_int8 = run(static, model=slim_onnx, task=task, name="slim-static-int8")
    int8 = run(qat, model=slim, teacher=teacher, task=task, name="int8")
    others: list[Any] = []
    notes: tuple[str, ...] = ()
    candidate = int8
    if deliver == "litert":
        others = [candidate := run(litert, model=slim, task=task, name="litert")]
    elif deliver == "tensorrt-onnx":
        others = [candidate := run(tensorrt, model=slim_onnx, task=task, name="tensorrt")]
        notes = (NOTE.format(name=candidate.name),)
    return run.compare(
        teacher,
        teacher_onnx,
        teacher_int8,
        slim,
        slim_onnx,
        slim_int8,
        int8,
        *others,
        reference=teacher,
        candidate=candidate,
        notes=notes,
        latency_reference=teacher_onnx,
        budget=budget,
        base=base,
        task=task,
        measure=measure,
    )


def arguments(scale: str, folder: Path) -> dict[str, Any]:
    """What a scale changes of the recipe's defaults; `folder` is the run's."""
    return {"small": small, "full": full, "smoke": smoke}[scale](folder)


def small(folder: Path) -> dict[str, Any]:
    """scikit-learn's digits, enlarged, and a narrow MobileNetV2 that the first stage trains from nothing: minutes."""
    shared: dict[str, Any] = {"per_device_train_batch_size": 32, "bf16": "no"}
    return {
        "base": NEW,
        "budget": ImageBudget(disk_mb=0.5, ram_mb=CAMERA_MB, peak_over_bare_mb=64, drop={"accuracy": 0.03}),
        "finetune": FinetuneImages(num_train_epochs=20, learning_rate=3e-3, **shared),
        "prune": StructuredPruneImages(
            keep_flops=0.6, iterations=3, epochs_between=1.0, num_train_epochs=8, learning_rate=2e-3, **shared
        ),
        "qat": QATImages(num_train_epochs=4, learning_rate=2e-4, **shared),
    }


def full(folder: Path) -> dict[str, Any]:
    """google's MobileNetV2 on Imagenette's ten classes of ImageNet, or on what --task.dataset names; on a GPU."""
    shared: dict[str, Any] = {"per_device_train_batch_size": 64, "flip": True}
    return {
        "task": ImageClassification(dataset="frgfm/imagenette", config="320px"),
        "finetune": FinetuneImages(num_train_epochs=5, learning_rate=3e-4, **shared),
        "prune": StructuredPruneImages(
            keep_flops=0.7, iterations=5, epochs_between=1.0, num_train_epochs=20, learning_rate=3e-4, **shared
        ),
        "static": StaticInt8Images(calibration_images=512),
        "qat": QATImages(num_train_epochs=5, learning_rate=5e-5, **shared),
    }


def smoke(folder: Path) -> dict[str, Any]:
    """A tiny MobileNetV2 on two hundred digits: every stage, in less than a minute."""
    shared: dict[str, Any] = {"num_train_epochs": 1, "per_device_train_batch_size": 32, "bf16": "no"}
    return {
        "base": NEW,
        "new": NewMobileNet(side=32, width=0.1),
        "task": ImageClassification(max_train_examples=200),
        "budget": ImageBudget(disk_mb=4, ram_mb=CAMERA_MB, peak_over_bare_mb=64, drop={"accuracy": 0.9}),
        "finetune": FinetuneImages(learning_rate=3e-3, **shared),
        "prune": StructuredPruneImages(keep_flops=0.8, iterations=1, scored_batches=2, learning_rate=2e-3, **shared),
        "static": StaticInt8Images(calibration_images=32),
        "qat": QATImages(learning_rate=1e-4, **shared),
        "measure": MeasureImages(runs=5, resamples=200),
    }
