"""What several verbs share."""

import json
from pathlib import Path

import pytest

from hfcompress.cli.common import require_texts
from hfcompress.errors import UserError
from tests.language_models import write_llama


def test_traffic_of_a_causal_lm_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^other writes texts"):
        require_texts(tiny_model, write_llama(tmp_path / "other", tied=False))


def test_a_click_models_requests_are_recorded(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "clicks"}))
    require_texts(tiny_model, other)


def test_traffic_of_an_image_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Before the new model is started in a process of its own, where nobody sees why it fails."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(UserError, match=r"^other labels images"):
        require_texts(tiny_model, other)
