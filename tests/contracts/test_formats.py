"""What every format of the table keeps: written, recognized, opened, counted, placed, used; damage is refused."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from hfcompress.errors import UserError
from hfcompress.formats import FORMATS, format_called, format_of, kind_of
from hfcompress.formats.format import Format, Kind
from hfcompress.formats.known.onnx import OnnxText
from hfcompress.ops.grid import Grid
from hfcompress.tasks.tabular_classification import Clicks
from tests import language_models
from tests.fork_server import ForkServer

Array = np.ndarray[Any, Any]
ROWS = [
    pytest.param(form, kind, id=f"{form.name}-{kind}", marks=[pytest.mark.slow] if form.own_environment else [])
    for form in FORMATS.values()
    for kind in form.kinds
]
TOKENS = [5, 17, 40, 9, 200, 33, 81, 12]
CLICK = '{"user": 3, "item": 5, "category": 1, "context": 0, "price": 2.5, "time": 0.25}'
WITHOUT_HFCOMPRESS = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "hfcompress"]:
    del sys.modules[name]
sys.modules["hfcompress"] = None
"""


class Sources:
    """By kind of model and format, a tiny model to write; and the task of each kind."""

    def __init__(
        self, made: Callable[[str, Callable[[Path], Any]], Path], text: Path, images: Path, tasks: dict[str, Any]
    ):
        self.made, self.text, self.images, self.tasks = made, text, images, tasks

    def source(self, kind: Kind, form: str) -> Path:
        """Return the folder of a model of this kind and format."""
        if form not in ("transformers", "patched"):
            return self.written(FORMATS[form], kind)
        if kind == "clicks":
            return self.made("format-clicks", self.clicks)
        if kind == "language":
            make = self.packed if form == "patched" else language_models.write_llama
            return self.made(f"format-language-{form}", make)
        folder = self.text if kind == "text" else self.images
        return self.made(f"format-{kind}-patched", lambda out: patch(folder, out)) if form == "patched" else folder

    def clicks(self, out: Path) -> None:
        from hfcompress.architectures.click_model import save_click_model
        from hfcompress.training.clicks import new_click_model

        torch.manual_seed(0)
        save_click_model(new_click_model(self.tasks["clicks"].data.rows, 8, 8, (8,), "row"), out)

    def packed(self, out: Path) -> None:
        language_models.write_llama(out / "llama")
        language_models.pack_model(out / "llama", out / "packed", Grid(4, 32, True))
        shutil.rmtree(out / "llama")
        for file in (out / "packed").iterdir():
            file.rename(out / file.name)
        shutil.rmtree(out / "packed")

    def written(self, form: Format, kind: Kind) -> Path:
        """Return the folder that the format writes of its source."""
        model = self.source(kind, form.source)

        def write(out: Path) -> None:
            (out / "work").mkdir()
            form.write(out, model=model, task=self.tasks[kind])
            shutil.rmtree(out / "work")

        return self.made(f"format-written-{form.name}-{kind}", write)


def patch(model: Path, out: Path) -> None:
    """Write a model with an edit that leaves it as it is."""
    from hfcompress.architectures.models import load_classifier

    shutil.copytree(model, out, dirs_exist_ok=True)
    size = load_classifier(model).classifier.in_features
    edit = {"edit": "resize", "module": "classifier", "to": {"in_features": size}}
    (out / "surgery.json").write_text(json.dumps({"edits": [edit]}))


