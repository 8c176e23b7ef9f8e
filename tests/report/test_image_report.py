"""The page, the card, predict and push of an image classifier's run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hfcompress.cli.predicting import predict
from hfcompress.cli.results import check, push
from hfcompress.cli.traffic import record, replay, shadow
from hfcompress.errors import UserError
from hfcompress.evaluation.measure_images import MeasureImages
from hfcompress.folders.record import read_json
from hfcompress.formats import memory
from hfcompress.formats.runtimes.image_predictor import ImagePredictor
from hfcompress.planning.profile import profile
from hfcompress.report import cards
from hfcompress.report.images import SHOWN_CLASSES, kernels, static_note
from hfcompress.report.pages import card_of, page_of
from hfcompress.runs.run import Run
from hfcompress.tasks.image_input import pixel_values
from hfcompress.training.finetune_images import FinetuneImages
from tests import image_recipe
from tests.image_models import write_mobilenet

TASK = image_recipe.TASK
MEMORY = {
    "model.safetensors": {"peak_rss_mb": 500.0, "bare_rss_mb": 470.5, "load_ms": 90.0},
    "model.onnx": {"peak_rss_mb": 75.0, "bare_rss_mb": 50.25, "load_ms": 20.0},
}


def answers(stage: MeasureImages, name: str, folder: Path, task: Any) -> Any:
    """Logits of a good model; of another one, and of what is made from it, a little worse: thirty digits are wrong."""
    labels = np.array(task.data.label_ids("test"))
    logits = np.random.default_rng(0).normal(size=(len(labels), 10)) / 2 + 4 * np.eye(10)[labels]
    if name != "tuned":
        logits[:30] = np.roll(logits[:30], 1, axis=1)
    return logits.astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the test's own recipe; what it would say of accuracy and memory is given, so that it is known."""
    folder = tmp_path_factory.mktemp("images")
    base = write_mobilenet(folder / "base", TASK.data.labels, side=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeasureImages, "_logits", answers)
        patch.setattr(
            memory, "fresh_process", lambda model, *_: next(MEMORY[n] for n in MEMORY if (model / n).is_file())
        )
        made = Run(folder / "run", "iot_camera", "small")
        image_recipe.recipe(
            made,
            str(base),
            budget=image_recipe.ImageBudget(disk_mb=4, peak_over_bare_mb=24, drop={"accuracy": 0.02}),
            finetune=FinetuneImages(max_steps=2, per_device_train_batch_size=32, bf16="no"),
        )
        made.close()
    return folder / "run"


