"""Optimum (optimum-onnx): its ONNX export and int8, in this process or by the Python of an environment of its own.

optimum-onnx 0.1.0, its newest, wants transformers below 4.58. Where this process has another one, a second Python is
asked: the one of `--optimum-python`, of the variable HFCOMPRESS_OPTIMUM_PYTHON, or of .venv-optimum here.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hfcompress.engines import optimum_call
from hfcompress.errors import OptionError, Reason, UserError, command_line_option, has, needs
from hfcompress.stage import library_version

VARIABLE = "HFCOMPRESS_OPTIMUM_PYTHON"
ENVIRONMENT = Path(".venv-optimum/bin/python")
DISTRIBUTIONS = ("optimum-onnx", "onnxruntime")
GET = Reason(
    'python -m venv .venv-optimum && .venv-optimum/bin/pip install "optimum[onnxruntime]==2.1.0", and run the same '
    "command again here, or name that Python with {.optimum_python}"
)
ASK = """
import json, sys
from importlib import metadata, util
assert util.find_spec("optimum.onnxruntime"), "it is not installed"
print(json.dumps({name: metadata.version(name) for name in sys.argv[1:]}))
"""
BELOW = (4, 58)
"""The transformers that optimum-onnx 0.1.0 takes."""


@dataclass(frozen=True)
class Optimum:
    """Where Optimum was found."""

    python: Path | None
    """None: this process."""
    versions: tuple[tuple[str, str], ...]
    """Of optimum-onnx and onnxruntime there."""

    def __call__(self, action: str, model: Path, out: Path, work: Path, **more: str) -> None:
        """Do what optimum_call.py does under that name; `work` is a folder for the job and for what is left over.

        Raises:
            UserError: the other Python failed; with its last line.
        """
        job: dict[str, Any] = {"action": action, "model": str(model), "out": str(out), **more}
        file = work / "optimum.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        if self.python is None:
            needs("optimum.onnxruntime")
            optimum_call.main(str(file))
            return
        script = Path(optimum_call.__file__)
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        command = [str(self.python), "-P", str(script), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline)
        if done.returncode:
            cause = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            reason = "Optimum's {action} failed there: {cause}"
            raise OptionError(".optimum_python", reason, self.python, action=action, cause=cause)


def find(given: Path | None = None) -> Optimum | None:
    """Return where Optimum can be called; None where it is nowhere and no Python was named.

    Raises:
        UserError: the Python that was named cannot be run, or has no Optimum that can be imported.
    """
    named = str(given or os.environ.get(VARIABLE) or "")
    if named:
        return asked(Path(named).expanduser().absolute(), by_option=given is not None)
    if has("optimum.onnxruntime") and takes(library_version("transformers")):
        return Optimum(None, tuple((name, library_version(name) or "") for name in DISTRIBUTIONS))
    if ENVIRONMENT.is_file():
        return asked(ENVIRONMENT.absolute(), by_option=True)
    return None


def takes(transformers: str | None) -> bool:
    """Return whether Optimum imports beside this version of transformers."""
    parts = (transformers or "99.0").split(".")
    return (int(parts[0]), int(parts[1])) < BELOW


@cache
def asked(python: Path, by_option: bool) -> Optimum:
    """Return the Optimum of another Python.

    Args:
        by_option: the message names the option, else the variable.

    Raises:
        UserError: see `find`.
    """
    command = [str(python), "-P", "-c", ASK, *DISTRIBUTIONS, "transformers"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise refused(python, by_option, Reason("cannot be run ({why})", why=error.strerror)) from None
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise refused(python, by_option, Reason("it has no Optimum ({cause}): {get}", cause=cause, get=GET))
    found = json.loads(done.stdout.splitlines()[-1])
    if not takes(version := found.pop("transformers")):
        reason = "Optimum does not import beside its transformers {version}: {get}"
        raise refused(python, by_option, Reason(reason, version=version, get=GET))
    return Optimum(python, tuple((key, value.partition("+")[0]) for key, value in found.items()))


def refused(python: Path, by_option: bool, why: Reason) -> UserError:
    """Return the error for another Python, which names it as it was named."""
    if by_option:
        return OptionError(".optimum_python", why, python)
    return UserError(Reason("{variable} {python}: {why}", variable=VARIABLE, python=python, why=why))


def require(given: Path | None = None) -> Optimum:
    """Return what `find` returns.

    Raises:
        UserError: Optimum is nowhere.
    """
    found = find(given)
    if found is None:
        raise UserError(Reason("{absent}: {get}", absent=absent(), get=GET))
    return found


def left_out(rows: str) -> str:
    """Return the note of a report whose rows by Optimum are not there."""
    return f"Without {rows}: {absent()}. To have them: {GET.text(command_line_option)}."


def absent() -> str:
    """Return the sentence that says why Optimum cannot be called here, without its period."""
    version = library_version("transformers")
    if has("optimum.onnxruntime"):
        return f"quantizing with Optimum: it does not import beside transformers {version}"
    return "quantizing with Optimum needs optimum.onnxruntime, which is not installed"
