"""Texts with a label and a group, by split: rows without one refused or left out, splits made and held apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hfcompress.errors import UserError
from hfcompress.tasks.cells import has_fractions, identifier, not_text, texts, whole_numbers
from hfcompress.tasks.find_splits import SPLITS, listed, say
from hfcompress.tasks.hold_out import ALL, families, splits_of_one, validation_rows
from hfcompress.tasks.labels import in_order, marks_of_missing
from hfcompress.tasks.overlap import Keys, Overlap, checked, near_duplicates
from hfcompress.tasks.splits import EMBEDDED

if TYPE_CHECKING:
    from datasets import Dataset

Missing = Literal["refuse", "skip"]


@dataclass(frozen=True)
class Examples:
    """One split, a row each. `grouped` says whether the data names the groups; else each row is one of its own."""

    texts: list[str]
    labels: list[str]
    groups: list[str]
    grouped: bool

    def rows(self, which: Iterable[int]) -> "Examples":
        """Return some of the rows."""
        rows = list(which)
        texts, labels, groups = ([values[i] for i in rows] for values in (self.texts, self.labels, self.groups))
        return Examples(texts, labels, groups, self.grouped)

    @property
    def keys(self) -> Keys:
        return Keys(list(self.texts), self.groups if self.grouped else None)


def check_cells(splits: "dict[str, Dataset]", text: dict[str, str | None], label: dict[str, str]) -> None:
    """Raise UserError for columns (option -> column) that do not hold one value a row, all at once.

    A label must also be a class: whole numbers or text, not scores.
    """
    problems: list[str] = []
    for option, name in {**text, **label}.items():
        if name is None:
            continue
        for rows in splits.values():
            if what := not_text(rows, name):
                wanted = "one label a text" if option in label else "a text (join words with spaces)"
                problems.append(f"{option} {name}: it holds {what}; this task takes {wanted}")
            elif option in label and (score := has_fractions(rows, name)) is not None:
                problems.append(f"{option} {name}: it holds numbers such as {score:g}; this task takes classes")
            else:
                continue
            break
    if problems:
        raise UserError("; ".join(problems))


def labels_of(splits: "dict[str, Dataset]", label: str, option: str) -> dict[str, list[str | None]]:
    """Return split -> the label of every row as text, with one spelling in all splits; None is missing.

    Numbers of a split whose file does not name its classes are the names of a ClassLabel that another one has.

    Args:
        label: their column, checked; option: of that column, for messages.
    """
    found = {split: texts(rows, label) for split, rows in splits.items()}
    of_splits: list[list[str] | None] = [getattr(rows.features[label], "names", None) for rows in splits.values()]
    names = next(filter(None, of_splits), [])
    numbers = {str(number): name for number, name in enumerate(names)}
    for split in splits:
        values = {value for value in found[split] if value is not None}
        if values and not values & set(names) and values <= set(numbers):
            say(f"{option} {label}: {split} has numbers; they are read as {listed(names)}, which another split names")
            found[split] = [value if value is None else numbers[value] for value in found[split]]
    whole = whole_numbers(value for values in found.values() for value in values if value is not None)
    if whole:
        written, number = min(whole.items())
        say(f"{option} {label}: {written} and {number} are one class")
    return {
        split: [value if value is None else whole.get(value, value) for value in values]
        for split, values in found.items()
    }


def examples_of(
    splits: "dict[str, Dataset]",
    columns: dict[str, str],
    group: tuple[str, str] | None,
    missing: Missing,
    named: tuple[str, ...] | None,
    option: str = "--task",
) -> tuple[dict[str, Examples], list[str]]:
    """Return the rows of every split, and sentences about those that were left out.

    Args:
        splits: as they were read, their columns checked.
        columns: option -> column of the text and of the label.
        group: option and column of the groups.
        missing: what happens to rows without text, label or group.
        named: `--task.labels`.
        option: what the options' names begin with.

    Raises:
        UserError: there are such rows and they are to be refused, or a split has no others.
    """
    (text_option, text), (label_option, label) = columns.items()
    labels = labels_of(splits, label, label_option)
    marks = marks_of_missing({v for found in labels.values() for v in found if v is not None and v.strip()}, named)
    problems, notes, result = [], [], {}
    for split, rows in splits.items():
        found = {text_option: texts(rows, text), label_option: labels[split]}
        if group is not None:
            found[group[0]] = texts(rows, group[1])
        names = {text_option: text, label_option: label, **dict([group] if group else [])}
        none = {name: marks if name == label_option else set() for name in found}
        gaps = {
            name: [i for i, value in enumerate(values) if value is None or not value.strip() or value in none[name]]
            for name, values in found.items()
        }
        for name, where in gaps.items():
            if where:
                problems.append(gap(f"{name} {names[name]}", split, where, found[name][where[0]]))
        out = {i for where in gaps.values() for i in where}
        kept = [i for i in range(len(rows)) if i not in out]
        if out and missing == "skip":
            if not kept:
                raise UserError(f"{option}.missing skip: no row of the {split} split has all of text, label and group")
            notes.append(f"{len(out)} of {len(rows)} rows of {split} lack a text, label or group and are left out.")
        groups = found[group[0]] if group is not None else [str(i) for i in range(len(rows))]
        of_text, of_label, of_group = (
            [str(values[i]) for i in kept] for values in (found[text_option], labels[split], groups)
        )
        result[split] = Examples(of_text, of_label, list(map(identifier, of_group)), group is not None)
    if problems and missing == "refuse":
        hint = f"{option}.missing skip leaves such rows out"
        if marks:
            shown = " or ".join(map(repr, in_order(marks)))
            hint += f" (where {shown} is a class, name all classes in order: {option}.labels NAME NAME ...)"
        raise UserError(f"{'; '.join(problems)}; drop them, or {hint}")
    for note in notes:
        say(f"{option}.missing skip: {note}")
    return result, notes


def gap(column: str, split: str, where: list[int], value: str | None) -> str:
    """Return how many rows of a split lack a value, and which is the first."""
    what = f"are {value!r}" if value and value.strip() else "are empty"
    if len(where) == 1:
        return f"{column}: row {where[0]} of the {split} split {what.replace('are', 'is', 1)}"
    return f"{column}: {len(where)} rows of the {split} split {what} (the first: row {where[0]})"


def held_apart(
    dataset: str, splits: dict[str, Examples], overlap: Overlap, option: str = "--task"
) -> tuple[dict[str, Examples], list[str]]:
    """Return train, validation and test with no group or text in two of them, and sentences about what was done.

    One table is split, and a validation split set aside from train where there is none.

    Raises:
        UserError: a group or text stands in two splits, and is to be refused; or there are too few to split.
    """
    notes: list[str] = []
    if ALL in splits:
        rows = splits[ALL]
        parts = splits_of_one(dataset, families(names(rows), rows.texts), rows.labels, option)
        splits = {split: rows.rows(which) for split, which in parts.items()}
        notes.append("One table was split by a hash of its groups.")
    kept, dropped = checked(dataset, {split: rows.keys for split, rows in splits.items()}, overlap, option)
    splits = {split: splits[split].rows(kept[split]) for split in SPLITS if split in splits}
    if "validation" not in splits:
        rows = splits["train"]
        train, validation = validation_rows(dataset, families(rows.groups, rows.texts), option)
        splits = {"train": rows.rows(train), "validation": rows.rows(validation), "test": splits["test"]}
    near = near_duplicates({split: rows.keys for split, rows in splits.items()}) if dataset != EMBEDDED else []
    for note in dropped + near:
        say(f"{option}.dataset {dataset}: {note}")
    return splits, notes + dropped + near


def names(rows: Examples) -> list[str]:
    """Return the groups, or a row's text where it is its own group: its place changes when rows are added."""
    return rows.groups if rows.grouped else [text.strip() for text in rows.texts]
