"""The lock: options go in and come out the same, other data and unknown options are refused, paths stay at home."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from hfcompress.budget import Budget
from hfcompress.cli import dispatch, running
from hfcompress.cli.running import RunOptions, parse
from hfcompress.compress.distill import Distill
from hfcompress.errors import UserError
from hfcompress.recipes import legal_bert, tiny
from hfcompress.runs.lock import lock, options_from, require_same_data, say_what_differs
from hfcompress.runs.prepare import defaults_of
from hfcompress.runs.recipes import load_recipe
from hfcompress.tasks.text_classification import TextClassification


def resolved(*arguments: str) -> dict[str, Any]:
    """The recipe's options at small scale with these arguments."""
    known = defaults_of(legal_bert.recipe, legal_bert.arguments("small", Path("run")), list(arguments))
    options = parse(load_recipe("legal_bert"), RunOptions, known, list(arguments), "run")
    return {name: options[name] for name in list(inspect.signature(legal_bert.recipe).parameters)[1:]}


def defaults() -> dict[str, Any]:
    return {name: p.default for name, p in list(inspect.signature(legal_bert.recipe).parameters.items())[1:]}


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.fixture
def task(tiny_task: TextClassification) -> TextClassification:
    return tiny_task


@pytest.mark.parametrize(
    "arguments",
    [(), ("--distill.num-hidden-layers", "3", "--no-trim-vocabulary", "--budget.drop.accuracy", "0.1")],
)
def test_options_come_back_as_they_were(arguments: tuple[str, ...], task: TextClassification) -> None:
    options = resolved(*arguments) | {"task": dataclasses.replace(task, dataset="org/data")}
    again = options_from(through_json(lock("legal_bert", "small", options, data="x@1")), defaults(), [])
    assert again == options


def test_a_local_folder_is_locked_by_name_and_hash_and_must_be_given_again(task: TextClassification) -> None:
    options = resolved() | {"task": task, "distill": Distill(extra_text=Path(__file__))}
    locked = through_json(lock("legal_bert", "small", options, data=task.identity))
    assert str(Path.home()) not in json.dumps(locked)
    assert str(Path(__file__).parent) not in json.dumps(locked)
    assert locked["options"]["task"]["dataset"]["local"] == Path(task.dataset).name
    with pytest.raises(UserError, match=r"--task\.dataset was the local data; give your copy"):
        options_from(locked, defaults(), [])
    given = [f"--task.dataset={task.dataset}", "--distill.extra-text", str(__file__)]
    assert options_from(locked, defaults(), given)["task"].max_length == task.max_length


def test_other_data_is_refused_and_other_versions_are_named(
    task: TextClassification, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = through_json(lock("legal_bert", "small", {"task": task}, data=task.identity))
    require_same_data(locked, {"task": task})
    require_same_data(locked | {"data": "elsewhere@" + task.identity.rpartition("@")[2]}, {"task": task})
    with pytest.raises(UserError, match="the run was made with other@0"):
        require_same_data(locked | {"data": "other@0"}, {"task": task})
    text = {"distill": Distill(extra_text=Path(__file__))}
    locked_text = through_json(lock("legal_bert", "small", {"task": task} | text, data=task.identity))
    require_same_data(locked_text, {"task": task} | text)
    other = {"distill": Distill(extra_text=Path(__file__).with_name("test_push.py"))}
    with pytest.raises(UserError, match=r"--distill\.extra-text: holds something else than the test_lock\.py"):
        require_same_data(locked_text, {"task": task} | other)
    say_what_differs(locked)
    assert capsys.readouterr().err == ""
    say_what_differs(locked | {"versions": {"torch": "1.0"}})
    assert "torch 1.0 there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("locked", "said"),
    [
        ({"recipe": "legal_bert", "options": {"colour": 1}}, "no option --colour"),
        ({"recipe": "legal_bert", "options": {"budget": {"disk_gb": 1}}}, r"no option --budget\.disk-gb"),
        ({"recipe": "legal_bert"}, "not a lock"),
        ([], "not a lock"),
    ],
)
def test_what_this_version_cannot_read_is_refused(locked: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        options_from(locked, defaults() | {"budget": Budget()}, [])


def test_what_the_recipe_wrote_itself_is_written_again_and_need_not_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(inspect.signature(legal_bert.recipe).parameters)[1:]

    def smoke(folder: Path) -> dict[str, Any]:
        known = defaults_of(legal_bert.recipe, legal_bert.arguments("smoke", folder), [])
        options = parse(load_recipe("legal_bert"), RunOptions, known, [], "run")
        return {name: options[name] for name in names}

    options = smoke(tmp_path / "run")
    file = tmp_path / "recipe.lock.json"
    file.write_text(json.dumps(lock("legal_bert", "smoke", options, data=options["task"].identity)))
    asked = []
    monkeypatch.setattr(running, "run_recipe", lambda recipe, options, *rest: asked.append(options) or 0)
    again = ["run", "--from-lock", str(file), "--run-dir", str(tmp_path / "again")]
    assert dispatch(again) == 0
    assert asked == [smoke(tmp_path / "again")]

    write_model = tiny.write_model
    monkeypatch.setattr(tiny, "write_model", lambda folder: write_model(folder, seed=1))  # of another version
    with pytest.raises(UserError, match=r"--base was the local model; give your copy: --base PATH"):
        dispatch([*again[:-1], str(tmp_path / "other")])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scale": "medium"}))
    with pytest.raises(UserError, match="legal_bert has no scale medium"):
        dispatch(again)
