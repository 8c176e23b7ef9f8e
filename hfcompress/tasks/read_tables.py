"""Tables as their author wrote them: cells of text files are text, and no reader guesses another type.

In csv, tsv and json files every cell is a string with the spelling that stands in the file: `01`, `1.0`, `true`,
`None`, `2019-01-01`. Missing (None) are json's null and NaN, a key that a json row lacks, and nothing else: an empty
csv cell is an empty string. Parquet and arrow files say themselves what their columns hold; `cells.py` makes text of
it.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import refuse_pointer
from hfcompress.folders.lines import BYTE_ORDER_MARK, other_encoding, split_lines
from hfcompress.tasks.cells import as_text, plain_types, spelled, whole_characters
from hfcompress.tasks.find_splits import kind_of, say

if TYPE_CHECKING:
    from datasets import Dataset

DELIMITERS = (",", ";", "\t", "|")
Columns = dict[str, list[Any]]


def read_table(files: list[Path]) -> "Dataset":
    """Return the rows of files that hold one table, one after another.

    Raises:
        UserError: a file cannot be read, or is no table.
    """
    from datasets import concatenate_datasets

    tables = [read_file(file) for file in files]
    if len({str(table.features) for table in tables}) > 1:  # such as ClassLabels that number their names differently
        names = set(tables[0].column_names)
        for file, table in zip(files, tables, strict=True):
            if other := sorted(names ^ set(table.column_names)):
                raise UserError(f"{files[0]} and {file} are one split, but only one of them has a column {other[0]}")
        tables = [as_text(table.select_columns(tables[0].column_names)) for table in tables]
    return concatenate_datasets(tables) if len(tables) > 1 else tables[0]


def read_file(file: Path) -> "Dataset":
    """Return the rows of one file.

    Raises:
        UserError: it cannot be read, or is no table.
    """
    from datasets import Dataset

    kind = kind_of(file)
    if kind in ("parquet", "arrow"):
        return read_columns(file, kind)
    text = read_text(file)
    columns = csv_columns(file, text) if kind == "csv" else json_columns(file, text)
    if broken := whole_characters(columns):
        say(f"{file}: {broken} texts hold half of a surrogate pair; it is read as U+FFFD")
    return Dataset.from_dict(plain_types(columns))


def read_columns(file: Path, kind: str) -> "Dataset":
    """Return the rows of a parquet or arrow file, categories as the values that they stand for."""
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    try:
        with file.open("rb") as stream:
            head = stream.read(1024)
        check_content(file, head)
        if kind == "parquet":
            table = pyarrow.parquet.ParquetFile(file).read()
        else:
            with pyarrow.memory_map(str(file)) as source:
                of_file = head.startswith(b"ARROW1")  # with an index at its end; `datasets` writes streams
                table = (pyarrow.ipc.open_file if of_file else pyarrow.ipc.open_stream)(source).read_all()
        if twice := [name for name, count in Counter(table.column_names).items() if count > 1]:
            raise UserError(f"{file} has two columns called {twice[0]}; rename one")
        for number, field in enumerate(table.schema):
            if pyarrow.types.is_dictionary(field.type):
                decoded = table.column(number).cast(field.type.value_type)
                table = table.set_column(number, field.with_type(field.type.value_type), decoded)
        return Dataset(table)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as {kind} ({first_line(error)}); write it again") from None


def read_text(file: Path) -> str:
    """Return a file's content without a byte order mark, unpacked where it is gzipped.

    Raises:
        UserError: it is empty, not UTF-8, or damaged.
    """
    try:
        content = file.read_bytes()
        if file.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); write it again") from None
    check_content(file, content)
    if kind := other_encoding(content):
        raise UserError(f"{file} is {kind} text; save it as UTF-8, for instance with iconv -f {kind} -t UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8, for instance with "
            "iconv -t UTF-8"
        ) from None
    return text.removeprefix(BYTE_ORDER_MARK)


def check_content(file: Path, content: bytes) -> None:
    """Raise UserError for files that are empty or pointers of Git LFS."""
    if not content.strip():
        raise UserError(f"{file} is empty; the split needs rows")
    refuse_pointer(file)


def csv_columns(file: Path, text: str) -> Columns:
    """Return the columns of a csv or tsv file whose first line names them (after Excel's `sep=;`, where it stands).

    Raises:
        UserError: a row has more or fewer fields than the header, or a quotation mark is not closed.
    """
    if excel := re.match(r"sep=(.)\r?\n", text):
        text = text[excel.end() :]
    head = header_of(text)
    of_tabs = ".tsv" in [suffix.lower() for suffix in file.suffixes[-2:]]
    delimiter = excel[1] if excel else "\t" if of_tabs and "\t" in head else max(DELIMITERS, key=head.count)
    quoted: list[list[str]] | UserError
    try:
        quoted = csv_rows(file, text, delimiter, csv.QUOTE_MINIMAL)
    except UserError as error:
        quoted = error
    rows = quoted
    if delimiter == "\t":  # most programs that write such files know no quotation marks: "unbalanced is right
        try:
            plain = csv_rows(file, text, delimiter, csv.QUOTE_NONE)
            rows = plain if isinstance(quoted, UserError) or len(plain) > len(quoted) else quoted
        except UserError:
            pass
    if isinstance(rows, UserError):
        raise rows
    names = [name.strip() for name in rows[0]]
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UserError(f"{file} has two columns called {twice[0][:80]}; rename one")
    columns = zip(*rows[1:], strict=True) if rows[1:] else ([] for _ in names)
    return {name: list(values) for name, values in zip(names, columns, strict=True) if name}


def header_of(text: str) -> str:
    """Return the first line that is not blank, without what stands between quotation marks."""
    line = next((line for line in split_lines(text[:100_000]) if line.strip()), "")
    return re.sub(r'"[^"]*"', "", line)


def csv_rows(file: Path, text: str, delimiter: str, quoting: Any) -> list[list[str]]:
    """Return the header and the rows, all of one length; blank lines are none.

    Raises:
        UserError: with the line.
    """
    limit = csv.field_size_limit(sys.maxsize)  # a contract is longer than the default
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if not row or (len(row) == 1 and len(rows[:1] and rows[0]) > 1 and not row[0].strip()):
                continue
            rows.append(row)
            if len(row) != len(rows[0]):
                raise UserError(
                    f"{file}: line {reader.line_num} has {len(row)} fields, the header {len(rows[0])}; put texts that "
                    f"hold {'a tab' if delimiter == chr(9) else delimiter} or a line break into quotation marks"
                )
    except csv.Error as error:
        raise UserError(
            f"{file}: line {reader.line_num}: {error}; a quotation mark within a quoted text is written twice"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows


def json_columns(file: Path, text: str) -> Columns:
    """Return the columns of json lines, of a json list of rows, or of an object that holds either under one key.

    Raises:
        UserError: it is none of these.
    """
    rows = list(json_rows(file, text))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def json_rows(file: Path, text: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a json file, each an object whose numbers are strings."""
    lines = [(number, line) for number, line in enumerate(split_lines(text), start=1) if line.strip()]
    if lines[0][1].lstrip().startswith("[") or not is_object(lines[0][1]):
        yield from rows_of(file, parsed(file, text, "the file"))
        return
    of_lines = any(suffix.lower() in (".jsonl", ".ndjson") for suffix in file.suffixes)
    if len(lines) == 1 and not of_lines and holds_rows(whole := parsed(file, lines[0][1], "line 1")):
        yield from rows_of(file, whole)
        return
    for number, line in lines:
        row = parsed(file, line, f"line {number}")
        if not isinstance(row, dict):
            raise UserError(f'{file}: line {number} is not an object; write a row as {{"text": ..., "label": ...}}')
        yield row


def holds_rows(whole: dict[str, Any]) -> bool:
    """Return whether an object that is alone in its file is a table, and not the only row of one."""
    values = list(whole.values())
    of_objects = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in values)
    return bool(values) and (of_objects or all(isinstance(value, list | dict) for value in values))