@pytest.fixture(scope="module")
def told(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """report.json and details.json."""
    return read_json(run / "report.json"), read_json(run / "details.json")


def visible(page: str) -> str:
    """A page's text without its tags and pictures."""
    text = re.sub(r"<(svg|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_the_page_says_what_was_measured(run: Path, told: tuple[dict[str, Any], dict[str, Any]]) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page == page_of(*told)
    text = visible(page)
    assert text.index("A note that must be seen") < text.index("The budget does NOT hold") < text.index("Models")
    assert "&lt;first&gt;" in page
    assert "memory over the bare runtime: 24.75 MB measured, 24 MB allowed" in text
    assert "fails accuracy: 20.00 points lower than tuned" in text
    assert "75.0%" in text, "the FLOPs that a pruned model's record says are left"
    assert "integer kernels QLinearConv 52, QGemm 1" in text
    assert "30 of 150 test images have another label than with tuned: 30 were right before" in text
    assert "the budget does not hold" in page
    assert page.count("<svg") == 5, "size and accuracy, three of what each stage cost, classes"


def test_every_flip_is_a_test_image_by_its_number(run: Path, told: tuple[dict[str, Any], dict[str, Any]]) -> None:
    details = told[1]
    lost = next(entry for entry in details["flips"]["int8"]["classes"] if entry["examples"])
    page = visible((run / "report.html").read_text(encoding="utf-8"))
    example = lost["examples"][0]
    row = f"{example['index']} {example['before']} {example['after']} {example['score']:.2f} lost"
    assert row in page
    assert example["index"] < 30


def test_many_classes_show_those_that_lost_most_and_images_left_out_are_named(
    told: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    report, details = json.loads(json.dumps(told))
    for row in report["models"]:
        scores = row["accuracy"]["all"]["per_class"]
        shape = {"precision": 0.9, "recall": 0.9, "n": 40}
        scores |= {f"kept {i}": shape | {"f1": 0.9} for i in range(100)}
        scores["spoilt class"] = shape | {"f1": 0.2 if row["name"] == "int8" else 0.9}
    page, text = page_of(report, details | {"skipped": {"train": 0, "test": 3}}), card_of(report, details)
    assert "3 images of the test split could not be decoded" in visible(page)
    assert "of the train split" not in visible(page)
    assert visible(page).count("kept ") + visible(page).count("spoilt class") < SHOWN_CLASSES + 1
    for told_of in (visible(page), text):
        assert "spoilt class" in told_of
        assert "81 classes that lost less are not shown" in told_of


def row(name: str, stage: str, size: int, accuracy: float) -> dict[str, Any]:
    measured = {"metric": "accuracy", "value": accuracy, "n": 540}
    return {"name": name, "stage": stage, "bytes": size, "accuracy": measured}


@pytest.mark.parametrize(
    ("size", "accuracy", "said"),
    [
        (259_000, 0.9907, "static has 0.259 MB and accuracy 0.9907, int8 0.271 MB and 0.9907 on the same 540 images."),
        (271_000, 0.9926, "static has 0.271 MB and accuracy 0.9926, int8 0.271 MB and 0.9907 on the same 540 images."),
        (271_000, 0.9907, None),
        (259_000, 0.9889, None),
        (299_000, 0.9926, None),
    ],
)
def test_a_note_says_when_static_int8_is_smaller_or_better_and_neither_larger_nor_worse(
    size: int, accuracy: float, said: str | None
) -> None:
    rows = [
        row("large", "StaticInt8Images", 300_000, 0.999),
        row("static", "StaticInt8Images", size, accuracy),
        row("onnx", "ExportImages", 1_000, 1.0),
        row("int8", "QATImages", 271_000, 0.9907),
    ]
    notes = static_note(rows, "int8")
    assert [note.rpartition(": ")[2] for note in notes] == ([said] if said else [])
    assert static_note(rows, "onnx") == []


def test_kernels_are_said_in_words() -> None:
    assert kernels({"measured": {"integer_kernels": 5, "loss": 1.0}}) == "integer kernels 5"
    assert kernels({"measured": {"float_kernels": {"Conv": 2}, "integer_linears": 1}}) == (
        "float kernels Conv 2; integer linears 1"
    )
    assert kernels({"measured": {}}) == ""


def test_the_card_has_metadata_that_the_hub_reads(told: tuple[dict[str, Any], dict[str, Any]]) -> None:
    text = card_of(*told)
    data = ModelCard(text).data
    assert data.library_name == "onnx"
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["int8", "onnx", "vision", "hfcompress"]
    assert data.eval_results is not None
    results = {result.metric_type: result for result in data.eval_results}
    assert results["accuracy"].metric_value == pytest.approx(told[0]["models"][-1]["accuracy"]["value"], abs=1e-5)
    assert set(results["macro_f1"].metric_args or {}) == {"n", "ci95"}
    assert text.index("**The budget does not hold.**") < text.index("| model |")
    assert "- **fails**: memory over the bare runtime: 24.75 MB measured" in text
    assert "a process" not in text.partition("---\n\n")[0]


def test_the_cards_lines_run_in_the_models_folder(
    run: Path,
    told: tuple[dict[str, Any], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = card_of(*told).partition("```python\n")[2].partition("```")[0]
    folder = tmp_path / "model"
    shutil.copytree(run / told[0]["models"][-1]["path"], folder)
    monkeypatch.chdir(folder)
    upright = TASK.data.images("test")[0]
    turned = Image.Exif()
    turned[0x0112] = 6  # as a phone that is held upright stores it
    upright.rotate(90, expand=True).save("image.png", exif=turned)
    exec(compile(lines + "found = pixels", "card", "exec"), names := dict[str, Any]())
    predictor = ImagePredictor(folder)
    assert capsys.readouterr().out.strip() == predictor.labels[int(predictor.logits([upright]).argmax())]
    assert np.array_equal(names["found"], pixel_values(names["processor"], [upright]))


@pytest.mark.parametrize(("name", "line"), [("tuned", "AutoModelForImageClassification.from_pretrained(")])
def test_a_torch_candidate_is_loaded_with_its_class(
    name: str, line: str, told: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    report, details = json.loads(json.dumps(told))
    for verdict in report["verdicts"]:
        verdict["candidate"] = name
    assert line in card_of(report, details)
    row = next(row for row in report["models"] if row["name"] == name)
    row["format"] = "surgery"
    assert "hfcompress.load(" in card_of(report, details)


def test_make_cards_renders_it(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cards" / "iot_camera-small"
    folder.mkdir(parents=True)
    for name in ("report.json", "details.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    ((place, text),) = cards.cards(tmp_path / "cards")
    assert place == folder / "README.md"
    assert text == (run / "model_card.md").read_text(encoding="utf-8")


def test_push_ships_what_makes_the_pixels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run, "org/name", dry_run=True, allow_failed=True, license="mit") == 0
    text = capsys.readouterr().out
    for place in ("config.json", "preprocessor_config.json", "onnx/model_quantized.onnx", "plot.svg"):
        assert re.search(rf"\d  {re.escape(place)}$", text, re.M), place
    assert 'hf_hub_download("org/name", "onnx/model_quantized.onnx")' in text
    assert "license: mit" in text


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"digit {i}.png" for i in range(2)]
    for path, image in zip(paths, TASK.data.images("test")[:2], strict=True):
        image.save(path)
    return paths


def test_predict_labels_image_files(run: Path, images: list[Path], capsys: Any, tmp_path: Path) -> None:
    assert predict(str(run), image=tuple(images), format="json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["image"] for answer in found] == [str(path) for path in images]
    predictor = ImagePredictor(run / read_json(run / "report.json")["models"][-1]["path"])
    expected = predictor.logits(TASK.data.images("test")[:2]).argmax(axis=1)
    assert [answer["label"] for answer in found] == [predictor.labels[i] for i in expected]
    listed = tmp_path / "paths.txt"
    listed.write_text("".join(f"{path}\n" for path in images), encoding="utf-8")
    assert predict(str(run), listed) == 0
    assert [line.rpartition("\t")[2] for line in capsys.readouterr().out.splitlines()] == list(map(str, images))


def test_what_is_no_image_is_one_line(run: Path, images: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(images[0].read_bytes()[:60])
    with pytest.raises(UserError, match=r"cut\.png: is no whole image"):
        predict(str(run), image=(images[0], cut))
    with pytest.raises(UserError, match=r"gone\.png: no such file"):
        predict(str(run), image=(tmp_path / "gone.png",))
    with pytest.raises(UserError, match="labels images; give --image"):
        predict(str(run), text="a text")
    with pytest.raises(UserError, match="give one of"):
        predict(str(run), text="a text", image=tuple(images))


def test_a_text_model_takes_no_images(tiny_model: Path, images: list[Path]) -> None:
    with pytest.raises(UserError, match="does not label images"):
        predict(str(tiny_model), image=tuple(images))


def test_traffic_of_images_is_refused(run: Path, tmp_path: Path) -> None:
    traffic = tmp_path / "traffic.jsonl"
    for verb in (
        lambda: record(str(run), traffic),
        lambda: replay(str(run), str(run), traffic),
        lambda: shadow(str(run), str(run), traffic),
    ):
        with pytest.raises(UserError, match="labels images, and requests are recorded as text"):
            verb()


def test_profile_groups_by_modules_in_every_format(run: Path, told: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for name in ("tuned", "int8"):
        row = next(row for row in told[0]["models"] if row["name"] == name)
        found = profile(run / row["path"], batch=2, length=1, threads=1, runs=1)
        groups = {group.name: group.parameters for group in found.groups}
        assert found.milliseconds is not None
        assert sum(n for group, n in groups.items() if "layer.*" in group) > 0.5 * found.parameters


def test_check_says_that_the_budget_fails(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(run) == 1
    assert "memory over the bare runtime" in capsys.readouterr().out
