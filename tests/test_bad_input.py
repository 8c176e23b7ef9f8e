"""What is no model, no folder or no number is refused in one line, whichever command meets it."""

import json
from pathlib import Path

import numpy as np
import pytest

from hfcompress.errors import UserError
from hfcompress.evaluation.decoder import Array, open_decoder
from hfcompress.generation import generate
from hfcompress.models import load_tokenizer
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


@pytest.mark.parametrize("report", ["[]", "{}", '{"models": [], "verdicts": [{"candidate": "int8"}]}'])
@pytest.mark.parametrize("command", ["report", "check", "profile", "export", "push"])
def test_a_report_that_is_none_is_refused_by_every_command(command: str, report: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report, encoding="utf-8")
    more = {"export": ["--to", "onnx"], "push": ["--hub-model-id", "org/name", "--dry-run"]}
    if command == "check" and "models" in report:
        return  # there are no files to check
    assert "report" in refused(command, tmp_path, *more.get(command, []))


def test_a_lock_that_is_none_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "recipe.lock.json"
    for text in ("[]", "{}", '{"recipe": "legal_bert", "scale": "small", "options": {}}'):
        lock.write_text(text, encoding="utf-8")
        assert str(lock) in refused("run", "--from-lock", lock)


def test_a_decoder_without_a_graph_or_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"genai_config\.json is damaged"):
        open_decoder(tmp_path, 1)
    settings = {"context_length": 8, "decoder": {"num_key_value_heads": 1, "head_size": 4}}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": settings}), encoding="utf-8")
    (tmp_path / "model.onnx").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"model\.onnx cannot be run"):
        open_decoder(tmp_path, 1)


def test_a_tokenizer_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text('{"version": ', encoding="utf-8")
    with pytest.raises(UserError, match="no tokenizer that can be read"):
        load_tokenizer(tmp_path)


class Nan:
    """A decoder whose weights are nan."""

    length, context = 0, 8

    def append(self, ids: list[int], all_logits: bool = False) -> Array:
        return np.full((1, 4), np.nan, np.float32)

    def rewind(self, length: int) -> None:
        pass


def test_a_model_that_answers_nan_writes_nothing() -> None:
    with pytest.raises(UserError, match="no numbers"):
        next(generate(Nan(), [1], max_new_tokens=2, stop=set()))
