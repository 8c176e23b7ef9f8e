"""What is no model, no folder or no number is refused in one line, whichever command meets it."""

from pathlib import Path

import pytest

from tests.test_cli import refused

CONFIGS = {"list": "[1]", "null": "null", "cut off": '{"a": ', "empty": "", "no fields": "{}"}


@pytest.fixture(params=CONFIGS)
def no_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose config.json is no model's."""
    (tmp_path / "config.json").write_text(CONFIGS[request.param], encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("recipe", ["iot_camera", "summarize_7b", "legal_bert"])
def test_a_config_that_is_none_is_refused_by_the_plan(recipe: str, no_model: Path) -> None:
    assert str(no_model / "config.json") in refused("plan", recipe, "--base", no_model)


def test_a_run_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused("run", "iot_camera", "--smoke", "--run-dir", tmp_path / "file" / "run")
    assert line == f"hfcompress: {tmp_path / 'file' / 'run'}: Not a directory; give another place, or mend this one"


def test_what_no_memory_holds_is_refused() -> None:
    assert "not enough memory" in refused("plan", "resnet_prune", "--new.side", "10000000")


def test_a_number_out_of_range_is_named_as_it_was_typed() -> None:
    assert refused("plan", "iot_camera", "--qat.learning-rate", "nan") == (
        "hfcompress: --qat.learning-rate nan: must be a finite number"
    )
