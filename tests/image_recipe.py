"""A recipe of image classifiers for tests: fine-tuned, spoilt a little, and as ONNX in fp32 and int8."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.budget import ImageBudget
from hfcompress.evaluation.measure_images import MeasureImages
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.training.finetune_images import FinetuneImages
from tests import onnx_images

TASK = ImageClassification(max_train_examples=300)
FINETUNE = FinetuneImages(num_train_epochs=4, learning_rate=3e-3, per_device_train_batch_size=32, bf16="no", shift=0.0)
BUDGET = ImageBudget(disk_mb=4, drop={"accuracy": 0.05})
MEASURE = MeasureImages(runs=3, resamples=200)
COMPANIONS = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Spoil:
    """The classifier's rows of two classes are changed for their mean: some of their images flip."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, out: Path, *, model: Path, task: Any = None) -> dict[str, Any]:
        from safetensors.torch import load_file, save_file

        shutil.copytree(model, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("record.json"))
        tensors = load_file(out / "model.safetensors")
        weight = tensors["classifier.weight"]
        weight[3] = weight[5] = (weight[3] + weight[5]) / 2
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return {"before": {"flops": 200}, "after": {"flops": 150}}

    def predict(self, model: Any, *, task: Any = None) -> Any:
        return model.with_(keep_flops=0.75, round_to=8)


@dataclass(frozen=True)
class ToOnnx:
    """model.onnx, in fp32 or as static int8 QDQ."""

    bits: int = 32
    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, out: Path, *, model: Path, task: Any = None) -> dict[str, Any]:
        from hfcompress.architectures.models import load_classifier
        from hfcompress.formats.memory import image_size
        from hfcompress.formats.onnx_images import export_images

        side = image_size(model)[0]
        export_images(load_classifier(model), out, (side, side))
        if self.bits == 8:
            onnx_images.quantize(out / "model.onnx", out / "int8.onnx", side)
            (out / "int8.onnx").rename(out / "model.onnx")
        for name in COMPANIONS:
            shutil.copyfile(model / name, out / name)
        return {"integer_kernels": {"QLinearConv": 52, "QGemm": 1}} if self.bits == 8 else {}

    def predict(self, model: Any, *, task: Any = None) -> Any:
        return model.with_(format="onnx", weight_bits=self.bits)


def recipe(
    run: Any,
    base: str,
    task: ImageClassification = TASK,
    budget: ImageBudget = BUDGET,
    finetune: FinetuneImages = FINETUNE,
    measure: MeasureImages = MEASURE,
) -> Any:
    """A digit classifier for a camera."""
    tuned = run(finetune, model=run.base(base), task=task, name="tuned")
    spoilt = run(Spoil(), model=tuned, task=task, name="spoilt")
    graph = run(ToOnnx(), model=spoilt, task=task, name="onnx")
    int8 = run(ToOnnx(8), model=spoilt, task=task, name="int8")
    return run.compare(
        tuned,
        spoilt,
        graph,
        int8,
        reference=tuned,
        candidate=int8,
        budget=budget,
        task=task,
        measure=measure,
        latency_reference=graph,
        base=base,
        notes=("A note that must be seen <first>.",),
    )
