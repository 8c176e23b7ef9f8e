"""`hfcompress` and `python -m hfcompress`: what must be in place before anything else is imported.

An interrupt while modules load would otherwise end in a traceback from wherever the import was.
"""

import os
import signal
import sys
from typing import Any

INTERRUPTED = 130
SAID = "hfcompress: interrupted; run the same command again to go on"


def interrupted(*_: Any) -> None:
    """Raise KeyboardInterrupt, so that what is begun is cleaned up; at the next signal end at once."""
    signal.signal(signal.SIGINT, leave)
    raise KeyboardInterrupt


def leave(*_: Any) -> None:
    """Say so and end, without the interpreter's own cleaning up, amid which a signal would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(2, f"{SAID}\n".encode())
    os._exit(INTERRUPTED)


def unraisable(found: Any) -> None:
    """An interrupt that came where Python cannot raise it (in a finalizer): the interpreter would print and go on."""
    if found.exc_type is not None and issubclass(found.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(found)


def main() -> None:
    """Run the command line; see `hfcompress.cli.main`."""
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
