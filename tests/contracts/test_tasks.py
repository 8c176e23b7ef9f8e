"""What every task of the table keeps: a name for everything, the same data twice, and examples that a model reads."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_type_hints

import numpy as np
import pytest
import transformers
from transformers import DataCollatorWithPadding, default_data_collator

from hfcompress import budget, tasks
from hfcompress.architectures.click_spec import ClickShape
from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.models import load_classifier, load_image_processor, load_tokenizer
from hfcompress.budget import Budget
from hfcompress.errors import UserError
from hfcompress.evaluation.metrics import METRICS
from hfcompress.planning.image_spec import ImageShape
from hfcompress.report.pages import Page, shown_by
from hfcompress.stage import Stage
from hfcompress.tasks import TASKS, measured_task, task_class
from hfcompress.tasks.task import Labelled, Task
from tests.tiny_tasks import MODELS, WRITERS

SPECS = {spec.described_as for spec in (Shape, ImageShape, LanguageShape, ClickShape)}
ROWS = 6


def require_names(name: str) -> None:
    """What a row names is there."""
    task = task_class(name)
    assert TASKS[name] == f"hfcompress.tasks.{name.replace('-', '_')}:{task.__name__}"
    assert task.name == name
    assert task.auto_class is None or hasattr(transformers, task.auto_class)
    assert task.takes in SPECS
    assert isinstance(resolve_name(task.page), Page)
    measure = resolve_name(task.measure)
    assert isinstance(measure(), Stage)
    assert callable(measure.again)
    assert set(task.drops) <= set(task.metrics) <= set(METRICS)
    assert issubclass(getattr(budget, task.budget), Budget)
    assert "{" not in task.purpose.format(labels=3)
    assert task().metric in task.drops


@pytest.mark.parametrize("name", TASKS)
def test_what_a_row_names_is_there(name: str) -> None:
    require_names(name)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", "another"),
        ("auto_class", "AutoModelForNothing"),
        ("takes", "a model"),
        ("page", "hfcompress.report.pages:NOTHING"),
        ("measure", "hfcompress.training.finetune:Finetune"),
        ("drops", ("accuracy", "a metric that is not measured")),
    ],
)
def test_a_name_of_nothing_is_seen(attribute: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_class("text-classification"), attribute, value)
    with pytest.raises((AssertionError, AttributeError)):
        require_names("text-classification")


@pytest.mark.parametrize("name", TASKS)
def test_its_fields_are_options_with_defaults_and_what_they_mean(name: str) -> None:
    task = task_class(name)
    assert dataclasses.is_dataclass(task)
    assert task() == task()
    hints = get_type_hints(task)
    assert all(field.name in hints for field in dataclasses.fields(task))
    with pytest.raises(dataclasses.FrozenInstanceError):
        task().dataset = "another"


def test_importing_the_tasks_imports_no_torch() -> None:
    code = "import sys; from hfcompress.tasks import TASKS, task_class; [task_class(n)() for n in TASKS]"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)


def require_same_data(name: str, folder: Path) -> None:
    """Two readings agree, another data set does not, and nothing says where it lies."""
    one, other = WRITERS[name](folder / "data"), WRITERS[name](folder / "data")
    assert json.dumps(one.fingerprint()) == json.dumps(other.fingerprint())
    assert one.identity == other.identity
    assert str(folder) not in f"{one.identity}{one.fingerprint()}"
    changed = WRITERS[name](folder / "changed", seed=1)
    assert one.identity.partition("@")[2] != changed.identity.partition("@")[2]
    assert json.dumps(one.fingerprint()) != json.dumps(changed.fingerprint())


@pytest.mark.parametrize("name", TASKS)
def test_the_same_data_has_the_same_fingerprint_and_other_data_another(name: str, tmp_path: Path) -> None:
    require_same_data(name, tmp_path)


def test_a_fingerprint_that_does_not_follow_the_data_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_class("text-classification"), "fingerprint", lambda task: {"max_length": task.max_length})
    with pytest.raises(AssertionError):
        require_same_data("text-classification", tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_data_that_are_not_there_are_refused_in_a_line(name: str, tmp_path: Path) -> None:
    task = dataclasses.replace(task_class(name)(), dataset=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"^[^\n]*nothing[^\n]*$"):
        _ = task.data


@pytest.fixture(scope="module", params=[name for name in TASKS if Labelled in task_class(name).__mro__])
def labelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A task whose examples have labels, and the folder of a model for it."""
    folder = tmp_path_factory.mktemp(request.param)
    task = WRITERS[request.param](folder / "data")
    MODELS[request.param](folder / "model", task.data.labels)
    return task, folder / "model"


