"""The command line: `main` takes it apart, each verb is a function beside. The only folder that knows tyro."""

import difflib
import errno
import os
import stat
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO, cast

import tyro

import hfcompress
from hfcompress.cli.arguments import as_typed, as_written, option_value, spelled
from hfcompress.cli.common import DEFECT, HELP, INTERRUPTED, NO_READER, WRONG_INPUT
from hfcompress.cli.delivery import export
from hfcompress.cli.harness import evaluate
from hfcompress.cli.language import summarize
from hfcompress.cli.parse_errors import one_line_errors, options_of
from hfcompress.cli.predicting import predict
from hfcompress.cli.profiling import profile
from hfcompress.cli.results import check, env, push, report, verify
from hfcompress.cli.running import from_lock, list_recipes, plan, run, with_recipe
from hfcompress.cli.traffic import ab, record, replay, shadow
from hfcompress.errors import INTERRUPTED_LINE, OptionError, UserError
from hfcompress.folders.escaping import TerminalOutput, one_line
from hfcompress.folders.files import chain, disk_is_full, full_disk

BLOCK = 4096  # bytes, below which a disk is called full
DESCRIPTION = "State a budget, run a recipe, get a small model and a report that proves or refuses the budget."


def main() -> None:
    """Exit codes: 0 all verdicts hold, 1 a verdict fails, 2 the input is wrong, 70 a defect of this program (a
    traceback says where), 130 interrupted, 141 nobody reads.

    1 is a verdict, on which other programs act (`ab`: roll back): nothing else may end with it.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is for those who write code
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  (it was closed: there is nothing to read)
    arguments = sys.argv[1:] or ["--help"]
    if sys.stdout is not None and not HELP & set(arguments):  # whose colors are our own
        sys.stdout = cast(TextIO, TerminalOutput(sys.stdout))  # labels and answers come from data
    try:
        sys.exit(dispatch(arguments))
    except UserError as error:
        print(f"hfcompress: {one_line(str(error))}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt:
        print(INTERRUPTED_LINE, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of standard output has gone, as with `| head`
        forget_output()
        sys.exit(NO_READER)
    except OSError as error:
        if disk_is_full(error):
            refuse_full_disk(error, arguments)
        if error.filename is None:  # no file of the user's
            sys.exit(defect())
        said = one_line(f"{error.filename}: {error.strerror}; give another place, or mend this one")
        print(f"hfcompress: {said}", file=sys.stderr)
        forget_output()
        sys.exit(WRONG_INPUT)
    except Exception as error:  # safetensors, torch and onnx have exceptions of their own for a full disk
        if disk_is_full(error):
            refuse_full_disk(error, arguments)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # as torch says it
            reason = (str(error).strip().splitlines() or ["no more can be had"])[0][:160]
            line = f"hfcompress: not enough memory ({reason}); smaller batches, images or texts take less"
            print(line, file=sys.stderr)
            sys.exit(WRONG_INPUT)
        sys.exit(defect())
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which has no public name; SystemExit goes on
            raise
        reason = one_line(str(error), 160)
        advice = "fetch its tokenizer.json again, or leave the model out"
        print(f"hfcompress: the tokenizer gave up on a text ({reason}); {advice}", file=sys.stderr)
        forget_output()
        sys.exit(WRONG_INPUT)


def defect() -> int:
    """Print the traceback of the exception at hand; its exit code is none that means a verdict."""
    traceback.print_exc()
    return DEFECT


def refuse_full_disk(error: BaseException, arguments: list[str]) -> NoReturn:
    """Say in one line which disk is full, and end with exit code 2."""
    named = [argument.rpartition("=")[2] for argument in arguments]
    places = [Path(name) for name in named if Path(name).is_absolute() or Path(name).exists()]
    said = full_disk(error, Path(), *places)
    if output_is_full() and not any(getattr(cause, "filename", None) for cause in chain(error)):
        said = f"standard output: {os.strerror(errno.ENOSPC)}"
    print(f"hfcompress: {said}; make room, then run the same command again", file=sys.stderr)
    forget_output()
    sys.exit(WRONG_INPUT)


def output_is_full() -> bool:
    """Whether standard output is a file that takes nothing more: on a full disk, or /dev/full."""
    try:
        found = os.fstat(1)
        if stat.S_ISCHR(found.st_mode):
            return found.st_rdev == os.makedev(1, 7)
        room = os.fstatvfs(1)
        return stat.S_ISREG(found.st_mode) and room.f_bavail * room.f_frsize < BLOCK
    except OSError:  # it was closed
        return False


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
    if arguments == ["--version"]:
        print(f"hfcompress {hfcompress.__version__}")
        return 0
    try:
        return parsed(spelled(arguments), verbs)
    except UserError as error:
        kind = UserError if isinstance(error, OptionError) else type(error)
        raise kind(as_written(as_typed(error, arguments), arguments)) from error


def parsed(arguments: list[str], verbs: dict[str, Callable[..., int]]) -> int:
    """Run the verb that the arguments begin with; their options are spelled in one way."""
    if arguments[:1] == ["run"] and (lock_file := option_value(arguments, "--from-lock")):
        return from_lock(Path(lock_file), arguments[1:])  # before the recipe's name is asked for: the lock has it
    asks_help = bool(HELP & set(arguments))
    if not (asks_help and arguments[0].startswith("-")):
        require_verb(arguments, verbs)
    if arguments[0] in ("run", "plan") and len(arguments) > 1 and not arguments[1].startswith("-"):
        return with_recipe(arguments[0], arguments[1], arguments[2:])
    if arguments[0] in ("run", "plan") and not asks_help:
        typed = " ".join([arguments[0], "RECIPE", *arguments[1:]])
        raise UserError(f"{arguments[0]}: the recipe's name comes first; type hfcompress {typed}; see hfcompress list")
    app = tyro.extras.SubcommandApp()
    for name, verb in verbs.items():
        app.command(name=name)(verb)
    known = options_of(verbs[arguments[0]]) if arguments[0] in verbs else []
    with one_line_errors(arguments[1:], f"hfcompress {arguments[0]}", known):
        return app.cli(prog="hfcompress", description=DESCRIPTION, args=arguments)


def require_verb(arguments: list[str], verbs: dict[str, Callable[..., int]]) -> None:
    """Stop where the command line does not begin with a verb.

    Raises:
        UserError: with the likeliest one, or all.
    """
    if arguments[0] in verbs:
        return
    near = difflib.get_close_matches(arguments[0], verbs, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {' '.join(verbs)}"
    what = "a command comes before the options" if arguments[0].startswith("-") else "there is no such command"
    raise UserError(f"{one_line(arguments[0], 80) or repr('')}: {what}; {hint}")
