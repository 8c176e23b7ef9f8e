"""ForkServer: command lines of hfcompress, each in a fork of a process that has imported the libraries already.

A start costs a tenth of a second instead of ten, so that tests can afford hundreds. The server itself runs nothing:
no thread pool of torch or pyarrow exists when it forks. What reads its environment once, at import (huggingface_hub,
and with it transformers and datasets) is left out of a server for commands with an environment of their own.
"""

import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PIL = "pil_" if int(version("transformers").split(".")[0]) >= 5 else ""  # its other class needs torchvision
WITHOUT_HUB = (
    "numpy",
    "scipy.stats",
    "torch",
    "pyarrow.parquet",
    "pandas",
    "sklearn.feature_extraction.text",
    "matplotlib.backends.backend_svg",
    "jinja2",
    "httpx",
    "requests",
    "yaml",
    "tokenizers",
    "safetensors.torch",
    "onnxruntime",
    "tqdm.auto",
    "tyro.extras",
    "tyro._backends",
    "typeguard",
    "filelock",
    "detect_secrets.core.scan",
    "hfcompress.cli",
    "hfcompress.runs.run",
    "hfcompress.evaluation.statistics",
    "hfcompress.report.pages",
    "hfcompress.tasks.text_classification",
    "hfcompress.tasks.image_classification",
    "hfcompress.tasks.tabular_classification",
    "hfcompress.tasks.text_generation",
)
IMPORTS = (
    *WITHOUT_HUB,
    "datasets",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mobilenet_v2.modeling_mobilenet_v2",
    f"transformers.models.mobilenet_v2.image_processing_{PIL}mobilenet_v2",
    "transformers.trainer",
)
HUB = "huggingface_hub"  # reads HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE once, when it is imported


@dataclass(frozen=True)
class Finished:
    """How a command ended: its exit code (negative: the signal), what it printed, and how much memory it added."""

    code: int
    out: str
    err: str
    grown_mb: float
    timed_out: bool


class ForkServer:
    """Starts the server when it is first asked; `with` ends it.

    Args:
        scratch: a folder for what the commands print.
        imports: the modules that the commands find imported; WITHOUT_HUB for commands with an `environment`.
    """

    def __init__(self, scratch: Path, imports: tuple[str, ...] = IMPORTS) -> None:
        self.scratch, self.imports = scratch, imports
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # not that of the first test
        self.environment["TOKENIZERS_PARALLELISM"] = "false"
        self.environment["TRANSFORMERS_VERBOSITY"] = "error"  # the command line sets it too late for what is imported
        self.started: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        if self.started is None:
            self.started = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.fork_server", *self.imports],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=self.environment,
                text=True,
            )
        return self.started

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *error: object) -> None:
        if self.started is not None:
            assert self.started.stdin is not None
            self.started.stdin.close()
            self.started.wait()

    def run(
        self,
        *arguments: str,
        cwd: Path | None = None,
        timeout: float = 60,
        most_mb: float = 2000,
        environment: dict[str, str] | None = None,
        fork_memory: bool = False,
    ) -> Finished:
        """Run `hfcompress` with these arguments.

        Args:
            timeout: seconds after which it is killed.
            most_mb: memory beyond the server's own, in MB, at which it is killed.
            environment: all of its environment variables, if not the server's.
            fork_memory: whether it measures the memory of models in forks, and not in processes that it starts.
        """
        task = {"arguments": arguments, "environment": environment, "fork_memory": fork_memory}
        return self._ask(task, cwd, timeout, most_mb)

    def call(self, function: str, *arguments: Any, timeout: float = 60, most_mb: float = 2000) -> Finished:
        """Call `module:function` with these arguments and print its result as JSON."""
        return self._ask({"function": function, "arguments": arguments}, None, timeout, most_mb)

    def code(
        self, code: str, *arguments: str, timeout: float = 60, environment: dict[str, str] | None = None
    ) -> Finished:
        """Run a program, as `python -c` does."""
        return self._ask({"code": code, "arguments": arguments, "environment": environment}, None, timeout, 2000)

    def _ask(self, task: dict[str, Any], cwd: Path | None, timeout: float, most_mb: float) -> Finished:
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        out, err = self.scratch / "out", self.scratch / "err"
        task |= {"out": str(out), "err": str(err), "cwd": str(cwd or self.scratch)}
        task |= {"timeout": timeout, "most_mb": most_mb}
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        return Finished(out=out.read_text(errors="replace"), err=err.read_text(errors="replace"), **answer)