def test_every_example_has_a_truth_a_group_and_something_to_show(labelled: tuple[Any, Path]) -> None:
    task, _ = labelled
    for split in ("train", "validation", "test"):
        count = len(task.data.inputs(split))
        assert count == len(task.truth(split)) == len(task.data.groups(split)) == len(task.excerpts(split)) > 0
    if getattr(task, "group_column", None):
        assert not set(task.data.groups("train")) & set(task.data.groups("test"))


def require_encoded(task: Labelled, model: Path) -> None:
    """A model trains on the encoded examples: it answers with as many numbers as labels, and has a finite loss."""
    processor: Any = load_image_processor(model) if task.has_images else load_tokenizer(model)
    encoded = task.encode(processor, "train")
    rows = [encoded[i] for i in range(ROWS)]
    assert [row["index"] for row in rows] == list(range(ROWS))
    assert np.array_equal([row["labels"] for row in rows], task.truth("train")[:ROWS])
    tokenizer = task.padded_by(processor)
    batch: Any = (DataCollatorWithPadding(tokenizer) if tokenizer else default_data_collator)(rows)
    network = load_classifier(model, task.data.labels, replace_head=True)
    known = {name: values for name, values in batch.items() if name not in ("index", "length")}
    found = network(**known)
    assert found.logits.shape == (ROWS, len(task.data.labels))
    assert np.isfinite(float(found.loss.detach()))
    assert type(network).__name__.endswith(str(task.auto_class).removeprefix("AutoModel"))


def test_a_model_trains_on_its_encoded_examples(labelled: tuple[Any, Path]) -> None:
    require_encoded(*labelled)


@pytest.mark.parametrize(
    "broken",
    [
        {"truth": lambda task, split: np.array(task.data.label_ids(split))[::-1]},
        {"auto_class": "AutoModelForCausalLM"},
        {"padded_by": lambda task, processor: None},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_examples_that_are_not_what_they_should_be_are_seen(
    broken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = WRITERS["text-classification"](tmp_path / "data")
    MODELS["text-classification"](tmp_path / "model", task.data.labels)
    for name, value in broken.items():
        monkeypatch.setattr(type(task), name, value)
    with pytest.raises((AssertionError, ValueError)):
        require_encoded(task, tmp_path / "model")


def test_a_baseline_answers_as_a_model_does(labelled: tuple[Any, Path]) -> None:
    task, _ = labelled
    if (found := task.baseline()) is None:
        assert not task.baseline_note
        return
    outputs = found.outputs(task.data.inputs("test"))
    assert outputs.shape == (len(task.truth("test")), len(task.data.labels))
    assert min(found.size()) > 0
    assert set(found.without) <= set(task.metrics)
    values = {"name": "a", "value": 0.5, "word": "as good as", "reference": "b", "of_reference": 0.5}
    assert "0.5" in task.baseline_note.format(**values)


def test_runs_of_earlier_versions_are_read_as_their_tasks() -> None:
    for kind, name in ((None, "text-classification"), *tasks.BEFORE.items()):
        assert measured_task({} if kind is None else {"kind": kind}).name == name
    for said in ("nothing of the kind", ["text-generation"], None):
        assert measured_task({"task": said}).name == "text-classification"
    assert {shown_by({"task": name}) for name in TASKS} == {resolve_name(task_class(name).page) for name in TASKS}


def test_every_file_of_a_task_has_a_row() -> None:
    """But for the documents that are summarized beside a causal LM's own texts."""
    files = sorted(Path(tasks.__file__).parent.glob("*.py"))
    found = set()
    for file in files:
        module = importlib.import_module(f"hfcompress.tasks.{file.stem}")
        for value in vars(module).values():
            if isinstance(value, type) and Task in value.__mro__ and value not in (Task, Labelled):
                found.add(f"{value.__module__}:{value.__name__}")
    assert found == set(TASKS.values())
