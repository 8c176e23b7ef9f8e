"""LiteRTNetwork: an image classifier's .tflite in LiteRT's interpreter, in a process of the Python that has it."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.errors import OptionError, UserError

Array = np.ndarray[Any, Any]
PIECE = 1 << 16  # bytes: what a pipe takes in one write
WORKER = Path(__file__).with_name("litert_worker.py")
VARIABLE = "HFCOMPRESS_LITERT_PYTHON"
INSTALL = 'make litert, or pip install "torch==2.13.0" "litert-torch==0.10.0"'
FOUND: dict[tuple[Path, str], bool] = {}  # which Pythons have which package: asking takes a while


def find_python(given: Path | None = None, package: str = "litert_torch") -> Path:
    """Return the Python that has a package of LiteRT's.

    Args:
        given: the one that was typed; else that which HFCOMPRESS_LITERT_PYTHON names, this one, or `make litert`'s
            below the working directory.
        package: ai_edge_litert runs a .tflite, litert_torch writes one.

    Raises:
        UserError: it is not there, or does not have it.
    """
    named = os.environ.get(VARIABLE)
    made = Path(".venv-litert/bin/python").absolute()
    places = [given] if given else [Path(named)] if named else [Path(sys.executable), made]
    for python in places:
        if (python == made and not python.exists()) or not has(python, package, given):
            continue
        return python
    why = (
        f"has no {package.replace('_', '-')}. It wants an older typing-extensions than this environment has: "
        f"make an environment of its own ({INSTALL}) and name its Python"
    )
    if given:
        raise OptionError(".litert_python", "it {why}", given, why=why)
    raise UserError(f"{f'{VARIABLE}={named}: it' if named else 'this Python'} {why} in {VARIABLE}")


def has(python: Path, package: str, given: Path | None) -> bool:
    """Return whether a Python can import a package.

    Raises:
        UserError: it cannot be run.
    """
    if (python, package) not in FOUND:
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
        try:
            done = subprocess.run([python, "-P", "-c", code], capture_output=True)
        except OSError as error:
            if given:
                raise OptionError(".litert_python", "cannot be run ({why})", given, why=error.strerror) from None
            raise UserError(f"{VARIABLE}={python}: cannot be run ({error.strerror})") from None
        FOUND[python, package] = done.returncode == 0
    return FOUND[python, package]


class LiteRTNetwork:
    """model.tflite in a worker process; images are answered one at a time, as LiteRT's graphs take them.

    A request that is asked again, the same array, is not sent again: what is timed is LiteRT's work and some
    hundredths of a millisecond.

    Raises:
        UserError: LiteRT is not installed, or cannot load the file.
    """

    runtime = "LiteRT"
    inputs: Mapping[str, Any] = {}
    alone = False

    def __init__(self, folder: Path, threads: int, python: Path | None = None) -> None:
        self._file = folder / "model.tflite"
        if not self._file.is_file():
            raise UserError(f"{folder} has no model.tflite; make the model again")
        python = find_python(python, "ai_edge_litert")
        command = [str(python), "-P", str(WORKER), "answer", str(self._file), str(threads)]
        self._worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self._last: Array | None = None
        self._read(6)

    def run(self, feed: dict[str, Array]) -> Array:
        pixels = feed["pixel_values"]
        again = pixels is self._last
        self._last = pixels
        sent = b"" if again else np.ascontiguousarray(pixels, np.float32).tobytes()
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(struct.pack("<4q", *((0, 0, 0, 0) if again else pixels.shape)))
            for start in range(0, len(sent), PIECE):
                self._worker.stdin.write(sent[start : start + PIECE])
        except BrokenPipeError:
            raise self._refused() from None
        images, classes = struct.unpack("<2q", self._read(16))
        return np.frombuffer(self._read(4 * images * classes), np.float32).reshape(images, classes)

    def _read(self, size: int) -> bytes:
        assert self._worker.stdout is not None
        found = b""
        while len(found) < size:
            part = self._worker.stdout.read(size - len(found))
            if not part:
                raise self._refused()
            found += part
        return found

    def _refused(self) -> UserError:
        """Return the error for a worker that has ended."""
        _, told = self._worker.communicate()
        lines = told.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        return UserError(f"{self._file} cannot be run ({lines[-1][:160]}); make it again")

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)
        if worker is not None and worker.poll() is None:
            worker.kill()
            worker.communicate()


def measured(file: Path, threads: int, images: int) -> dict[str, float]:
    """Return peak_rss_mb, bare_rss_mb and load_ms of a .tflite that answers so many images, in a process of its own.

    Raises:
        UserError: LiteRT is not installed, or cannot run the file.
    """
    python = find_python(package="ai_edge_litert")
    command = [str(python), "-P", str(WORKER), "measure", str(file), str(threads), str(images)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1][:160]
        raise UserError(f"{file} cannot be run ({reason}); make it again")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 1) for name, value in found.items()}