def is_object(line: str) -> bool:
    """Return whether a line alone is a json object: in a file over several lines its first line is not."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return bool(re.match(r'\s*\{\s*"', line)) and line.rstrip().endswith("}")


def rows_of(file: Path, whole: Any) -> list[dict[str, Any]]:
    """Return the rows of a whole json document: a list of objects, {"data": [...]}, or {"text": [...], ...}."""
    if isinstance(whole, dict):
        lists = {name: value for name, value in whole.items() if isinstance(value, list)}
        of_objects = [value for value in lists.values() if value and all(isinstance(row, dict) for row in value)]
        if len(of_objects) == 1:
            whole = of_objects[0]
        elif len(lists) == len(whole) and len({len(value) for value in lists.values()}) == 1:
            whole = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if not isinstance(whole, list) or not all(isinstance(row, dict) for row in whole):
        raise UserError(
            f'{file} holds no list of rows; write a line {{"text": ..., "label": ...}} for each row (with pandas: '
            'to_json(orient="records", lines=True))'
        )
    return whole


def parsed(file: Path, text: str, where: str) -> Any:
    """Return a json value whose numbers keep their spelling as strings, and true and false theirs.

    Raises:
        UserError: it is not json, or names a key twice.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in found}) < len(found):
            twice = next(name for name, count in Counter(name for name, _ in found).items() if count > 1)
            raise UserError(f"{file}: {where} names {twice} twice; keep one")
        return {name: spelled(value) if isinstance(value, bool) else value for name, value in found}

    try:
        return json.loads(
            text,
            parse_int=str,
            parse_float=str,
            parse_constant=lambda name: None if name == "NaN" else name,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        raise UserError(f"{file}: {where} is nested too deeply; keep text and label at the top") from None
    except ValueError as error:
        raise UserError(f"{file}: {where} is not json ({error}); a row is one line, as json.dumps writes it") from None


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
