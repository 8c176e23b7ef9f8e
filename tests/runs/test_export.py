"""export: each format from a run or a folder, what it says, and what it refuses in one line."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from hfcompress.architectures.models import load_classifier, load_tokenizer
from hfcompress.cli import dispatch
from hfcompress.compress.quantize import qat
from hfcompress.errors import UserError
from hfcompress.formats import onnx_export, tensorrt_rules
from hfcompress.formats.onnx import copy_companions
from hfcompress.formats.onnx_export import constant_values
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.formats.runtimes.litert_network import find_python
from hfcompress.formats.runtimes.predictor import Predictor
from hfcompress.runs import delivery
from hfcompress.tasks.text_classification import TextClassification
from tests import image_models, onnx_images


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MobileNetV2 with its processor."""
    folder = tmp_path_factory.mktemp("camera") / "camera"
    folder.mkdir()
    onnx_images.mobilenet().save_pretrained(folder)
    image_models.processor(32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_task: TextClassification) -> Any:
    """By target, what QAT delivers of a BERT: here calibrated and not trained."""

    def make(target: str) -> Path:
        out = tmp_path_factory.mktemp(target)
        network = load_classifier(tiny_model, tiny_task.data.labels)
        qat.prepare(network, symmetric=target == "tensorrt", learned=False)
        tokenizer = load_tokenizer(tiny_model)
        qat.calibrate(network, tokenizer, tiny_task.data.encode(tokenizer, 32, "train"))
        qat.write_int8(network, out, signed=target == "tensorrt")
        copy_companions(tiny_model, out)
        return out

    return {target: make(target) for target in ("cpu", "tensorrt")}


def run_around(model: Path, folder: Path, parent: Path | None = None) -> Path:
    """A run folder that delivers `model`, made from `parent`."""
    shutil.copytree(model, folder / "int8-1")
    if parent is not None:
        shutil.copytree(parent, folder / "slim-1")
        (folder / "int8-1" / "record.json").write_text(json.dumps({"inputs": {"model": "slim-1"}}))
    row = {"name": "int8", "path": "int8-1"}
    (folder / "report.json").write_text(json.dumps({"models": [row], "verdicts": [{"candidate": "int8"}]}))
    return folder


