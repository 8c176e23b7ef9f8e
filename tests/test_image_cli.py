"""Image recipes on the command line: plan writes nothing, and what is of the wrong kind is one line."""

from pathlib import Path

import pytest

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from tests.image_models import write_mobilenet


def test_plan_and_help_write_nothing_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dispatch(["plan", "iot_camera"]) == 0
    assert "slim-static-int8" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        dispatch(["run", "iot_camera", "--help"])
    assert not list(tmp_path.iterdir())


def test_a_base_of_another_kind_is_one_line(tmp_path: Path) -> None:
    images = str(write_mobilenet(tmp_path / "images", ["a", "b"], side=16))
    with pytest.raises(UserError, match=r"--base .*: it is an image classifier, and this recipe takes a text encoder"):
        dispatch(["plan", "legal_bert", "--base", images])


def test_a_scale_beside_smoke_and_files_for_folders_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("{}")
    for arguments, message in (
        (["run", "iot_camera", "--smoke", "--scale", "full"], "--smoke has a scale of its own"),
        (["run", "iot_camera", "--run-dir", str(file)], "this is a file; give a folder"),
        (["check", str(file)], "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            dispatch(arguments)
