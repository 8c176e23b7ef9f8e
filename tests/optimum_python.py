"""Optimum as a reader's own program calls it: in the Python that has it, another one beside transformers 5."""

import os
import subprocess
import sys

import pytest

from hfcompress.engines import optimum

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def optimum_python() -> str:
    """Return the Python that has Optimum; the test is skipped where there is none."""
    found = optimum.find()
    if found is None:
        pytest.skip("Optimum is neither in this environment nor in .venv-optimum: make optimum")
    return str(found.python or sys.executable)


def run_optimum(code: str, *arguments: object, environment: dict[str, str] | None = None) -> str:
    """Return what a program prints there; it does not find this package.

    Args:
        arguments: sys.argv[1:] of it.
        environment: variables beside this process's; without a network where not given.
    """
    command = [optimum_python(), "-P", "-c", code, *map(str, arguments)]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables | (environment or OFFLINE))
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
