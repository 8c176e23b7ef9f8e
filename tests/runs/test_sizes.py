"""Default sizes of students: lowered to what the model has, and said; typed ones are refused."""

from pathlib import Path

import pytest

from hfcompress.cli import dispatch
from hfcompress.compress.distill import Distill
from hfcompress.compress.prune.movement import MovementPrune
from hfcompress.errors import UserError
from hfcompress.recipes import tiny
from hfcompress.runs.sizes import within_sizes
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.text_generation import CausalLM


def test_defaults_are_lowered_one_group_after_the_other(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "base": str(tiny_model),  # 4 layers, 4 heads, 128 neurons
        "teacher": "auto",
        "distill": Distill(num_hidden_layers=6, intermediate_size=100),
        "prune": MovementPrune(num_attention_heads=11, intermediate_size=1024),
    }
    found = within_sizes(options, ["distill.intermediate-size"])
    assert (found["distill"].num_hidden_layers, found["distill"].intermediate_size) == (4, 100)
    assert (found["prune"].num_attention_heads, found["prune"].intermediate_size) == (4, 100)
    name = tiny_model.name
    assert capsys.readouterr().err.splitlines() == [
        f"hfcompress: --distill.num-hidden-layers: 4, all that {name} has",
        f"hfcompress: --prune.num-attention-heads: 4, all that {name} has",
        f"hfcompress: --prune.intermediate-size: 100, all that {name} has",
    ]
    assert options["distill"].num_hidden_layers == 6


def test_a_hidden_size_says_how_many_heads_are_left(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"base": str(tiny_model), "distill": Distill(hidden_size=32), "prune": MovementPrune()}
    found = within_sizes(options, ["distill.hidden-size"])
    assert found["prune"].num_attention_heads == 2
    assert "--prune.num-attention-heads: 2, all that" in capsys.readouterr().err


def test_a_small_model_is_planned_and_a_typed_size_refused(
    tiny_model: Path, tiny_task: TextClassification, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "legal_bert", f"--base={tiny_model}", f"--task.dataset={tiny_task.dataset}"]
    dispatch([*command, "--task.group-column=group"])
    assert "--prune.num-attention-heads: 4, all that" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^--prune\.num-attention-heads 11: from 1 to 4"):
        dispatch([*command, "--task.group-column=group", "--prune.num-attention-heads=11"])


def test_a_student_in_hand_is_what_is_pruned(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tiny.write_model(tmp_path / "student", layers=2, heads=2, hidden=32, intermediate=48)
    options = {"teacher": str(tiny_model), "student": str(student), "distill": Distill(num_hidden_layers=6)}
    found = within_sizes(options | {"prune": MovementPrune(num_attention_heads=4, intermediate_size=48)}, [])
    assert found["distill"].num_hidden_layers == 6  # nothing is distilled
    assert found["prune"].num_attention_heads == 2
    assert capsys.readouterr().err == "hfcompress: --prune.num-attention-heads: 2, all that student has\n"


def test_a_model_that_is_not_here_changes_nothing() -> None:
    options = {"base": "org/name", "teacher": "auto", "distill": Distill(num_hidden_layers=40)}
    assert within_sizes(options, []) == options


def test_a_window_alone_is_read_by_halves() -> None:
    assert CausalLM(window=96).step == 48
    assert CausalLM().step == 256
    assert CausalLM(window=96, stride=96).step == 96
    with pytest.raises(UserError, match=r"^stride 97: from 1 to window \(96\)"):
        CausalLM(window=96, stride=97)
