"""The options on a command line before they are parsed: spelled one way; one given twice is refused or said."""

import re
from collections.abc import Iterable, Iterator

from hfcompress.errors import OptionError, UserError, command_line_option, shown
from hfcompress.folders.escaping import one_line
from hfcompress.tasks.find_splits import say


def spelled(arguments: list[str]) -> list[str]:
    """Return the arguments with options spelled as --help spells them: --run_dir is --run-dir. Values stay.

    Of an option of `run` or `plan` that is given twice the last one counts, and standard error says so: command lines
    are made of parts, as with `make legal-bert ARGS="--scale full"`. Options of the other verbs can be lists of
    inputs, of which none may be lost.

    Raises:
        UserError: an option of another verb is given twice; or --x and --no-x are both given.
    """
    last_counts = arguments[:1] in (["run"], ["plan"])
    found, seen = [], dict[str, str]()
    for argument in arguments:
        if not is_option(argument):
            found.append(argument)
            continue
        name, equals, value = argument.partition("=")
        option = name.replace("_", "-")
        if (before := seen.setdefault(positive(option), option)) != option:
            raise UserError(f"{before} and {option}: they contradict each other; give one of them")
        if not last_counts and option in (other.partition("=")[0] for other in found if is_option(other)):
            raise UserError(f"{option}: given twice; give it once")
        found.append(option + equals + value)
    for option in dict.fromkeys(seen.values()) if last_counts else ():
        if len(given := values(found, option)) > 1:
            last = " ".join([option, *given[-1]])
            say(one_line(f"{last}: given {len(given)} times; the last one counts"))
    return found


def values(arguments: list[str], option: str) -> list[list[str]]:
    """Return the values that an option is given, for each time that it is given."""
    found: list[list[str]] = []
    here = False
    for argument in arguments:
        if is_option(argument):
            name, equals, value = argument.partition("=")
            if here := name == option:
                found.append([value] if equals else [])
        elif here:
            found[-1].append(argument)
    return found


def as_written(message: str, arguments: list[str]) -> str:
    """Return a message with the options that were typed with underscores in it as they were typed."""
    for argument in filter(is_option, arguments):
        name = argument.partition("=")[0]
        if "_" in name:
            message = re.sub(re.escape(name.replace("_", "-")) + r"(?![\w.-])", name.replace("\\", r"\\"), message)
    return message


def as_typed(error: UserError, arguments: list[str]) -> str:
    """Return an error's text with options as they are typed.

    A stage knows its options by their fields, and not what a recipe calls the group. Where nobody has said that
    (`UserError.group`), it is looked up among the options that were typed.

    Args:
        arguments: the command line.
    """
    typed = dict.fromkeys(name.replace("_", "-") for name in option_names(arguments))
    named = [error.field] if isinstance(error, OptionError) else fields_of(error)
    matching = [name for field in named for name in like(typed, field)]
    groups = {name.rpartition(".")[0] for name in matching}
    only = groups.pop() if len(groups) == 1 else None

    def option(field: str, value: object = None) -> str:
        found = [] if error.group or "." in field else like(typed, field)
        if value is not None:
            found = [name for name in found if option_value(arguments, f"--{name}") == shown(value)] or found
        if len(found) > 1:
            return " or ".join(command_line_option(f".{name}") for name in found) + (
                "" if value is None or isinstance(value, bool) else f" {shown(value)}"
            )
        group = error.group or (found[0].rpartition(".")[0] if found else only)
        return command_line_option(field, value, group)

    return error.text(option)


def like(typed: Iterable[str], field: str) -> list[str]:
    """Return the typed options that may be this field: weight-only.bits may be bits."""
    name = field.replace("_", "-")
    return sorted(option for option in typed if option.rpartition(".")[2] == name)


def fields_of(error: UserError) -> list[str]:
    """Return the options that an error's text names without their group."""
    found: list[str] = []

    def option(field: str, value: object) -> str:
        found.append(field)
        return field

    error.text(option)
    return [field for field in found if "." not in field]


def is_option(argument: str) -> bool:
    return argument.startswith("--") and len(argument) > 2


def positive(option: str) -> str:
    """--prune.no-mirror as --prune.mirror."""
    path, dot, last = option.removeprefix("--").rpartition(".")
    return path + dot + last.removeprefix("no-")


def option_names(arguments: list[str]) -> Iterator[str]:
    """The names of the options given, without the leading dashes: weight-only.bits."""
    return (positive(argument.partition("=")[0]) for argument in arguments if is_option(argument))


def option_value(arguments: list[str], option: str) -> str | None:
    """The value of an option that decides which other options there are, read before the real parse."""
    given = values(arguments, option)
    return given[-1][0] if given and given[-1] else None
