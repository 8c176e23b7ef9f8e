"""Small files of a folder that others made, read with bounds on their size and nesting before any library does."""

import json
import math
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024  # bytes; git-lfs's own limit
DEEPEST = 32  # levels of a config; transformers' own have six at most
MB = 10**6
LARGEST_CONFIG, LARGEST_INDEX, LARGEST_TOKENIZER = 8 * MB, 128 * MB, 512 * MB
LONGEST_NUMBER = 400  # digits; longer than any float's
UNBOUNDED = ("time_step_limit", "time_step_max")  # where transformers itself writes Infinity (Mamba)


def refuse_pointer(file: Path) -> None:
    """Refuse a Git LFS pointer: what lies there in place of a file that was not fetched.

    Raises:
        UserError: it is one.
    """
    try:
        if file.stat().st_size > LARGEST_POINTER or not file.is_file():
            return
        with file.open("rb") as stream:
            pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return
    if pointer:
        raise UserError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in {file.parent}")


def read_json(file: Path, largest: int = LARGEST_CONFIG) -> Any:
    """Return what a JSON file holds.

    Args:
        largest: bytes that are read at most.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is a Git LFS pointer, too large, nested too deeply, no JSON, or holds NaN.
    """
    refuse_pointer(file)
    if (size := file.stat().st_size) > largest:
        raise UserError(f"{file} has {size / MB:,.0f} MB; a file of its kind has {largest / MB:,.0f} MB at most")
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_constant, parse_int=_whole)
    except RecursionError:
        raise UserError(f"{file} is nested more than {DEEPEST} levels deep; fetch or make it again") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); fetch or make it again") from None
    if depth(found) > DEEPEST:
        raise UserError(f"{file} is nested more than {DEEPEST} levels deep; fetch or make it again")
    return found


def read_object(file: Path, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: see `read_json`; it holds something else, or a number that is not finite.
    """
    found = read_json(file, largest)
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged (no JSON object); fetch or make it again")
    for path, value in leaves(found):
        if isinstance(value, float) and not math.isfinite(value) and not set(path.split(".")) & set(UNBOUNDED):
            raise UserError(f"{file}: {path} is {value}; give a finite number")
    return found


def leaves(value: Any) -> "list[tuple[str, Any]]":
    """Return each value that is neither object nor list, with the keys that lead to it, joined by dots."""
    found, left = [], [("", value)]
    while left:
        path, part = left.pop()
        if isinstance(part, dict):
            left += [(f"{path}.{key}" if path else str(key), below) for key, below in part.items()]
        elif isinstance(part, list):
            left += [(path, below) for below in part]
        else:
            found.append((path, part))
    return found


def objects(value: Any) -> "list[tuple[str, dict[str, Any]]]":
    """Return each object in a JSON value, itself first, with the keys that lead to it, joined by dots."""
    found, left = [], [("", value)]
    while left:
        path, part = left.pop()
        if isinstance(part, dict):
            found.append((path, part))
            left += [(f"{path}.{key}" if path else str(key), below) for key, below in part.items()]
        elif isinstance(part, list):
            left += [(path, below) for below in part]
    return found


def depth(value: Any) -> int:
    """Return how many objects and lists a JSON value nests; one level at a time, without recursion."""
    level, found = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        found += 1
        level = [below for part in level for below in (part.values() if isinstance(part, dict) else part)]
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN, which is no number")
    return float(name)


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)
