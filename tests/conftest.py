import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy are imported: two cores are shared
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import pytest

from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.text_classification import TextClassification
from recipes import tiny
from tests.image_models import write_mobilenet

DATA = Path(os.environ.get("HFCOMPRESS_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> TextClassification:
    """Three classes of short texts that a tiny model can learn, in groups of three."""
    folder = tiny.write_dataset(tmp_path_factory.mktemp("tiny") / "data")
    return TextClassification(dataset=str(folder), group_column="group", max_length=32)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, hidden size 64, four heads, intermediate size 128; random weights."""
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_task: TextClassification) -> Path:
    """`tiny_model`, fine-tuned until it classifies well."""
    from hfcompress.stages.finetune import Finetune

    out = tmp_path_factory.mktemp("tiny") / "teacher"
    out.mkdir()
    # At twice this rate two of the three classes melt into one with most seeds.
    Finetune(num_train_epochs=20, learning_rate=5e-4, per_device_train_batch_size=16, bf16="no", saves_per_epoch=1)(
        out, model=tiny_model, task=tiny_task
    )
    return out


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_task: TextClassification) -> Path:
    """`tiny_teacher` as ONNX in fp32."""
    from hfcompress.stages.onnx import ExportOnnx

    out = tmp_path_factory.mktemp("tiny") / "onnx"
    (out / "work").mkdir(parents=True)
    ExportOnnx()(out, model=tiny_teacher, task=tiny_task)
    return out


@pytest.fixture(scope="session")
def image_task() -> ImageClassification:
    """Four hundred digits for training."""
    return ImageClassification(max_train_examples=400)


@pytest.fixture(scope="session")
def image_base(tmp_path_factory: pytest.TempPathFactory, image_task: ImageClassification) -> Path:
    """A narrow MobileNetV2 of random weights, for 16 pixels."""
    return write_mobilenet(tmp_path_factory.mktemp("images") / "base", image_task.data.labels, side=16)


@pytest.fixture(scope="session")
def image_classifier(
    tmp_path_factory: pytest.TempPathFactory, image_base: Path, image_task: ImageClassification
) -> tuple[Path, dict[str, Any]]:
    """`image_base`, trained until it reads some digits; and what its training returned."""
    from hfcompress.stages.finetune_images import FinetuneImages

    out = tmp_path_factory.mktemp("images") / "classifier"
    out.mkdir()
    finetune = FinetuneImages(
        num_train_epochs=8, learning_rate=3e-3, per_device_train_batch_size=32, bf16="no", shift=0.0
    )
    return out, finetune(out, model=image_base, task=image_task)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_task: TextClassification) -> Path:
    """A short run to its report: a teacher, its fp32 ONNX, its int8 ONNX."""
    from hfcompress.budget import Budget
    from hfcompress.run import Run
    from hfcompress.stages.adopt import Adopt
    from hfcompress.stages.measure import Measure
    from hfcompress.stages.onnx import DynamicInt8, ExportOnnx

    folder = tmp_path_factory.mktemp("push") / "run"
    run = Run(folder, "legal_bert", "small", options={"task": tiny_task})
    teacher = run(Adopt(), model=tiny_teacher, task=tiny_task, name="teacher")
    onnx = run(ExportOnnx(), model=teacher, task=tiny_task, name="teacher-onnx")
    int8 = run(DynamicInt8(), model=onnx, task=tiny_task, name="int8")
    run.compare(
        teacher,
        onnx,
        int8,
        reference=teacher,
        candidate=int8,
        deliver=(teacher, onnx, int8),
        base=str(tiny_teacher),
        budget=Budget(disk_mb=1, drop={"accuracy": 0.5}),
        task=tiny_task,
        measure=Measure(sequence_length=32, runs=5, resamples=200),
    )
    run.close()
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; without it a test skips, except in CI, where it must be there."""
    if not DATA.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the real data, and {DATA} is not there (set HFCOMPRESS_DATA)")
        pytest.skip(f"no real data in {DATA} (set HFCOMPRESS_DATA)")
    return DATA
