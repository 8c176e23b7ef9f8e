"""Image recipes on the command line: plan writes nothing, and what is of the wrong kind is one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from hfcompress.architectures.models import load_classifier
from hfcompress.cli import dispatch
from hfcompress.compress.distill import Distill
from hfcompress.compress.factorize.factorize import Factorize, FactorizeImages
from hfcompress.compress.prune.movement import MovementPrune
from hfcompress.compress.prune.structured import StructuredPrune, StructuredPruneImages
from hfcompress.compress.quantize.qat import QAT
from hfcompress.compress.quantize.qat_images import QATImages
from hfcompress.errors import UserError
from hfcompress.formats.onnx_images import export_images
from hfcompress.training.finetune import Finetune
from hfcompress.training.finetune_images import FinetuneImages
from hfcompress.training.pretrain import Pretrain
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


def test_stages_of_images_have_no_options_of_texts_and_those_of_texts_keep_theirs() -> None:
    of_texts = {"mask_probability", "group_by_length"}
    for stage in (FinetuneImages, QATImages, StructuredPruneImages, FactorizeImages):
        of_others = of_texts | {"heads", "neurons", "cache", "tt_rank"}
        assert not of_others & {field.name for field in dataclasses.fields(stage)}
        assert {"flip", "shift"} <= {field.name for field in dataclasses.fields(stage)}
    for stage in (Finetune, Distill, MovementPrune, QAT, Pretrain, StructuredPrune, Factorize):
        assert of_texts <= {field.name for field in dataclasses.fields(stage)}
        assert not {"flip", "shift", "kind", "states_weight"} & {field.name for field in dataclasses.fields(stage)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--qat.shift", "0.6"], r"^--qat\.shift 0\.6: a share of the image"),
        (["--finetune.shift=-1", "--qat.flip"], r"^--finetune\.shift -1: "),
        (["--finetune.shift", "0.1", "--qat.shift", "0.9"], r"^--qat\.shift 0\.9: "),
        (["--finetune.shift", "0.9", "--qat.shift", "0.9"], r"^--finetune\.shift or --qat\.shift 0\.9: "),
        (["--prune.states_weight", "-1"], r"^--prune\.states_weight -1: "),
        (["--prune.keep-bytes", "0.5"], r"^--prune\.keep-flops, --prune\.keep-parameters, .*\(2 are given"),
    ],
)
def test_a_refused_option_is_named_as_it_was_typed(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dispatch(["plan", "iot_camera", *arguments])


def test_an_image_run_is_no_language_model(tmp_path: Path) -> None:
    model = write_mobilenet(tmp_path / "int8-1", ["a", "b"], side=16, width=0.1)
    report = {"models": [{"name": "int8", "path": model.name}], "verdicts": [{"candidate": "int8"}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "details.json").write_text(json.dumps({"max_length": 0}))
    (tmp_path / "a.txt").write_text("A text.")
    with pytest.raises(UserError, match=r"labels images, and is no language model .*: hfcompress predict .* --image"):
        dispatch(["summarize", str(tmp_path), str(tmp_path / "a.txt")])


def test_profile_says_the_size_of_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_mobilenet(tmp_path / "model", ["a", "b"], side=16, width=0.1)
    (tmp_path / "onnx").mkdir()
    export_images(load_classifier(model), tmp_path / "onnx", (16, 16))
    shutil.copyfile(model / "config.json", tmp_path / "onnx" / "config.json")
    for folder, runtime in ((model, "torch"), (tmp_path / "onnx", "onnxruntime")):
        assert dispatch(["profile", str(folder), "--runs", "1", "--batch", "2"]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert line == f"{runtime}, batch 2, images of 16 x 16 pixels, 1 thread"
