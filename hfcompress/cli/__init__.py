"""The command line: `main` takes it apart, each verb is a function beside. The only folder that knows tyro."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tyro

from hfcompress.cli.common import INTERRUPTED, NO_READER, WRONG_INPUT
from hfcompress.cli.delivery import export
from hfcompress.cli.harness import evaluate
from hfcompress.cli.language import summarize
from hfcompress.cli.profiling import profile
from hfcompress.cli.results import check, env, predict, push, report, verify
from hfcompress.cli.running import from_lock, list_recipes, option_value, plan, run, with_recipe
from hfcompress.cli.traffic import ab, record, replay, shadow
from hfcompress.errors import UserError


def main() -> None:
    """Exit codes: 0 all verdicts hold, 1 a verdict fails, 2 the input is wrong, 130 interrupted, 141 nobody reads."""
    # Before torch is loaded: threads that spin while they wait make a shared machine many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is for those who write code
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  (it was closed: there is nothing to read)
    arguments = sys.argv[1:]
    try:
        sys.exit(dispatch(arguments))
    except UserError as error:
        print(f"hfcompress: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt:
        print("hfcompress: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of standard output has gone, as with `| head`
        forget_output()
        sys.exit(NO_READER)
    except OSError as error:
        full = error.filename is None and error.errno == errno.ENOSPC  # standard output is a file on a full disk
        if error.filename is None and not full:  # no file of the user's
            raise
        place = "standard output" if full else error.filename
        print(f"hfcompress: {place}: {error.strerror}; give another place, or mend this one", file=sys.stderr)
        forget_output()
        sys.exit(WRONG_INPUT)
    except MemoryError as error:
        print(f"hfcompress: not enough memory ({error}); smaller batches, images or texts take less", file=sys.stderr)
        sys.exit(WRONG_INPUT)


def forget_output() -> None:
    """Let what is still to be written to standard output go, so that the interpreter does not try again."""
    if sys.stdout is not None:
        with suppress(OSError, ValueError):  # no file behind it, as in a test
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dispatch(arguments: list[str]) -> int:
    """Run one verb and return its exit code."""
    verbs: dict[str, Callable[..., int]] = {
        "list": list_recipes,
        "plan": plan,
        "run": run,
        "report": report,
        "check": check,
        "profile": profile,
        "predict": predict,
        "summarize": summarize,
        "export": export,
        "eval": evaluate,
        "push": push,
        "verify": verify,
        "record": record,
        "replay": replay,
        "shadow": shadow,
        "ab": ab,
        "env": env,
    }
    if arguments[:1] == ["run"] and (lock_file := option_value(arguments, "--from-lock")):
        return from_lock(Path(lock_file), arguments[1:])  # before the recipe's name is asked for: the lock has it
    if arguments and arguments[0] in ("run", "plan") and len(arguments) > 1 and not arguments[1].startswith("-"):
        return with_recipe(arguments[0], arguments[1], arguments[2:])
    app = tyro.extras.SubcommandApp()
    for name, verb in verbs.items():
        app.command(name=name)(verb)
    return app.cli(
        prog="hfcompress",
        description="State a budget, run a recipe, get a small model and a report that proves or refuses the budget.",
        args=arguments,
    )
