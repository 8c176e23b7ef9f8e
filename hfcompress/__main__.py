"""`hfcompress` and `python -m hfcompress`: what must be in place before anything else is imported.

An interrupt while modules load would otherwise end in a traceback from wherever the import was; and OpenMP reads its
settings when torch is loaded, not later.
"""

import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hfcompress.errors import INTERRUPTED_LINE

INTERRUPTED = 130


def interrupted(*_: Any) -> None:
    """Raise KeyboardInterrupt, so that what is begun is cleaned up; at the next signal end at once."""
    signal.signal(signal.SIGINT, leave)
    raise KeyboardInterrupt


def leave(*_: Any) -> None:
    """Say so and end, without the interpreter's own cleaning up, amid which a signal would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(2, f"{INTERRUPTED_LINE}\n".encode())
    os._exit(INTERRUPTED)


def unraisable(found: Any) -> None:
    """An interrupt that came where Python cannot raise it (in a finalizer): the interpreter would print and go on."""
    if found.exc_type is not None and issubclass(found.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(found)


def settle_threads(root: Path = Path("/")) -> None:
    """Set OpenMP's variables for this process and its children, where the user has not set them.

    Threads that spin while they wait make a shared machine many times slower. Their number is torch's own choice (the
    cores that this process may use) unless a container is allowed less time than it sees cores.

    Args:
        root: where the system's files are.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    allowed = allowed_cores(root)
    if allowed < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, math.floor(allowed))))


def allowed_cores(root: Path) -> float:
    """Return the cores' worth of time that a container's control group allows (v2 or v1); infinite without a limit."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)  # microseconds
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (
            (root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
        )
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def main() -> None:
    """Run the command line; see `hfcompress.cli.main`."""
    settle_threads()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the shell ignores it, as for `&`
        signal.signal(signal.SIGINT, leave)
        sys.unraisablehook = unraisable
        from hfcompress.cli import main as command

        signal.signal(signal.SIGINT, interrupted)
        try:
            command()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interpreter is taken down
    else:
        from hfcompress.cli import main as command

        command()


if __name__ == "__main__":
    main()
