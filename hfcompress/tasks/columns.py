"""Columns: are those there that a task reads, and where they are not, which could be meant?"""

import difflib
from typing import TYPE_CHECKING

from hfcompress.errors import UserError
from hfcompress.tasks.cells import column, identifier, not_text, texts
from hfcompress.tasks.find_splits import listed

if TYPE_CHECKING:
    from datasets import Dataset

USUAL = {
    "text": "text sentence content body review document comment tweet message question premise utterance clause input",
    "label": "label labels target class category sentiment y intent topic gold_label rating score output",
    "document": "document article text content source body input report dialogue",
    "summary": "summary summaries highlights abstract target tldr output title",
    "group": "group group_id doc_id document_id contract source author user user_id patient",
    "image": "image img picture photo pixels jpg png",
}  # names that columns usually have, by what the option is called
SAMPLE = 200  # rows that are looked at
LONG = 40  # characters of a column's name; a longer one is a row's text


def check_columns(dataset: str, splits: "dict[str, Dataset]", wanted: dict[str, str | None], option: str) -> None:
    """Raise UserError for all columns (option -> column; None is not wanted) that are not there, and empty splits."""
    problems: dict[str, list[str]] = {}
    for split, rows in splits.items():
        if not rows.column_names:
            raise UserError(f"{option}.dataset {dataset}: the {split} split is empty")
        if problem := missing_columns(rows, wanted):
            problems.setdefault(problem, []).append(split)
    if problems:
        raise UserError("; ".join(problem.replace("SPLITS", named(found)) for problem, found in problems.items()))
    for split, rows in splits.items():
        if not len(rows):
            raise UserError(f"{option}.dataset {dataset}: the {split} split is empty")


def missing_columns(rows: "Dataset", wanted: dict[str, str | None]) -> str | None:
    """Return which columns (option -> column) a split lacks, SPLITS standing for its name; None where it has all."""
    missing = {name: column for name, column in wanted.items() if column not in (None, *rows.column_names)}
    if not missing:
        return None
    typed = ", ".join(f"{name} {column}" for name, column in missing.items())
    what = "no such column" if len(missing) == 1 else "no such columns"
    if any(len(name) > LONG for name in rows.column_names):
        return f"{typed}: SPLITS {what}; the first line of a csv file names its columns: add such a line"
    used = {column for column in wanted.values() if column is not None}
    guess = " ".join(guesses(rows, list(missing), used))
    hint = f"; did you mean {guess}?" if guess else ""
    return f"{typed}: SPLITS {what}, only {listed([short(name) for name in rows.column_names])}{hint}"


def named(splits: list[str]) -> str:
    """Return "the train split has", or "the train, validation and test splits have"."""
    if len(splits) == 1:
        return f"the {splits[0]} split has"
    return f"the {', '.join(splits[:-1])} and {splits[-1]} splits have"


def groups_of(rows: "Dataset", name: str | None, option: str, split: str) -> list[str]:
    """Return the group of every row; without a column of groups each row is one of its own.

    Args:
        option: the option of that column, for messages.

    Raises:
        UserError: a row has none.
    """
    if name is None:
        return list(map(str, range(len(rows))))
    found = texts(rows, name)
    empty = [row for row, value in enumerate(found) if value is None or not value.strip()]
    if empty:
        raise UserError(
            f"{option} {name}: {len(empty)} rows of the {split} split have no group (the first: row {empty[0]}); "
            "give each a group of its own, or drop them"
        )
    return [identifier(value) for value in found if value is not None]


def check_texts(splits: "dict[str, Dataset]", columns: dict[str, str | None]) -> None:
    """Raise UserError where a column (option -> column) does not hold one text a row."""
    for option, name in columns.items():
        for rows in splits.values():
            if name is not None and (what := not_text(rows, name)):
                raise UserError(f"{option} {name}: it holds {what}; give one text a row (join words with spaces)")


def short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= LONG else line[:LONG] + "..."


def guesses(rows: "Dataset", options: list[str], used: set[str]) -> list[str]:
    """Return options with columns that could be meant; none where no column is left for one."""
    found: list[str] = []
    free = [name for name in rows.column_names if name not in used]
    for option in options:
        kind = option.rpartition(".")[2].removesuffix("-column")
        if name := guess(rows, kind, free):
            free.remove(name)
            found.append(f"{option} {name}")
    return found


def guess(rows: "Dataset", kind: str, free: list[str]) -> str | None:
    """Return the column whose name, or else whose content, is likeliest to be of a kind."""
    usual = USUAL.get(kind, kind).split()
    by_name = {name.lower(): name for name in reversed(free)}
    if named := next((by_name[name] for name in usual if name in by_name), None):
        return named
    if close := difflib.get_close_matches(kind, by_name, n=1, cutoff=0.75):
        return by_name[close[0]]
    if kind not in ("text", "document", "label") or not len(rows):
        return None
    some = rows.select(range(min(SAMPLE, len(rows))))
    values = {name: [str(value) for value in column(some, name)] for name in free if not_text(some, name) is None}
    if not values:
        return None
    if kind == "label":
        classes = {name: len(set(found)) for name, found in values.items() if 1 < len(set(found)) < len(found)}
        return min(classes, key=lambda name: classes[name]) if classes else None
    return max(values, key=lambda name: sum(map(len, values[name])))
