"""UserError: "the input is wrong, and here is what to do about it"; and what raises it for numbers out of range."""

import math
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST_THREADS = 1024  # runtimes hang when they are to start a hundred thousand


class UserError(Exception):
    """A mistake that the user can mend. The command line prints its text as one line and exits with code 2.

    The text says what is wrong, where, and what to do. Everything else that is raised is a defect of this project
    and keeps its traceback.
    """


class CheckFailed(UserError, RuntimeError):
    """A stage's own check of what it made failed: the text has the figures, and the option that may change them."""


class UnknownShape(UserError):
    """A model whose size cannot be told from its config: it can be run and measured, but not planned."""


def require(options: "DataclassInstance", least: float, *names: str) -> None:
    """Refuse numbers below `least`, infinite ones and nan; an option that is None was not given.

    The command line puts the name that the recipe has for these options in place of the *.

    Raises:
        UserError: one of them is refused.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            whole = isinstance(value, int)  # as it was typed, and perhaps beyond every float
            wanted = f"at least {least:g}" if whole or math.isfinite(value) else "a finite number"
            raise UserError(f"--*.{name.replace('_', '-')} {value if whole else f'{value:g}'}: must be {wanted}")


def require_numbers(options: "DataclassInstance", *signed: str) -> None:
    """The same for every number among `options` that is not `signed`: none of them may be negative.

    Raises:
        UserError: see `require`.
    """
    names = [f.name for f in fields(options) if f.name not in signed]
    require(options, 0, *(name for name in names if isinstance(getattr(options, name), int | float)))


def require_threads(options: "DataclassInstance") -> None:
    """Refuse `threads` below 1, and more than any machine would use.

    Raises:
        UserError: see `require`.
    """
    require(options, 1, "threads")
    threads = options.threads  # type: ignore[attr-defined]
    if threads > MOST_THREADS:
        raise UserError(f"--*.threads {threads}: must be at most {MOST_THREADS}")
