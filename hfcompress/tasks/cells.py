"""Cells as text: what stands in a column, spelled in one way whatever type its file gave it."""

import datetime
import decimal
import json
import math
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

SURROGATE = re.compile("[\ud800-\udfff]")
EXACT = 2**53  # integers up to here are floats exactly
WHOLE = re.compile(r"(-?\d+)\.0+")  # a whole number as programs write it that hold it as a float


def column(rows: "Dataset", name: str) -> list[Any]:
    """Return a column's values, read at once: to walk through a column of `datasets` reads it row by row."""
    return list(rows[name][:])


def not_text(rows: "Dataset", name: str) -> str | None:
    """Return what a column holds where that is not one value a row, such as lists; None where it is."""
    feature = rows.features[name]
    kind = type(feature).__name__
    if kind in ("Value", "ClassLabel"):
        return "bytes that are not UTF-8 text" if binary(feature) and not decodes(column(rows, name)) else None
    if kind in ("List", "LargeList", "Sequence", "list"):
        return "lists"
    return "objects" if kind == "dict" else f"{kind.lower()}s"


def binary(feature: Any) -> bool:
    return "binary" in str(getattr(feature, "dtype", ""))


def decodes(values: list[bytes | None]) -> bool:
    try:
        _ = [value.decode("utf-8") for value in values if value is not None]
    except UnicodeDecodeError:
        return False
    return True


def texts(rows: "Dataset", name: str) -> list[str | None]:
    """Return a column as text: a ClassLabel by the name of its class, numbers and dates as `spelled`; None is missing.

    The column is one for which `not_text` is None. A ClassLabel's -1 is missing: so `datasets` marks rows without one.
    """
    values = column(rows, name)
    names = getattr(rows.features[name], "names", None)
    if names is not None:
        return [None if value is None or not 0 <= value < len(names) else names[value] for value in values]
    return [spelled(value) for value in values]


def spelled(value: Any) -> str | None:
    """Return a value of a parquet or arrow file as text; None for what is missing (null, NaN, NaT).

    Whole numbers are written without a point, also where they are stored as floats (as pandas does when a value is
    missing); true and false in lower case; a time at midnight as its date (2019-01-01).
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < EXACT else repr(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, datetime.datetime):
        if value != value:  # NaT
            return None
        midnight = value.time() == datetime.time.min
        return value.date().isoformat() if midnight and value.tzinfo is None else value.isoformat(sep=" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return format(value, "f") if isinstance(value, decimal.Decimal) else str(value)


def whole_numbers(values: Iterable[str]) -> dict[str, str]:
    """Return "1.0" -> "1" for the texts that are whole numbers with a point; empty where none stands without it, too.

    pandas writes the same column either way, with a point where a cell of that file is empty.
    """
    known = set(values)
    found = {value: match[1] for value in known if (match := WHOLE.fullmatch(value))}
    return found if known & set(found.values()) else {}


def identifier(value: str) -> str:
    """Return the name of a group in one spelling: "12" for "12.0" and " 12", accents as one character."""
    name = unicodedata.normalize("NFC", value.strip())
    match = WHOLE.fullmatch(name)
    return match[1] if match else name


def has_fractions(rows: "Dataset", name: str) -> float | None:
    """Return a number of a float column that is not whole: a score, not a class; None where there is none."""
    if "float" not in str(getattr(rows.features[name], "dtype", "")):
        return None
    numbers = [value for value in column(rows, name) if value is not None and math.isfinite(value)]
    return next((value for value in numbers if not value.is_integer()), None)


def as_text(rows: "Dataset") -> "Dataset":
    """Return the rows with every column of single values as text, so that tables of other types can follow them."""
    from datasets import Dataset

    names = rows.column_names
    return Dataset.from_dict(
        {name: texts(rows, name) if not_text(rows, name) is None else column(rows, name) for name in names}
    )


def plain_types(columns: dict[str, list[Any]]) -> dict[str, Any]:
    """Return columns of a text file in types that arrow can hold, whatever mixture stands in them.

    A column with a list in it holds lists of texts (a single value becomes a list of one), one with objects in it
    objects, of which the json is kept.
    """
    import pyarrow

    found: dict[str, Any] = {}
    for name, values in columns.items():
        if any(isinstance(value, dict) or is_nested(value) for value in values):
            kept = [None if value is None else {"json": json.dumps(value)} for value in values]
            found[name] = pyarrow.array(kept, pyarrow.struct([("json", pyarrow.large_string())]))
        elif any(isinstance(value, list) for value in values):
            lists = [value if value is None else listed_texts(value) for value in values]
            found[name] = pyarrow.array(lists, pyarrow.large_list(pyarrow.large_string()))
        else:
            found[name] = pyarrow.array(values, pyarrow.large_string())
    return found


def listed_texts(value: Any) -> list[str | None]:
    """Return a list of texts, or a single value as a list of one; json's true and false as they are written."""
    entries = value if isinstance(value, list) else [value]
    return [spelled(entry) for entry in entries]


def is_nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, list | dict) for entry in value)


def whole_characters(columns: dict[str, list[Any]]) -> int:
    """Put U+FFFD in place of every half of a surrogate pair, and return in how many texts.

    Json can hold such halves (a program cut a text within an emoji); UTF-8, and so everything that is written, cannot.
    """
    mended = 0
    for values in columns.values():
        for row, value in enumerate(values):
            if isinstance(value, str) and SURROGATE.search(value):
                values[row] = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                mended += "\ufffd" in values[row]
            elif isinstance(value, list):
                mended += whole_characters({"": value})
    return mended
