"""The house: imports point one way, the command line is quick, the public names are those that are documented."""

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

import hfcompress
from hfcompress.runs.recipes import found_recipes

PACKAGE = Path(hfcompress.__file__).parent
# A part imports of hfcompress what stands before it here, and itself.
ORDER = (
    "__init__",
    "errors",
    "ops",
    "folders",
    "stage",
    "architectures",
    "engines",
    "tasks",
    "formats",
    "evaluation",
    "report",
    "budget",
    "planning",
    "training",
    "compress",
    "rollout",
    "runs",
    "hub",
    "api",
    "cli",
    "__main__",
)
BACKWARDS = {
    # The memory that a plan predicts of a delivered decoder stands beside the measured one.
    ("evaluation/measure_language.py", "planning"),
    # Which fields a config.json must have: the tables are data, and import nothing but errors.
    ("folders/config_numbers.py", "architectures"),
    # The type of a log that a click model is asked; for type checkers alone.
    ("architectures/click_model.py", "tasks"),
}
FORBIDDEN_EVERYWHERE = {"recipes", "tests", "benchmarks"}
LONG = {"training/trainer.py"}  # to be split


@functools.cache
def imports(file: Path) -> frozenset[str]:
    """The first part below hfcompress of every import (or the foreign package's name)."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            found.add(parts[1] if parts[0] == "hfcompress" and len(parts) > 1 else f"/{parts[0]}")
    return frozenset(found)


def wrong_imports(part: str, names: Iterable[str]) -> set[str]:
    """The imports that point against the arrows of the house."""
    wrong = {name for name in names if name.removeprefix("/") in FORBIDDEN_EVERYWHERE}
    later = set(ORDER[ORDER.index(part) + 1 :])
    return wrong | later & set(names)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(file: Path) -> None:
    place = file.relative_to(PACKAGE)
    part = place.parts[0].removesuffix(".py")
    if part not in ("cli", "recipes", "__init__"):  # those find recipes, are them, or name what is public
        backwards = {name for known, name in BACKWARDS if known == place.as_posix()}
        assert wrong_imports(part, imports(file)) == backwards


def test_an_arrow_that_turns_back_is_seen() -> None:
    assert wrong_imports("ops", {"/torch", "architectures"}) == {"architectures"}
    assert wrong_imports("compress", {"/tests", "ops", "training"}) == {"/tests"}


def test_the_package_has_few_parts_and_no_long_file() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert {part.removesuffix(".py") for part in parts} == {*ORDER[1:-1], "recipes"}
    assert len(parts) <= 20
    long = {f.relative_to(PACKAGE).as_posix() for f in PACKAGE.rglob("*.py") if len(f.read_text().splitlines()) > 400}
    assert long <= LONG, f"split them: {long - LONG}"


def imported(file: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a file imports anywhere, functions included; not those for types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    guards = [node for node in branches if ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {id(inner) for node in guards for statement in node.body for inner in ast.walk(statement)}
    found = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import) and id(node) not in for_types:
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found |= {name, name.rpartition(".")[0]} & modules
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a circle."""
    matrix = np.array([[other in graph[name] for other in graph] for name in graph])
    _, group = connected_components(csr_matrix(matrix), directed=True, connection="strong")
    members = [[name for name, number in zip(graph, group, strict=True) if number == g] for g in set(group)]
    return [names for names in members if len(names) > 1]


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}
    files = {name: file for name, file in files.items() if not name.endswith(".__init__")}
    assert not circles({name: imported(file, set(files)) - {name} for name, file in files.items()})


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert not circles({"a": {"b"}, "b": set()})


HELPS = [["--help"], ["run", "--help"], ["list"], *(["run", recipe, "--help"] for recipe in found_recipes())]


def first_to_import(module: str, commands: list[list[str]]) -> list[str] | None:
    """The first of these command lines after which a module is imported, all run in one fresh process."""
    code = (
        "import json, sys; from hfcompress.cli import dispatch\n"
        f"for arguments in {commands}:\n"
        "    try: dispatch(list(arguments))\n    except SystemExit: pass\n"
        f"    if {module!r} in sys.modules: break\n"
        "else: arguments = None\n"
        "print(json.dumps(arguments), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[str] | None = json.loads(done.stderr.splitlines()[-1])
    return found


def test_help_does_not_import_torch() -> None:
    assert first_to_import("torch", HELPS) is None


def test_a_help_that_imports_a_module_is_named() -> None:
    commands = [["--help"], ["run", "legal_bert", "--help"]]
    assert first_to_import("hfcompress.recipes.legal_bert", commands) == commands[1]


def readers(source: str) -> set[str]:
    """What a file calls that reads a folder by transformers' rules, or reads its configs without the guard."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("from_pretrained", "from_json_file", "get_config_dict"):
                found.add(f"{ast.unparse(node.func.value)}.{node.func.attr}")
            told = ast.unparse(node)
            if node.func.attr == "loads" and re.search(r"(config|tokenizer|index)\.json'", told):
                found.add(told)
    return found


def test_only_one_file_reads_foreign_folders_by_transformers() -> None:
    """pretrained.py, after the guard; Optimum reads what a stage here wrote."""
    allowed = {
        "hfcompress/architectures/pretrained.py": None,
        "hfcompress/engines/optimum_call.py": {"ORTQuantizer.from_pretrained"},
    }
    root = PACKAGE.parent
    for file in (*PACKAGE.rglob("*.py"), *(root / "recipes").glob("*.py")):
        name = file.relative_to(root).as_posix()
        if allowed.get(name, set()) is not None:
            found = readers(file.read_text(encoding="utf-8"))
            assert found <= (allowed.get(name) or set()), f"{name} calls {found}: see architectures/pretrained.py"


def test_every_call_of_transformers_is_without_remote_code() -> None:
    source = (PACKAGE / "architectures" / "pretrained.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    readers = [call for call in calls if getattr(call.func, "attr", "") == "from_pretrained"]
    assert len(readers) >= 4
    for call in readers:
        given = {ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None}
        assert given & {"CLOSED", "options"}, ast.unparse(call)


def test_a_second_reader_is_seen() -> None:
    assert readers("def f(x):\n    return AutoConfig.from_pretrained(x)") == {"AutoConfig.from_pretrained"}
    assert readers("json.loads((x / 'config.json').read_text())")
    assert not readers('"""AutoModel.from_pretrained(name)"""')


def test_only_the_command_line_knows_tyro() -> None:
    users = {file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*.py") if "/tyro" in imports(file)}
    assert users == {"cli"}


def test_no_file_holds_the_marks_of_a_merge() -> None:
    """In a docstring or in prose nothing else sees them."""
    texts = [
        file
        for pattern in ("*.md", "docs/**/*.md", "hfcompress/**/*", "recipes/*", "benchmarks/*.py", "tests/*.py")
        for file in PACKAGE.parent.glob(pattern)
        if file.suffix in (".py", ".md", ".j2")
    ]
    assert not [str(f) for f in texts if re.search(r"^(<{7}|>{7}) ", f.read_text(encoding="utf-8"), re.M)]


def test_a_shared_fixture_is_made_once_and_anew_when_it_failed_amid(made_once: Callable[..., Path]) -> None:
    made: list[str] = []

    def make(folder: Path) -> None:
        made.append(folder.name)
        (folder / "part").touch(exist_ok=False)
        if len(made) == 1:
            raise ValueError("amid it")

    with pytest.raises(ValueError, match="amid it"):
        made_once("of-this-test", make)
    assert made_once("of-this-test", make) == made_once("of-this-test", make)
    assert made == ["of-this-test"] * 2
