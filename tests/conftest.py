import gc
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy are imported: two cores are shared
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # a decorator of compressed-tensors imports the compiler, for nothing
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import pytest
from filelock import FileLock

from tests.fork_server import WITHOUT_HUB, ForkServer, is_graph

if TYPE_CHECKING:  # pytest-xdist's controller imports this file and runs no test
    from hfcompress.tasks.image_classification import ImageClassification
    from hfcompress.tasks.text_classification import TextClassification

DATA = Path(os.environ.get("HFCOMPRESS_DATA", Path(__file__).parents[2] / "shared" / "data"))


PREDICTOR = ("hfcompress.rollout.serving", "hfcompress.formats.runtimes.predictor")
Made = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what the libraries made when they were imported: a million objects."""
    gc.freeze()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What a function writes into the folder of that name: made by one of pytest-xdist's workers, read by all.

    As its documentation does it ("Making session-scoped fixtures execute only once").
    """
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    root.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.is_file():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed amid it
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs command lines that find every library imported."""
    with ForkServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def memory_in_forks(fork_server: ForkServer) -> Iterator[None]:
    """Measure the memory of torch models in forks: a process that starts anew spends seconds on importing torch.

    A graph's process starts quickly, and a fork would count what its parent holds. Tests of the process itself import
    `fresh_process` before this is set up.
    """
    from hfcompress.formats import language_memory, memory

    real = memory.fresh_process

    def fresh_process(module: str, folder: Path, length: int, threads: int) -> dict[str, float]:
        if module == "memory" and is_graph(folder):
            return real(folder, length, threads)
        place = str(Path(folder).resolve())
        done = fork_server.call("tests.fork_server:memory_of", module, place, length, threads, timeout=600)
        if done.code != 0:
            raise RuntimeError(done.err)
        found: dict[str, float] = json.loads(done.out.splitlines()[-1])
        return found

    with pytest.MonkeyPatch.context() as patch:
        for module in (memory, language_memory):
            patch.setattr(module, "fresh_process", partial(fresh_process, module.__name__.rpartition(".")[2]))
        yield


@pytest.fixture(scope="session", autouse=True)
def shadowed_models_in_forks() -> Iterator[None]:
    """Start shadowed models in forks, too; command lines in processes of their own start theirs as a user's do."""
    from hfcompress.rollout import serving

    get_temp_dir()  # where the server's socket lies: made later, it would be in a stage's folder, and go with it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["onnxruntime", "transformers.models.bert.modeling_bert", *PREDICTOR])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "multiprocessing", SimpleNamespace(get_context=lambda method: context))
        yield


@pytest.fixture(scope="session")
def hub_fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs command lines with an environment of their own, which huggingface_hub has not read yet."""
    with ForkServer(tmp_path_factory.mktemp("server"), WITHOUT_HUB) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_task(made_once: Made) -> "TextClassification":
    """Three classes of short texts that a tiny model can learn, in groups of three."""
    from hfcompress.recipes import tiny
    from hfcompress.tasks.text_classification import TextClassification

    folder = made_once("data", tiny.write_dataset)
    return TextClassification(dataset=str(folder), group_column="group", max_length=32)


@pytest.fixture(scope="session")
def tiny_model(made_once: Made) -> Path:
    """Four layers, hidden size 64, four heads, intermediate size 128; random weights."""
    from hfcompress.recipes import tiny

    return made_once("model", tiny.write_model)


@pytest.fixture(scope="session")
def tiny_teacher(made_once: Made, tiny_model: Path, tiny_task: "TextClassification") -> Path:
    """`tiny_model`, fine-tuned until it classifies well."""
    from hfcompress.training.finetune import Finetune

    # At twice this rate two of the three classes melt into one with most seeds.
    finetune = Finetune(
        num_train_epochs=20, learning_rate=5e-4, per_device_train_batch_size=16, bf16="no", saves_per_epoch=1
    )
    return made_once("teacher", lambda out: finetune(out, model=tiny_model, task=tiny_task))


@pytest.fixture(scope="session")
def exported(made_once: Made, tiny_teacher: Path, tiny_task: "TextClassification") -> Path:
    """`tiny_teacher` as ONNX in fp32."""
    from hfcompress.formats.onnx import ExportOnnx

    def export(out: Path) -> None:
        (out / "work").mkdir()
        ExportOnnx()(out, model=tiny_teacher, task=tiny_task)

    return made_once("onnx", export)


@pytest.fixture(scope="session")
def image_task() -> "ImageClassification":
    """Four hundred digits for training."""
    from hfcompress.tasks.image_classification import ImageClassification

    return ImageClassification(max_train_examples=400)


@pytest.fixture(scope="session")
def image_base(made_once: Made, image_task: "ImageClassification") -> Path:
    """A narrow MobileNetV2 of random weights, for 16 pixels."""
    from tests.image_models import write_mobilenet

    return made_once("image-base", lambda out: write_mobilenet(out, image_task.data.labels, side=16))


@pytest.fixture(scope="session")
def image_classifier(
    made_once: Made, image_base: Path, image_task: "ImageClassification"
) -> tuple[Path, dict[str, Any]]:
    """`image_base`, trained until it reads some digits; and what its training returned."""
    from hfcompress.training.finetune_images import FinetuneImages

    finetune = FinetuneImages(
        num_train_epochs=8, learning_rate=3e-3, per_device_train_batch_size=32, bf16="no", shift=0.0
    )

    def train(out: Path) -> None:
        (out / "model").mkdir()
        progress = finetune(out / "model", model=image_base, task=image_task)
        (out / "progress.json").write_text(json.dumps(progress))

    out = made_once("image-classifier", train)
    return out / "model", json.loads((out / "progress.json").read_text())


@pytest.fixture(scope="session")
def finished(made_once: Made, tiny_teacher: Path, tiny_task: "TextClassification") -> Path:
    """A short run to its report: a teacher, its fp32 ONNX, its int8 ONNX."""
    return made_once("run", lambda folder: finish(folder, tiny_teacher, tiny_task))


def finish(folder: Path, tiny_teacher: Path, tiny_task: "TextClassification") -> None:
    """Write the run of `finished`."""
    from hfcompress.budget import Budget
    from hfcompress.evaluation.measure import Measure
    from hfcompress.formats.onnx import DynamicInt8, ExportOnnx
    from hfcompress.runs.run import Run
    from hfcompress.training.adopt import Adopt

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


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; without it a test skips, except in CI, where it must be there."""
    if not DATA.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the real data, and {DATA} is not there (set HFCOMPRESS_DATA)")
        pytest.skip(f"no real data in {DATA} (set HFCOMPRESS_DATA)")
    return DATA


LLAMA_PATH = "HFCOMPRESS_LLAMA_CPP"


@pytest.fixture(scope="session")
def llama_cpp() -> None:
    """llama-cpp-python, installed or in the folder that HFCOMPRESS_LLAMA_CPP names (pip install --target)."""
    if LLAMA_PATH in os.environ:
        sys.path.append(os.environ[LLAMA_PATH])
    pytest.importorskip(
        "llama_cpp", reason=f"llama-cpp-python is not installed, nor does {LLAMA_PATH} name its folder"
    )
