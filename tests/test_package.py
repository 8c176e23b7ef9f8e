"""What `import hfcompress` gives, and what the distribution says about itself."""

import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest

import hfcompress

ROOT = Path(hfcompress.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("torch", "transformers", "numpy", "onnxruntime", "datasets", "scipy", "sklearn")


def test_every_exported_name_is_where_it_is_said_to_be() -> None:
    told = [name for names in hfcompress.MODULES.values() for name in names]
    assert sorted([*told, "__version__"]) == sorted(hfcompress.__all__)
    for module, names in hfcompress.MODULES.items():
        for name in names:
            value = getattr(hfcompress, name)
            assert value is getattr(import_module(f"hfcompress.{module}"), name)
            assert value.__module__ == f"hfcompress.{module}"
            assert value.__doc__


def test_dir_and_a_star_import_have_all_names() -> None:
    assert set(hfcompress.__all__) <= set(dir(hfcompress))
    found: dict[str, object] = {}
    exec("from hfcompress import *", found)
    assert set(hfcompress.__all__) <= set(found)


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'hfcompress' has no attribute 'Nothing'"):
        hfcompress.Nothing  # noqa: B018


def loaded_after(code: str) -> list[str]:
    """Return which of HEAVY a fresh Python has imported after `code`."""
    told = f"{code}\nimport sys; print(*({set(HEAVY)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import hfcompress; dir(hfcompress); hfcompress.__version__") == []
    assert loaded_after("import hfcompress, numpy") == ["numpy"]
    names = "Artifact, Budget, Record, Stage, UserError, Verdict, load"
    assert "torch" not in loaded_after(f"from hfcompress import {names}")


def test_the_version_is_that_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hfcompress.__version__ == metadata.version("hfcompress")

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert hfcompress.package_version() == PROJECT["version"]


def test_licence_notice_and_changes_are_there() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for told in ("recipes/assets/licence_teacher", "all-MiniLM-L6-v2", "Attribution 4.0", "nexB"):
        assert told in notice
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / "hfcompress" / "py.typed").is_file()