@pytest.fixture(scope="module")
def sources(
    made_once: Any,
    tiny_model: Path,
    tiny_task: Any,
    image_classifier: Any,
    image_task: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Sources:
    tasks = {
        "text": tiny_task,
        "images": image_task,
        "clicks": Clicks(users=100, items=100, categories=5, requests=300),
        "language": language_models.write_task(tmp_path_factory.mktemp("texts") / "data"),
    }

    def classifier(out: Path) -> None:
        from hfcompress.architectures.models import load_classifier, load_tokenizer, save

        save(load_classifier(tiny_model, tiny_task.data.labels), load_tokenizer(tiny_model), out)

    return Sources(made_once, made_once("format-text", classifier), image_classifier[0], tasks)


def require_runtime(form: Format, kind: Kind) -> None:
    """Skip where what computes a format is not installed."""
    try:
        form.import_runtime(kind, torch.get_num_threads())
        form.python()
    except UserError as error:
        pytest.skip(str(error))


def logits(form: Format, folder: Path, kind: Kind, images: Any) -> Array:
    """What a model answers to a few requests of its kind; pictures like those that ranges were taken from."""
    opened = form.open(folder, kind, 1)
    if kind == "language":
        return cast(Array, opened.append(TOKENS, all_logits=True))
    if kind == "images":
        return cast(Array, opened.logits(images.data.inputs("validation", 8)))
    asked = ["grant of licence", "term"] if kind == "text" else [CLICK, CLICK.replace('"item": 5', '"item": 7')]
    return cast(Array, opened.logits(asked, 32))


def require_answers(form: Format, kind: Kind, source: Path, folder: Path, images: Any) -> None:
    """The written model answers as its source, as near as the format says."""
    wanted, found = logits(FORMATS[form.source], source, kind, images), logits(form, folder, kind, images)
    assert wanted.std() > 0
    assert np.abs(found - wanted).max() <= form.bound * np.abs(wanted).max()


def require_recognized(form: Format, kind: Kind, folder: Path) -> None:
    """The folder is of this format, whose row of a report finds it again."""
    assert format_of(folder) is form
    assert kind_of(folder) == kind
    assert format_called(form.word).folder == form.folder
    assert format_called(form.word).weights == form.weights


def require_size(form: Format, folder: Path) -> None:
    """Every file counts once, and tensors are not more than the files, nor next to nothing of them.

    Of a tiny model's .tflite the most is what the operators take.
    """
    found, weights = form.size(folder), sum(file.stat().st_size for file in form.files(folder))
    assert found["bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    held = sum(found["dtypes"].values())
    beside = sum(file.stat().st_size for file in folder.glob("*.data"))
    least = 0.01 if form.name == "litert" else 0.1
    assert least * (weights + beside) < held <= weights + beside
    assert found["parameters"] > 0


def require_usage(form: Format, kind: Kind, folder: Path, server: ForkServer, work: Path) -> None:
    """The lines that a card shows run, and print something."""
    Image.new("RGB", (20, 20), (90, 120, 30)).save(work / "image.png")
    snippet = form.usage(str(folder), kind)
    compile(snippet, "usage", "exec")
    if form.own_environment:
        done = subprocess.run([form.python(), "-P", "-c", snippet], cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        return
    forbid = WITHOUT_HFCOMPRESS if kind != "clicks" or form.source != form.name else ""
    ran = server.code(f"import os\nos.chdir({str(work)!r})\n" + (forbid if form.stock else "") + snippet, timeout=120)
    assert ran.code == 0, ran.err
    assert ran.out.strip()


@pytest.mark.parametrize(("form", "kind"), ROWS)
def test_a_written_model_is_recognized_and_counted(form: Format, kind: Kind, sources: Sources) -> None:
    if form.own_environment:
        require_runtime(form, kind)
    folder = sources.written(form, kind)
    require_recognized(form, kind, folder)
    require_size(form, folder)


@pytest.mark.parametrize(("form", "kind"), ROWS)
def test_a_written_model_answers_as_its_source(form: Format, kind: Kind, sources: Sources) -> None:
    require_runtime(form, kind)
    source, folder = sources.source(kind, form.source), sources.written(form, kind)
    require_answers(form, kind, source, folder, sources.tasks["images"])


@pytest.mark.parametrize(("form", "kind"), ROWS)
def test_the_lines_of_use_run(
    form: Format, kind: Kind, sources: Sources, fork_server: ForkServer, tmp_path: Path
) -> None:
    require_runtime(form, kind)
    require_usage(form, kind, sources.written(form, kind), fork_server, tmp_path)


@pytest.mark.parametrize(("form", "kind"), ROWS)
def test_a_damaged_file_is_refused_in_a_line(form: Format, kind: Kind, sources: Sources, tmp_path: Path) -> None:
    require_runtime(form, kind)
    folder = tmp_path / "model"
    shutil.copytree(sources.written(form, kind), folder)
    file = form.files(folder)[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(UserError, match=rf"{folder}") as refused:
        form.open(folder, kind, 1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_model_of_another_kind_is_refused_in_a_line(form: Format, tmp_path: Path) -> None:
    for kind in {"text", "images", "clicks", "language"} - set(form.kinds):
        with pytest.raises(UserError, match=rf"is {form.name}, which holds models of [^\n]*, none of {kind}"):
            form.open(tmp_path, cast(Kind, kind), 1)


def test_the_table_names_every_format_as_it_names_itself() -> None:
    assert {name: form.name for name, form in FORMATS.items()} == {name: name for name in FORMATS}
    assert list(FORMATS)[-1] == "transformers"  # which holds what no other does


def test_wrong_formats_fail(sources: Sources, fork_server: ForkServer, tmp_path: Path) -> None:
    """A format whose network answers otherwise, that counts a file twice, and whose lines want hfcompress."""
    real = FORMATS["onnx-text"]
    folder, source = sources.written(real, "text"), sources.source("text", real.source)

    class Wrong(OnnxText):
        def network(self, folder: Path, threads: int) -> Any:
            found = super().network(folder, threads)
            run = found.run
            found.run = lambda feed: -run(feed)
            return found

        def size(self, folder: Path) -> dict[str, Any]:
            found = super().size(folder)
            return found | {"bytes": 2 * found["bytes"]}

        def usage(self, folder: str, kind: Kind) -> str:
            return f"import hfcompress\nprint(hfcompress.load({folder!r}))"

    wrong = Wrong()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "onnx-text", wrong)
        with pytest.raises(AssertionError):
            require_answers(wrong, "text", source, folder, None)
    with pytest.raises(AssertionError):
        require_recognized(wrong, "text", folder)
    with pytest.raises(AssertionError):
        require_size(wrong, folder)
    with pytest.raises(AssertionError):
        require_usage(wrong, "text", folder, fork_server, tmp_path)
    require_answers(real, "text", source, folder, None)