def refused(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as error:
        dispatch(["export", *map(str, arguments)])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_onnx_of_a_folder_answers_as_torch(camera: Path, tmp_path: Path) -> None:
    assert dispatch(["export", str(camera), "--to", "onnx", "--out", str(tmp_path / "out")]) == 0
    pixel_values = onnx_images.images(3)
    one, other = (ImagePredictor(folder, 1).run(pixel_values) for folder in (camera, tmp_path / "out"))
    assert np.abs(one - other).max() < 1e-4 * np.abs(one).max()


def test_onnx_of_a_run_is_what_it_delivers(quantized: dict[str, Path], tmp_path: Path) -> None:
    run = run_around(quantized["cpu"], tmp_path / "run")
    found = delivery.export(str(run), "onnx", tmp_path / "out", bits=32, images=None, python=None)
    assert "int8" in found.lines[0]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (quantized["cpu"] / "model.onnx").read_bytes()
    assert Predictor(tmp_path / "out", 1).logits(["a text"], 32).shape == (1, 3)


def test_an_asymmetric_image_model_is_quantized_anew(
    camera: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8 = tmp_path / "int8"
    int8.mkdir()
    float_model = onnx_images.export(onnx_images.mobilenet(), tmp_path)
    onnx_images.quantize(float_model, int8 / "model.onnx")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(camera / name, int8 / name)
    run = run_around(int8, tmp_path / "run", parent=camera)
    arguments = ["export", str(run), "--to", "tensorrt-onnx", "--images", str(pictures)]
    assert dispatch([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("quantized anew, symmetrically, from its torch weights, since ")
    assert "keeps TensorRT's 10 documented rules" in said
    assert "trtexec --onnx=model.onnx --saveEngine=model.engine --shapes=pixel_values:1x3x32x32" in said
    tensorrt_rules.require(onnx.load(str(tmp_path / "out" / "model.onnx")), "model.onnx")
    assert "give that one" in refused(int8, "--to", "tensorrt-onnx", "--out", tmp_path / "no", "--images", pictures)
    assert not (tmp_path / "no").exists()


def test_a_runs_own_images_are_taken(camera: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.runs import own_data as cli
    from hfcompress.runs.lock import LOCK, lock
    from hfcompress.tasks.image_classification import ImageClassification

    digits = ImageClassification()

    def recipe(run: Any, task: ImageClassification = digits) -> None: ...

    monkeypatch.setattr(cli, "load_recipe", lambda name: SimpleNamespace(name=name, recipe=recipe))
    run = run_around(camera, tmp_path / "run")
    task = ImageClassification(max_train_examples=100)
    (run / LOCK).write_text(json.dumps(lock("cameras", "small", {"task": task}, task.identity)))
    images = cli.images_of(str(run), None)
    assert images(camera, 5).shape == (5, 3, 32, 32)
    assert cli.images_of(str(camera), None) is None  # no run
    there = json.loads((run / LOCK).read_text())
    there["options"]["task"]["dataset"] = {"local": "photographs", "sha256": None}
    (run / LOCK).write_text(json.dumps(there))
    assert cli.images_of(str(run), None) is None  # photographs of another machine


def test_a_text_model_of_the_target_tensorrt_keeps_the_rules(quantized: dict[str, Path], tmp_path: Path) -> None:
    source = quantized["tensorrt"]
    before = onnx.load(str(source / "model.onnx"))
    assert {v.rule for v in tensorrt_rules.violations(before)} == {tensorrt_rules.PAIRS}  # its gathered int8 rows
    found = delivery.export(str(source), "tensorrt-onnx", tmp_path / "out", bits=32, images=None, python=None)
    assert "input_ids:1x128" in found.lines[-1]
    texts = ["some words of a text", "another one"]
    one, other = (Predictor(folder, 1).logits(texts, 32) for folder in (source, tmp_path / "out"))
    assert np.abs(one - other).max() < 1e-5
    after = constant_values(onnx.load(str(tmp_path / "out" / "model.onnx")))
    assert sum(a.nbytes for a in after.values()) <= 1.1 * sum(a.nbytes for a in constant_values(before).values())


def test_a_text_model_with_zero_points_is_refused(
    quantized: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = refused(quantized["cpu"], "--to", "tensorrt-onnx", "--out", out)
    assert "run the recipe with --qat.target tensorrt" in said
    assert "has no int8 graph" in refused(tiny_model, "--to", "tensorrt-onnx", "--out", out)
    assert not out.exists()


def test_a_text_model_whose_graph_answers_otherwise_is_refused(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for distance in (0.5, float("nan")):
        monkeypatch.setattr(onnx_export, "parity", lambda *_, distance=distance: (distance, 1.0))
        assert "the exported graph's logits differ by" in refused(tiny_teacher, "--to", "onnx", "--out", out)
        assert not out.exists()


def test_what_cannot_be_exported(camera: Path, quantized: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "delivers nothing" in refused(empty, "--to", "onnx", "--out", out)
    assert "no such folder" in refused("./nowhere", "--to", "onnx", "--out", out)
    assert "not empty" in refused(camera, "--to", "onnx", "--out", camera)
    assert "--bits 4: 32 or 8" in refused(camera, "--to", "litert", "--bits", "4")
    assert "leave it out" in refused(camera, "--to", "onnx", "--bits", "8")
    assert "--images pictures: onnx is written without" in refused(camera, "--to", "onnx", "--images", "pictures")
    assert "--litert-python /x: onnx needs no" in refused(camera, "--to", "onnx", "--litert-python", "/x")
    before = sorted(camera.rglob("*"))
    assert "the folder of a model" in refused(camera, "--to", "onnx", "--out", camera / "within" / "it")
    assert sorted(camera.rglob("*")) == before
    assert "--images: the ranges of int8 activations" in refused(camera, "--to", "tensorrt-onnx", "--out", out)
    assert "there are no images" in refused(camera, "--to", "tensorrt-onnx", "--out", out, "--images", empty)
    (empty / "broken.png").write_bytes(b"no image")
    assert "cannot be decoded" in refused(camera, "--to", "tensorrt-onnx", "--out", out, "--images", empty)
    (empty / "report.json").write_text(json.dumps({"models": [], "verdicts": []}))
    assert "no verdict" in refused(empty, "--to", "onnx", "--out", out)
    run = run_around(camera, tmp_path / "run")
    shutil.rmtree(run / "int8-1")
    assert "is not in the run any more" in refused(run, "--to", "onnx", "--out", out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "clicks"}))
    assert "model_type is clicks" in refused(other, "--to", "tensorrt-onnx", "--out", out)
    cut = tmp_path / "cut"
    shutil.copytree(quantized["tensorrt"], cut)
    (cut / "model.onnx").write_bytes((cut / "model.onnx").read_bytes()[:1000])
    assert "damaged or cut short" in refused(cut, "--to", "tensorrt-onnx", "--out", out)
    assert "damaged or cut short" in refused(cut, "--to", "onnx", "--out", out)
    with pytest.raises(UserError, match=r"^--to caffe: choose from onnx litert tensorrt-onnx"):
        dispatch(["export", str(camera), "--to", "caffe"])
    assert not out.exists()


def test_without_litert_it_is_said_what_to_install(camera: Path, pictures: Path, tmp_path: Path) -> None:
    asked = (camera, "--to", "litert", "--out", tmp_path / "out", "--images", pictures, "--litert-python")
    assert "litert-torch==0.10.0" in refused(*asked, "/bin/false")
    assert "cannot be run" in refused(*asked, "/none")


def litert_python() -> Path | None:
    """The Python that has litert-torch: this one, or the one that HFCOMPRESS_LITERT_PYTHON names."""
    given = os.environ.get("HFCOMPRESS_LITERT_PYTHON")
    try:
        return find_python(Path(given) if given else None)
    except UserError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 8])
def test_litert_answers_as_torch(camera: Path, pictures: Path, tmp_path: Path, bits: int) -> None:
    python = litert_python()
    if python is None:
        pytest.skip("litert-torch is not installed; name a Python that has it in HFCOMPRESS_LITERT_PYTHON")
    images = delivery.read_images(pictures)
    delivery.export(str(camera), "litert", tmp_path / "out", bits=bits, images=images, python=python)
    found = json.loads((tmp_path / "out" / "export.json").read_text())
    fp32_bytes = sum(p.numel() * 4 for p in load_classifier(camera).parameters())
    if bits == 32:
        assert found["largest_logit_difference"] < 1e-4 * found["largest_logit"]
        assert found["top1_agreement"] == 1
    else:
        assert found["bytes"] < 0.5 * fp32_bytes
        assert found["largest_logit_difference"] < 0.3 * found["largest_logit"]