def serve() -> None:
    """Read a task a line from standard input, run it in a fork, and answer how it ended."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # no fork goes through what was imported, nor copies its pages
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            run_task(task)
        print(json.dumps(watch(child, task["timeout"], task["most_mb"])), flush=True)


def watch(child: int, timeout: float, most_mb: float) -> dict[str, Any]:
    """Wait for a child, and kill its process group when it takes too long or too much memory."""
    before, begun, peak, timed_out = resident_mb(os.getpid()), time.monotonic(), 0.0, False
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        peak = max(peak, resident_mb(child) - before)
        timed_out = time.monotonic() - begun > timeout
        if timed_out or peak > most_mb:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.01)
    return {"code": os.waitstatus_to_exitcode(status), "grown_mb": round(peak, 1), "timed_out": timed_out}


def is_graph(folder: Path) -> bool:
    """Whether a folder is measured with onnxruntime, without torch."""
    return any(folder.glob("*.onnx"))


def memory_of(module: str, folder: str, length: int, threads: int) -> dict[str, float]:
    """What `python -m hfcompress.formats.MODULE` prints, with the imports of this process in `bare_rss_mb`."""
    from hfcompress.formats import language_memory, memory

    serve = language_memory.serve if module == "language_memory" else memory.serve
    return {name: round(value, 1) for name, value in serve(Path(folder), length, threads).items()}


def fork_memory_processes() -> None:
    """Let this process measure the memory of models in forks of what it is now, without a model or a thread."""
    from hfcompress.formats import language_memory, memory

    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        for line in there.makefile():
            child = os.fork()
            if child == 0:
                there.sendall((json.dumps(memory_of(*json.loads(line))) + "\n").encode())
                os._exit(0)
            if os.waitpid(child, 0)[1] != 0:
                there.sendall(b"null\n")
        os._exit(0)
    there.close()
    stream = here.makefile("rw")

    real = memory.fresh_process

    def fresh_process(module: str, folder: Path, length: int, threads: int) -> dict[str, float]:
        if module == "memory" and is_graph(folder):
            return real(folder, length, threads)
        stream.write(json.dumps([module, str(folder), length, threads]) + "\n")
        stream.flush()
        found: dict[str, float] | None = json.loads(stream.readline())
        if found is None:
            raise RuntimeError(f"the memory of {folder} could not be measured; what went wrong is printed above")
        return found

    memory.fresh_process = partial(fresh_process, "memory")
    language_memory.fresh_process = partial(fresh_process, "language_memory")


def resident_mb(process: int) -> float:
    """The resident memory of a process in MB; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 1e6


def run_task(task: dict[str, Any]) -> None:
    """Become the command: its own process group, its output in files. Never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(task["cwd"])
        for descriptor, place in ((0, os.devnull), (1, task["out"]), (2, task["err"])):
            flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(place, flags), descriptor)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (the server's own has read ahead)
        if task.get("environment") is not None:
            assert HUB not in sys.modules, f"{HUB} has read its environment already"
            os.environ.clear()
            os.environ.update(task["environment"])
        if task.get("fork_memory"):
            fork_memory_processes()
        if name := task.get("function"):
            module, _, function = name.partition(":")
            print(json.dumps(getattr(importlib.import_module(module), function)(*task["arguments"])))
            code = 0
        elif program := task.get("code"):
            sys.argv = ["-c", *task["arguments"]]
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
            code = 0
        else:
            from hfcompress.cli import main

            sys.argv = ["hfcompress", *task["arguments"]]
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
