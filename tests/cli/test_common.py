"""What several verbs share."""

import json
from pathlib import Path
from typing import Any

import pytest

from hfcompress.cli.common import require_texts
from hfcompress.errors import UserError
from tests.language_models import write_llama


def test_traffic_of_a_causal_lm_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^other writes texts"):
        require_texts(tiny_model, write_llama(tmp_path / "other", tied=False))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "clicks"}, "other scores clicks"),
        ({"model_type": "resnet"}, "other labels images"),
    ],
)
def test_traffic_of_what_labels_no_texts_is_refused(
    config: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Before the new model is started in a process of its own, where nobody sees why it fails."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"^{said}"):
        require_texts(tiny_model, other)
