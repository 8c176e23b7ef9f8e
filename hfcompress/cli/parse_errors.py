"""What tyro refuses of a command line, as one line: the option as typed, what is wrong, what to type instead."""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tyro import _errors  # its only structured account of what was wrong; pyproject.toml holds the version

from hfcompress.cli.arguments import is_option, option_value
from hfcompress.errors import UserError
from hfcompress.folders.escaping import one_line

LONGEST = 80  # characters of a value that are repeated
KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text", "PATH": "a path", "None": "None"}


@contextmanager
def one_line_errors(arguments: Sequence[str], prog: str, options: Sequence[str]) -> Iterator[None]:
    """Raise what tyro refuses as UserErrors, in place of its boxes of several lines.

    Args:
        arguments: the command line that is parsed, with options spelled as --help spells them.
        prog: what is typed before them, such as "hfcompress run legal_bert".
        options: the options that there are, as --help spells them; the likeliest is named where one is mistyped.

    Raises:
        UserError: with the option, what is wrong and what to type.
    """

    def refuse(event: _errors.ParseErrorEvent) -> NoReturn:
        line = said(event, arguments, options)
        raise UserError(line if line.endswith("?") else f"{line}; {prog} --help lists what can be given")

    with _errors.on_parse_error(refuse):
        yield


def said(event: _errors.ParseErrorEvent, arguments: Sequence[str], options: Sequence[str]) -> str:
    """What is wrong, without where the help is."""
    if isinstance(event, _errors.UnrecognizedArgs):
        return unrecognized(event.tokens, arguments, options)
    if isinstance(event, _errors.MissingArgs):
        if event.unrecognized_tokens:
            return unrecognized(event.unrecognized_tokens, arguments, options)
        names = [named(missing.arg) for missing in event.missing_arguments]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    if isinstance(event, _errors.BadValue):
        if event.reason == "too_few_values":
            return f"{named(event.argument)}: a value is missing; give {kind(event.argument)}"
        return f"{named(event.argument)} {shown(event.offending_value or '')}: it takes no value; leave that out"
    if isinstance(event, _errors.InvalidChoice):
        return f"{named(event.argument)} {shown(event.value)}: choose from {' '.join(event.choices)}"
    if isinstance(event, _errors.InstantiationFailure):
        if event.argument is None:
            return one_line(event.message, 300)
        value = given_value(event, arguments)
        return f"{named(event.argument)}{value and ' ' + shown(value)}: give {kind(event.argument)}"
    return f"{type(event).__name__}: the options cannot be read"


def unrecognized(tokens: Sequence[str], arguments: Sequence[str], options: Sequence[str]) -> str:
    """What is said of the first unknown option, else of the words that belong to none."""
    for token in filter(is_option, tokens):
        name = token.partition("=")[0]
        near = " or ".join(in_a_group(name, options)) or nearest(name, options)
        return f"{shown(name)}: there is no such option" + (f"; did you mean {near}?" if near else "")
    for argument in filter(is_option, arguments):
        name, equals, value = argument.partition("=")
        if equals and value == tokens[0]:
            return f"{shown(argument)}: {name} takes no value; leave ={shown(value)} out"
    words = " ".join(tokens)
    return f"{shown(words)}: it belongs to no option; leave it out, or put a value that has blanks into quotes"


def in_a_group(name: str, options: Sequence[str]) -> list[str]:
    """Return the options of this name in groups of the group that is typed: --weight-only.gptq.damping of damping."""
    group, _, last = name.rpartition(".")
    return [option for option in options if option.startswith(f"{group}.") and option.rpartition(".")[2] == last]


def nearest(name: str, options: Sequence[str]) -> str:
    """The option most like a mistyped one, also where its group was left out (--learning-rate); "" where none is."""
    found = difflib.get_close_matches(name, options, n=1, cutoff=0.7)
    if not found:
        last = {option.rpartition(".")[2]: option for option in reversed(options) if "." in option}
        found = [last[like] for like in difflib.get_close_matches(name.lstrip("-"), last, n=1, cutoff=0.8)]
    return found[0] if found else ""


def named(argument: Any) -> str:
    """An argument as it is typed: --format; a positional one as RUN."""
    if argument.is_positional():
        return str(argument.field.intern_name).upper().replace("_", "-")
    return str(argument.lowered.name_or_flags[-1])


def kind(argument: Any) -> str:
    """What an argument takes, in words, by its metavar: FLOAT, {None}|INT, {yes,no}."""
    metavar = str(argument.lowered.metavar or "a value")
    if choices := re.fullmatch(r"\{([^|{}]*,[^|{}]*)\}", metavar):
        return f"one of {choices[1].replace(',', ' ')}"
    parts = [part.strip("{}") for part in metavar.split("|")]
    if all(part in KINDS for part in parts):
        return " or ".join(KINDS[part] for part in reversed(parts))
    return metavar


def given_value(event: _errors.InstantiationFailure, arguments: Sequence[str]) -> str:
    """The value that could not be read: the one that the message repeats, else the option's first; "" unknown."""
    if repeated := re.search(r"'([^']*)'\s*$", event.message):
        return repeated[1]
    argument = event.argument
    if argument is None or argument.is_positional():
        return ""
    return option_value(list(arguments), argument.lowered.name_or_flags[-1]) or ""


def shown(text: str) -> str:
    return one_line(text, LONGEST) or "''"


def options_of(source: Callable[..., Any] | type) -> list[str]:
    """The options of a verb, or of a dataclass whose fields may be groups: --format, --qat.learning-rate."""
    if not isinstance(source, type):
        values = inspect.signature(source).parameters.items()
        return [option for name, p in values for option in below(f"--{spelled_name(name)}", p.default)]
    found = []
    for field in dataclasses.fields(source):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        found += below(f"--{spelled_name(field.name)}", default)
    return found


def below(option: str, default: Any) -> list[str]:
    """An option, or those of its group: the fields of a dataclass, the names of a dict (--budget.drop.accuracy)."""
    if dataclasses.is_dataclass(default):
        parts = {field.name: getattr(default, field.name) for field in dataclasses.fields(default) if field.init}
    elif isinstance(default, dict) and default:
        parts = default
    else:
        path, dot, last = option.removeprefix("--").rpartition(".")
        return [option, f"--{path}{dot}no-{last}"] if isinstance(default, bool) else [option]
    return [name for part, value in parts.items() for name in below(f"{option}.{spelled_name(part)}", value)]


def spelled_name(name: str) -> str:
    return name.replace("_", "-")
