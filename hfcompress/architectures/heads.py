"""A classification head and a task's labels: matched by name, and the head's rows put in the task's order."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

NUMBERED = re.compile(r"(?:label[ _-]?)?(\d+)", re.IGNORECASE)


def row_of_each(made_for: list[str], labels: list[str]) -> list[int] | None:
    """Return, for each label of a task, the row of the head that means it; None where the names do not match.

    Names match as they are written; else without regard to case, hyphens and underscores; else by their number, where
    all are numbers or transformers' LABEL_0, LABEL_1, ...
    """
    keys: tuple[Callable[[str], str | None], ...] = (str, folded, number)
    for key in keys:
        theirs, ours = [key(name) for name in made_for], [key(name) for name in labels]
        if None not in theirs and len(set(theirs)) == len(theirs) == len(ours) and set(theirs) == set(ours):
            return [theirs.index(name) for name in ours]
    return None


def folded(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


def number(name: str) -> str | None:
    found = NUMBERED.fullmatch(name.strip())
    return None if found is None else str(int(found[1]))


def side_by_side(made_for: list[str], labels: list[str]) -> str:
    """Both sets of labels in one line, with what stands in one of them alone."""
    line = f"was made for the labels {some(made_for)}, the task has {some(labels)}"
    only = [
        f"{some([name for name in one if name not in other])} only {where}"
        for one, other, where in ((made_for, labels, "in the model"), (labels, made_for, "in the task"))
        if set(one) & set(other) and set(one) - set(other)
    ]
    return line + (f" ({'; '.join(only)})" if only else "")


def some(labels: list[str]) -> str:
    """The first labels of a list, and how many there are."""
    return f"{', '.join(labels[:4])}{', ...' if len(labels) > 4 else ''} ({len(labels)})"


def put_in_order(model: Any, rows: list[int], labels: list[str], folder: "Path") -> None:
    """Make row `i` of the head's last layer the one that was `rows[i]`, and name the rows by `labels`; in place.

    Raises:
        UserError: the head ends in no layer with a row for each label.
    """
    import torch

    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: i for i, name in enumerate(labels)}
    if rows == list(range(len(rows))):
        return
    layers = last_layers(model, len(rows))
    if not layers:
        raise UserError(
            f"{folder} has the task's labels in another order, and its head ends in no linear layer of {len(rows)} "
            "rows that could be reordered; train it with the labels in the task's order"
        )
    with torch.no_grad():
        for layer in layers:
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    parameter.copy_(parameter[rows].clone())


def last_layers(model: Any, outputs: int) -> list[Any]:
    """The linear layers of the head with so many outputs; without its square ones, where it has others too."""
    from torch import nn

    prefix = f"{model.base_model_prefix}."
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs and not name.startswith(prefix)
    ]
    return [layer for layer in found if layer.in_features != outputs] or found[-1:]
