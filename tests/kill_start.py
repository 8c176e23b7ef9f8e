"""One start of a command line that is killed at a file event of its run: what tests/runs/test_kill_harness.py forks.

A file event is what Python's audit hooks and safetensors' writer see below the run's folder: a file opened for
writing, renamed, linked or removed, a folder made or removed. The kill comes just before it happens; of a safetensors
file a part has been written by then, under the name that safetensors gives to one that is not whole.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Kill:
    """Counts the file events below a folder, and kills this process at the last of so many.

    Args:
        folder: the run's.
        at: the number of the event at which to kill; None counts alone.
    """

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.count = f"{folder}/", at, 0
        self.process = os.getpid()

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES:
                self.see(path)
        elif event in EVENTS:
            self.see(arguments[0])

    def see(self, path: Any, before: Callable[[], object] = lambda: None) -> None:
        """Count an event; `before` is done before this process is killed at it."""
        if isinstance(path, int) or os.getpid() != self.process or self.folder not in os.fsdecode(path) + "/":
            return
        self.count += 1
        if self.count == self.at:
            before()
            os.kill(self.process, signal.SIGKILL)

    def watch_safetensors(self) -> None:
        """See what safetensors writes: its code is not Python's."""
        import safetensors.numpy
        import safetensors.torch

        for module in (safetensors.torch, safetensors.numpy):
            write = module.serialize_file

            def seen(tensors: Any, filename: Any, *more: Any, write: Any = write, **others: Any) -> Any:
                half = Path(os.fsdecode(filename)).with_name(".tmpQx7Zk2")
                self.see(filename, lambda: half.write_bytes(bytes(1000)))
                return write(tensors, filename, *more, **others)

            module.serialize_file = seen


def start(folder: str, at: int | None, *arguments: str) -> dict[str, Any]:
    """Run `hfcompress` with these arguments, killed at the event `at` below `folder`.

    Memory is not measured: it takes a process and seconds a model, and is not what is compared.

    Returns: its exit code, and how many events there were.
    """
    from hfcompress.cli import main
    from hfcompress.formats import language_memory, memory

    measured = {"peak_rss_mb": 1.0, "bare_rss_mb": 1.0, "loaded_rss_mb": 1.0, "load_ms": 1.0}
    memory.fresh_process = language_memory.fresh_process = lambda *_: measured  # type: ignore[assignment]
    Path(folder).with_suffix(".pid").write_text(str(os.getpid()), encoding="utf-8")
    kill = Kill(Path(folder), at)
    kill.watch_safetensors()
    sys.addaudithook(kill.watch)
    sys.argv = ["hfcompress", *arguments]
    try:
        main()
    except SystemExit as end:
        return {"code": end.code, "events": kill.count}
    return {"code": 0, "events": kill.count}


def events_of(said: str) -> dict[str, Any]:
    """What `start` returned, from the last line of what was printed."""
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found
