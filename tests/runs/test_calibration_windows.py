"""More windows of calibration text than the task gives are refused where they were typed, lowered where not."""

from dataclasses import dataclass
from typing import Any

import pytest

from hfcompress.cli import dispatch
from hfcompress.compress.quantize.calibrate import Calibrate
from hfcompress.errors import UserError
from hfcompress.formats.genai import ExportGenai
from hfcompress.runs.calibration import within_windows
from hfcompress.tasks.text_generation import CausalLM


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (
            "--calibrate.windows 33",
            "--calibrate.windows 33: --task.calibration-windows gives 32, and more has no effect; "
            "raise that to 33, or give at most 32",
        ),
        ("--genai.windows=40", "--genai.windows 40: --task.calibration-windows gives 32"),
        ("--genai.windows 8 --task.calibration-windows 4", "--genai.windows 8: --task.calibration-windows gives 4"),
        ("--calibrate.windows 16 --task.calibration-windows 4", "--calibrate.windows 16: --task.calib"),
    ],
)
def test_windows_beyond_the_tasks_are_refused_in_plan_and_run_in_the_same_words(
    verb: str, words: str, refusal: str
) -> None:
    with pytest.raises(UserError) as refused:
        dispatch([verb, "summarize_7b", *words.split()])
    assert str(refused.value).startswith(refusal)


def test_windows_that_nobody_typed_are_lowered_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {
        "task": CausalLM(calibration_windows=8),
        "calibrate": Calibrate(),
        "genai": ExportGenai(),
    }
    found = within_windows(options, ["task.calibration-windows"])
    assert (found["calibrate"].windows, found["genai"].windows) == (8, 8)
    assert options["calibrate"].windows == 16
    said = capsys.readouterr().err
    assert said == "hfcompress: --calibrate.windows: 8, all that --task.calibration-windows gives\n"


@dataclass(frozen=True)
class Other:
    """A task without calibration text."""


def test_other_tasks_are_left_alone() -> None:
    options = {"task": Other(), "calibrate": Calibrate(windows=99)}
    assert within_windows(options, ["calibrate.windows"]) == options
