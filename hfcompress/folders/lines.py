"""Lines of text files: what the user's line breaks separate, and nothing else.

`str.splitlines` also cuts at form feeds, NEL and U+2028, which stand within contracts, and a text stream of Python
cuts at a lone carriage return. Everything that reads one text per line uses these functions.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hfcompress.errors import UserError

# What some reader takes for the end of a cell or of a line.
BREAKS = re.compile(r"[\t\n\x0b\x0c\r\x1c-\x1e\x85\u2028\u2029]")
BYTE_ORDER_MARK = "\ufeff"
BEGINNING = 512  # bytes that are looked at
OTHER_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # first: the mark of UTF-16 begins that of UTF-32
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text, cut at \n and \r\n only.

    A byte order mark before the first line is dropped; the newline at the end begins no further line; blank lines are
    kept.
    """
    lines = text.removeprefix(BYTE_ORDER_MARK).split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_lines(source: "Path | IO[bytes]", name: str = "") -> Iterator[str]:
    """Yield the lines of a UTF-8 file or byte stream as `split_lines` cuts them, while they are read.

    Args:
        source: a path, or a binary stream such as `sys.stdin.buffer`, which is not closed.
        name: what an error calls the source; a path is called by itself.

    Raises:
        UserError: the content is not UTF-8; the message has the number of the line.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            yield from read_lines(stream, name or str(source))
        return
    for number, raw in enumerate(source, start=1):
        if number == 1 and (kind := other_encoding(raw)):
            raise UserError(f"{name or 'the input'} is {kind} text; save it as UTF-8")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name or 'the input'} is not UTF-8 text (line {number}, {error.reason}); save it as UTF-8"
            ) from None
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
            if not line:
                return  # a file that holds a byte order mark alone
        yield line.removesuffix("\n").removesuffix("\r")


def other_encoding(content: bytes) -> str | None:
    """Return UTF-16 or UTF-32 where the content begins with a byte order mark of one, or is UTF-16 without; else None.

    Text in Latin letters has a zero in every second byte of UTF-16: as UTF-8 that would be text with zeros in it.
    """
    if marked := next((kind for kind, marks in OTHER_MARKS.items() if content.startswith(marks)), None):
        return marked
    head = content[:BEGINNING]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(head) < 4 or min(even, odd) or 3 * max(even, odd) < len(head):
        return None
    return "UTF-16LE" if odd else "UTF-16BE"


def as_column(text: str) -> str:
    """Return a text as one cell of a tab-separated line: a space for every tab and for every kind of line break."""
    return BREAKS.sub(" ", text)


def json_line(value: Any) -> str:
    """Return a value as JSON in one line, also for a reader that cuts lines where `str.splitlines` does."""
    return BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
