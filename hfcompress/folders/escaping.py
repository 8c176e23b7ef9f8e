"""Text from data (labels, names, notes, a model's answers) as text on a terminal, in Markdown and in a code span."""

import re
from html import escape
from typing import Any, TextIO

# What a terminal or a page takes for an order: control characters but tab and newline, line and paragraph separators,
# marks that turn the direction of writing, and half characters, which no encoding takes.
ORDERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
MARKDOWN = re.compile(r"[\\`*\[\]|$~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
AT_A_START = re.compile(r"[#+=-]|\d+[.)]")
LINKED = re.compile(r"(?<=[A-Za-z]):(?=//)|(?<=www)\.|@", re.I)  # what becomes a link without any brackets


def terminal(text: str) -> str:
    r"""Text with every control character written out, such as \u001b: the same value inside JSON, no order to a
    terminal. Tabs and newlines stay."""
    return ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str, most: int | None = None) -> str:
    """The same with every run of spaces, tabs and newlines as one space, and no longer than `most` characters."""
    line = terminal(" ".join(text.split()))
    return line if most is None or len(line) <= most else line[: most - 1] + "…"


def markdown(text: str) -> str:
    """Text that Markdown and HTML take for text, also at the beginning of a line and in a table's cell."""
    line = MARKDOWN.sub(r"\\\g<0>", escape(one_line(text), quote=False))
    line = LINKED.sub(lambda found: f"&#{ord(found[0])};", line)
    if start := AT_A_START.match(line):  # a heading, a quotation, a list
        line = f"{line[: start.end() - 1]}\\{line[start.end() - 1 :]}"
    return line


def code_span(text: str) -> str:
    """Text inside the backticks of a code span, also in a table's cell."""
    return one_line(text).replace("`", "'").replace("|", "\\|")


class TerminalOutput:
    """A text stream on which control characters are written out; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(terminal(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
