"""What an extra installs is asked for in one line where it is missing, and before long work."""

import ast
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfcompress
from hfcompress.errors import EXTRAS, UserError, has, needs

PACKAGE = Path(hfcompress.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"PIL": "pillow", "llama_cpp": "llama-cpp-python", "optimum.onnxruntime": "optimum[onnxruntime]"}


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package one that cannot be imported."""
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("package", EXTRAS)
def test_each_extra_of_the_table_installs_its_package(package: str) -> None:
    wanted = DISTRIBUTIONS.get(package, package.replace("_", "-"))
    requirements = PROJECT["optional-dependencies"][EXTRAS[package][0]]
    assert any(requirement.startswith((f"{wanted}>", f"{wanted}=", f"{wanted}[")) for requirement in requirements)
    base = " ".join(PROJECT["dependencies"])
    assert wanted.partition("[")[0] not in base


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_is_one_line_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, package)
    assert not has(package)
    with pytest.raises(UserError) as refused:
        needs(package)
    assert f'pip install "hfcompress[{EXTRAS[package][0]}]"' in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_package_that_is_there_is_not_asked_for_unless_it_does_not_load() -> None:
    needs("PIL")
    with pytest.raises(UserError, match=r"does not load \(no such symbol\)"):
        needs("PIL", "no such symbol")
    assert not has("no_such_package.at_all")


def packages_of(file: Path) -> set[str]:
    """The packages of extras that a file imports, other than for types."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {p for p in EXTRAS for name in names if f"{name}.".startswith(f"{p}.")}
    return found


REACHED_THROUGH = {"http_limits.py": "shadow_server.py", "optimum_call.py": "optimum.py"}  # whose function has asked


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_a_file_that_imports_a_package_of_an_extra_asks_for_it(file: Path) -> None:
    asking = file.with_name(REACHED_THROUGH.get(file.name, file.name)).read_text(encoding="utf-8")
    for package in packages_of(file):
        assert f'needs("{package}"' in asking or f'has("{package}")' in asking


def plan_refuses(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line with which the command line refuses."""
    from hfcompress.cli import main

    monkeypatch.setattr(sys, "argv", ["hfcompress", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    seen = capsys.readouterr()
    assert (ended.value.code, seen.out, len(seen.err.splitlines())) == (2, "", 1)
    return seen.err


PLANS = {
    "torch_pruning": "legal_bert_structured",
    "PIL": "iot_camera",
    "tensorly": "legal_bert_structured",
}


@pytest.mark.parametrize("package", PLANS)
def test_a_plan_and_so_a_run_refuses_before_long_work(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, package)
    line = plan_refuses(["plan", PLANS[package]], monkeypatch, capsys)
    assert f'pip install "hfcompress[{EXTRAS[package][0]}]"' in line


def test_a_plan_asks_for_the_libraries_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.formats.compressed_tensors import ExportTransformers
    from hfcompress.formats.gguf import ExportGguf
    from hfcompress.planning.plan import Plan

    stages: list[tuple[Any, str]] = [(ExportGguf(), "gguf"), (ExportTransformers(), "compressed_tensors")]
    for stage, package in stages:
        hide(monkeypatch, package)
        with pytest.raises(UserError, match=rf"hfcompress\[{EXTRAS[package][0]}\]"):
            Plan()(stage, model=None)


def test_functions_refuse_when_they_are_called_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.evaluation.summaries import rouge
    from hfcompress.hub import secret_search
    from hfcompress.ops.tensor_train import cores

    for package in ("rouge_score", "tensorly", "detect_secrets"):
        hide(monkeypatch, package)
    with pytest.raises(UserError, match=r"hfcompress\[language\]"):
        rouge("a", ["b"])
    with pytest.raises(UserError, match=r"hfcompress\[factorize\]"):
        cores(torch.tensor(np.eye(8)), 2)
    secret_search.plugins.cache_clear()
    with pytest.raises(UserError, match=r"hfcompress\[push\]"):
        secret_search.plugins()


def test_a_push_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.hub.release import release

    hide(monkeypatch, "detect_secrets")
    with pytest.raises(UserError, match=r"pushing a run needs detect_secrets.*hfcompress\[push\]"):
        release(tmp_path, "org/name")


def test_a_report_without_matplotlib_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.report import plots

    assert plots.waterfall([("a", 2.0), ("b", 1.0)], "size", 1).startswith("<svg")
    hide(monkeypatch, "matplotlib")
    assert 'pip install "hfcompress[plots]"' in plots.waterfall([("a", 2.0), ("b", 1.0)], "size", 1)
