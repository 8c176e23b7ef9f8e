"""The options on a command line before they are parsed: spelled one way, each given once."""

import re
from collections.abc import Iterator

from hfcompress.errors import UserError


def spelled(arguments: list[str]) -> list[str]:
    """Return the arguments with options spelled as --help spells them: --run_dir is --run-dir. Values stay.

    Raises:
        UserError: an option is given twice, also as --x and --no-x.
    """
    found, seen = [], dict[str, str]()
    for argument in arguments:
        if not is_option(argument):
            found.append(argument)
            continue
        name, equals, value = argument.partition("=")
        option = name.replace("_", "-")
        if (before := seen.setdefault(positive(option), option)) != option:
            raise UserError(f"{before} and {option}: they contradict each other; give one of them")
        if option in (other.partition("=")[0] for other in found if is_option(other)):
            raise UserError(f"{option}: given twice; give it once")
        found.append(option + equals + value)
    return found


def as_written(message: str, arguments: list[str]) -> str:
    """Return a message with the options that were typed with underscores in it as they were typed."""
    for argument in filter(is_option, arguments):
        name = argument.partition("=")[0]
        if "_" in name:
            message = re.sub(re.escape(name.replace("_", "-")) + r"(?![\w.-])", name.replace("\\", r"\\"), message)
    return message


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
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments) and not is_option(arguments[i + 1]):
            return arguments[i + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None
