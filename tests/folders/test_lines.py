"""A line ends where the user ended it."""

import io
from pathlib import Path

import pytest

from hfcompress.errors import UserError
from hfcompress.folders.lines import read_lines, split_lines

CASES = [
    ("", []),
    ("\n", [""]),
    ("a", ["a"]),
    ("a\n", ["a"]),
    ("a\r\nb\r\n", ["a", "b"]),
    ("a\n\nb\n\n", ["a", "", "b", ""]),
    ("\ufeffa\nb", ["a", "b"]),
    ("\ufeff", []),
    ("\ufeff\n", [""]),
    ("1\x0c2\x0b3\x1c4\x1d5\x1e6\x857\u20288\u20299\nb", ["1\x0c2\x0b3\x1c4\x1d5\x1e6\x857\u20288\u20299", "b"]),
    ("a\rb\nc", ["a\rb", "c"]),
    ("a\n\ufeffb\n", ["a", "\ufeffb"]),
    (" a \n\t\n", [" a ", "\t"]),
]


@pytest.mark.parametrize(("text", "lines"), CASES)
def test_lines_are_cut_at_newlines_only(text: str, lines: list[str], tmp_path: Path) -> None:
    assert split_lines(text) == lines
    (tmp_path / "file.txt").write_bytes(text.encode())
    assert list(read_lines(tmp_path / "file.txt")) == lines
    assert list(read_lines(io.BytesIO(text.encode()))) == lines


@pytest.mark.parametrize(("encoding", "words"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("latin-1", "line 2")])
def test_what_is_not_utf8_is_said(encoding: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_bytes("abc\ncaf\xe9s\n".encode(encoding))
    with pytest.raises(UserError, match=words) as error:
        list(read_lines(tmp_path / "file.txt"))
    assert str(tmp_path / "file.txt") in str(error.value)
    assert "save it as UTF-8" in str(error.value)


def test_a_stream_is_read_as_it_comes() -> None:
    stream = io.BytesIO(b"first\nsecond\n")
    lines = read_lines(stream)
    assert next(lines) == "first"
    assert not stream.closed
