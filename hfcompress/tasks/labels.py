"""The classes of a classification: by name, in one order for all splits."""

import re
import unicodedata
from dataclasses import dataclass

from hfcompress.errors import UserError
from hfcompress.tasks.find_splits import listed, say
from hfcompress.tasks.overlap import excerpt

MISSING = {"-1", "-100"}  # what programs write for "no label" where classes are numbers from 0
MARKS = {"-", "?"}  # the same among words: SNLI's and UCI's
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
LONGEST = 256  # characters of a label; a longer one is a text
MANY = 50  # classes; where so many have fewer than two rows each, another column may be meant


@dataclass(frozen=True)
class Classes:
    """Names in the order of their numbers, and which label of the data stands for which."""

    names: list[str]
    number: dict[str, int]


def is_number(label: str) -> bool:
    return re.fullmatch(r"-?\d+", label) is not None


def in_order(labels: set[str]) -> list[str]:
    """Return labels in order: by number where all are whole numbers, else by their letters."""
    if all(map(is_number, labels)):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def marks_of_missing(labels: set[str], named: tuple[str, ...] | None) -> set[str]:
    """Return the labels that stand for "no label": -1 beside numbers from 0, - or ? beside words.

    Two classes -1 and 1 are none of these. With `--task.labels` they are classes where the names are as many as the
    labels, or hold the label itself.
    """
    marks = labels & MISSING
    others = labels - MISSING
    if marks and others and all(is_number(label) and int(label) >= 0 for label in others) and others != {"1"}:
        found = marks
    else:
        found = {mark for mark in labels & MARKS if all(re.search(r"\w", label) for label in labels - MARKS)}
        found = found if labels - MARKS else set()
    if named is not None:
        found = set() if len(named) == len(labels) else found - set(named)
    return found


def classes_of(
    option: str, labels: dict[str, list[str]], named: tuple[str, ...] | None, order: list[str] | None
) -> Classes:
    """Return the classes of train.

    Args:
        option: the label column's option and name, for messages.
        labels: split -> labels as text.
        named: `--task.labels`: names for integers in their order, or the order of labels that are names.
        order: the names in the order that the data itself gives them (a ClassLabel's); used when none are `named`.

    Raises:
        UserError: train has one class only, another split has one that train does not, or the names do not fit.
    """
    seen = set(labels["train"])
    check_labels(option, labels)
    if named is not None:
        classes = named_classes(seen, named)
    else:
        known = [name for name in order or [] if name in seen]
        names = known + in_order(seen - set(known))
        classes = Classes(names, {name: number for number, name in enumerate(names)})
    for split, found in labels.items():
        unknown = in_order(set(found) - set(classes.number))
        if unknown:
            shown = ", ".join(repr(label) for label in unknown[:3])
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise UserError(
                f"{option}: {shown}{more} stands only in {split}, never in train (train has "
                f"{listed(classes.names)}); drop these rows or add training examples"
            )
    return classes


def check_labels(option: str, labels: dict[str, list[str]]) -> None:
    """Raise UserError for labels that are no names of classes, or that only look different.

    A label is a line's end in `predict` and a cell of a report's tables: it is one line, and not a text.
    """
    everything = {label for found in labels.values() for label in found}
    seen = set(labels["train"])
    if len(seen) < 2:
        only = excerpt(next(iter(seen), ""))
        raise UserError(f"{option}: only one class in train ({only}); a classifier needs two")
    if odd := next((label for label in sorted(everything) if CONTROL.search(label)), None):
        raise UserError(f"{option}: the label {odd[:60]!r} holds a line break or control character; write it without")
    if long := next((label for label in sorted(everything) if len(label) > LONGEST), None):
        raise UserError(
            f"{option}: a label of {len(long)} characters ({excerpt(long)}); is this the column of the labels?"
        )
    alike: dict[str, str] = {}
    for label in sorted(everything):
        other = alike.setdefault(visible(label), label)
        if other != label:
            raise UserError(
                f"{option}: the labels {other!r} and {label!r} differ only in spaces, in characters that are not "
                "seen or in how accents are stored; write one of them everywhere"
            )
    if len(seen) > MANY and 2 * len(seen) > len(labels["train"]):
        say(
            f"{option}: {len(seen)} classes in {len(labels['train'])} rows of train; is this the column of the labels?"
        )
    folded: dict[str, str] = {}
    for label in sorted(everything):
        other = folded.setdefault(label.strip().casefold(), label)
        if other != label:
            say(f"{option}: the labels {other!r} and {label!r} differ only in case; they are two classes")
            return


def visible(label: str) -> str:
    """Return what is seen of a label: without spaces around it, joiners, marks of order and byte order marks."""
    seen = "".join(c for c in unicodedata.normalize("NFC", label) if unicodedata.category(c) != "Cf")
    return " ".join(seen.split())


def named_classes(seen: set[str], named: tuple[str, ...]) -> Classes:
    """Return the classes as `--task.labels` names them.

    Raises:
        UserError: a label has no name, or a name no label.
    """
    typed = f"--task.labels {' '.join(named)}"
    if len(set(named)) < len(named):
        raise UserError(f"{typed}: a name stands twice; give every class a name of its own")
    if not all(map(is_number, seen)) or seen <= set(named):
        if seen != set(named):
            raise UserError(
                f"{typed}: train has the labels {listed(in_order(seen))}; name the same, in the order of their numbers"
            )
        return Classes(list(named), {name: number for number, name in enumerate(named)})
    numbers = in_order(seen)
    if len(numbers) != len(named):
        raise UserError(
            f"{typed}: {len(named)} names for {len(numbers)} classes: train has the labels {listed(numbers)}; give a "
            "name for each, in this order"
        )
    return Classes(list(named), {label: number for number, label in enumerate(numbers)})
