"""Two processes train as one does: the same weights for the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hfcompress.tasks.text_classification import TextClassification

PRELUDE = """
import sys
from pathlib import Path
from hfcompress.runs.run import Run
from hfcompress.compress.distill import Distill
from hfcompress.training.finetune import Finetune
from hfcompress.compress.prune.movement import MovementPrune
from hfcompress.compress.quantize.qat import QAT
from hfcompress.tasks.text_classification import TextClassification
folder, model, data, batch = sys.argv[1:]
task = TextClassification(dataset=data, group_column="group", max_length=32)
options = dict(max_steps=10, learning_rate=1e-3, per_device_train_batch_size=int(batch), bf16="no",
               group_by_length=False, saves_per_epoch=1)
run = Run(Path(folder), "test", "small")
model = Path(model)
sys.stdout.write(f"processes {run.ranks.num_processes}" + chr(10))
"""

FINETUNE = """
run(Finetune(**options), model=model, task=task, name="teacher")
"""

THE_OTHERS = """
distill = Distill(num_hidden_layers=1, hidden_weight=1.0, **options)
student = run(distill, model=model, task=task, name="student")
prune = MovementPrune(num_attention_heads=2, intermediate_size=64, **options)
slim = run(prune, model=student, teacher=model, task=task, name="slim")
run(QAT(**options | {"learning_rate": 1e-4}), model=slim, teacher=model, task=task, name="int8")
"""


def run_program(launcher: list[str], stages: str, folder: Path, model: Path, data: str, batch: int) -> str:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    program = folder.with_suffix(".py")
    program.write_text(PRELUDE + stages)
    command = [*launcher, str(program), str(folder), str(model), data, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train(
    launcher: list[str], folder: Path, model: Path, data: str, batch: int
) -> tuple[str, dict[str, torch.Tensor]]:
    said = run_program(launcher, FINETUNE, folder, model, data, batch)
    (weights,) = folder.glob("teacher-*/model.safetensors")
    return said, load_file(weights)


def launchers() -> dict[str, list[str]]:
    tools = Path(sys.executable).parent
    config = Path(__file__).parents[2] / "recipes" / "accelerate" / "two_cpu_processes.yaml"
    return {
        "accelerate": [
            str(tools / "accelerate"),
            "launch",
            "--config_file",
            str(config),
            "--main_process_port",
            "29571",
        ],
        "torchrun": [str(tools / "torchrun"), "--nproc_per_node", "2", "--master_port", "29572"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_equal_one_with_the_same_global_batch(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, launcher: str
) -> None:
    from hfcompress.recipes import tiny

    model = tiny.write_model(tmp_path / "model", layers=2, dropout=0.0)
    data = tiny_task.dataset
    said, two = train(launchers()[launcher], tmp_path / "two", model, data, batch=8)
    assert said.count("processes 2") == 2
    said, one = train([sys.executable], tmp_path / "one", model, data, batch=16)
    assert said.count("processes 1") == 1
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name
    _, other = train([sys.executable], tmp_path / "other", model, data, batch=8)
    assert any(not torch.allclose(tensor, two[name], atol=1e-5) for name, tensor in other.items())


@pytest.mark.slow
def test_every_training_stage_is_the_same_on_two_processes(tmp_path: Path, tiny_task: TextClassification) -> None:
    import onnx
    from onnx import numpy_helper

    from hfcompress.recipes import tiny

    model = tiny.write_model(tmp_path / "model", layers=2, dropout=0.0, labels=tiny_task.data.labels)
    for name, launcher, batch in (("two", launchers()["torchrun"], 8), ("one", [sys.executable], 16)):
        said = run_program(launcher, THE_OTHERS, tmp_path / name, model, tiny_task.dataset, batch)
        assert said.count(f"processes {2 if name == 'two' else 1}") == (2 if name == "two" else 1)
    for stage in ("student", "slim"):
        two, one = (load_file(next((tmp_path / n).glob(f"{stage}-*/model.safetensors"))) for n in ("two", "one"))
        for name, tensor in one.items():
            assert torch.allclose(tensor, two[name], atol=1e-5), (stage, name)
    graphs = [onnx.load(next((tmp_path / n).glob("int8-*/model.onnx"))) for n in ("two", "one")]
    for left, right in zip(*(graph.graph.initializer for graph in graphs), strict=True):
        a, b = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in (left, right))
        integer = left.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        step = 1 if integer else 1e-4  # a value on the edge of two levels
        assert np.abs(a - b).max(initial=0) <= step, left.name
