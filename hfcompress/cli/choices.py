"""The groups of options that one value of another option reads, in help: only the chosen algorithm's are listed."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from hfcompress.cli.arguments import option_value
from hfcompress.cli.parse_errors import spelled_name
from hfcompress.stage import chosen_by


def for_help(name: str, hint: Any, default: Any, arguments: Sequence[str]) -> tuple[Any, Any, str]:
    """Return a recipe's option as its help shows it: type, default, and a sentence that names what is not listed.

    Args:
        name: of the recipe's parameter; hint: its type; default: its value.
        arguments: the command line, whose choice of an algorithm counts.
    """
    chosen = {option: getattr(default, option) for option, _ in chosen_by(default).values()}
    for option in chosen:
        typed = option_value(list(arguments), f"--{spelled_name(name)}.{spelled_name(option)}")
        chosen[option] = chosen[option] if typed is None else typed
    hidden = {group: of for group, of in chosen_by(default).items() if chosen[of[0]] != of[1]}
    if not hidden:
        return hint, default, ""
    prefix = f"--{spelled_name(name)}"
    others = [
        f"{prefix}.{spelled_name(group)}.* ({prefix}.{spelled_name(option)} {value} --help)"
        for group, (option, value) in hidden.items()
    ]
    return *without(default, hidden), f" Not listed: {', '.join(others)}."


def without(default: Any, hidden: Any) -> tuple[Any, Any]:
    """Return a type like a stage's whose help does not list some of its groups, and the stage as one of that type."""
    kind = type(default)
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    hints = {group: Annotated[types[group], tyro.conf.Suppress] for group in hidden}
    body = {"__annotations__": hints, "__module__": kind.__module__, "__doc__": kind.__doc__}
    shown: Any = dataclasses.dataclass(frozen=True)(type(kind.__name__, (kind,), body))
    return shown, shown(**{name: getattr(default, name) for name in types})
