"""What `import hfcompress` gives, and what the distribution says about itself."""

import math
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest

import hfcompress
from hfcompress.__main__ import allowed_cores, settle_threads

ROOT = Path(hfcompress.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("torch", "transformers", "numpy", "onnxruntime", "datasets", "scipy", "sklearn")


def test_every_exported_name_is_where_it_is_said_to_be() -> None:
    told = [name for names in hfcompress.MODULES.values() for name in names]
    assert sorted([*told, "__version__"]) == sorted(hfcompress.__all__)
    for module, names in hfcompress.MODULES.items():
        for name in names:
            value = getattr(hfcompress, name)
            assert value is getattr(import_module(module), name)
            assert value.__module__ == module
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


def test_the_former_name_of_text_generation_gives_the_same_task() -> None:
    from hfcompress.tasks import causal_lm, text_generation

    assert causal_lm.CausalLM is text_generation.CausalLM


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


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hfcompress", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_version_is_printed() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hfcompress {PROJECT['version']}\n", "")


def test_without_a_command_the_commands_are_listed() -> None:
    done = command()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(re.search(rf"\b{verb}\b", done.stdout) for verb in ("list", "plan", "run", "push", "ab", "env"))
    assert done.stdout == command("--help").stdout


TORCH_SEES = """
import os, sys
sys.argv[1:] = ["list"]
from hfcompress.__main__ import main
try: main()
except SystemExit: pass
import torch
print(os.environ["OMP_WAIT_POLICY"], torch.get_num_threads(), file=sys.stderr)
"""


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "1"}])
def test_openmp_is_set_before_torch_loads_unless_the_user_did(given: dict[str, str]) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | given
    done = subprocess.run([sys.executable, "-c", TORCH_SEES], capture_output=True, text=True, cwd=ROOT, env=variables)
    policy, threads = done.stderr.split()
    assert policy == given.get("OMP_WAIT_POLICY", "passive")
    if given:
        assert threads == "1"
    assert 1 <= int(threads) <= len(os.sched_getaffinity(0))


LIMITS = [
    ({"cpu.max": "150000 100000\n"}, 1.5),
    ({"cpu.max": "max 100000\n"}, math.inf),
    ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ({"cpu.max": "something else entirely\n"}, math.inf),
    ({}, math.inf),
]


@pytest.mark.parametrize(("files", "cores"), LIMITS)
def test_a_containers_share_of_time_is_read(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="ascii")
    assert allowed_cores(tmp_path) == cores


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("7", "7")])
def test_a_container_with_half_a_core_gets_one_thread(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n", encoding="ascii")
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    settle_threads(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == expected
