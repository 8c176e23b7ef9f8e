"""Two processes train as one does: the same weights for the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfcompress.tasks.text_classification import TextClassification

PROGRAM = """
import sys
from pathlib import Path
from hfcompress.run import Run
from hfcompress.stages.finetune import Finetune
from hfcompress.tasks.text_classification import TextClassification
folder, model, data, batch = sys.argv[1:]
task = TextClassification(dataset=data, group_column="group", max_length=32)
stage = Finetune(max_steps=10, learning_rate=1e-3, per_device_train_batch_size=int(batch), bf16="no",
                 group_by_length=False, saves_per_epoch=1)
run = Run(Path(folder), "test", "small")
made = run(stage, model=Path(model), task=task, name="teacher")
sys.stdout.write(f"processes {run.ranks.num_processes} {made.path.name}" + chr(10))
"""


def train(
    launcher: list[str], folder: Path, model: Path, data: str, batch: int
) -> tuple[str, dict[str, torch.Tensor]]:
    program = folder.parent / "program.py"
    program.write_text(PROGRAM)
    command = [*launcher, str(program), str(folder), str(model), data, str(batch)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    (weights,) = folder.glob("teacher-*/model.safetensors")
    return done.stdout, load_file(weights)


def launchers() -> dict[str, list[str]]:
    tools = Path(sys.executable).parent
    config = Path(__file__).parents[1] / "recipes" / "accelerate" / "two_cpu_processes.yaml"
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


@pytest.mark.parametrize("launcher", ["accelerate", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_the_same_global_batch(
    tmp_path: Path, tiny_model: Path, tiny_task: TextClassification, launcher: str
) -> None:
    from recipes import tiny

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
