"""Rows set aside: splits that a data set does not have, by a hash of its groups, and samples of all classes."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.tasks.find_splits import SPLITS, say

ALL = "all"  # the split of a data set that has none


def split_by_hash(key: bytes) -> str:
    """Return train for seven tenths of all keys, validation for one, test for two."""
    return split_by_digest(hashlib.sha256(key).hexdigest())


def split_by_digest(digest: str) -> str:
    """Return the split of a key by its hash in hexadecimal."""
    number = int(digest, 16) % 10
    return "validation" if number == 0 else "test" if number < 3 else "train"


def rows_by_split(split_of: dict[str, str], names: list[str], labels: Sequence[Any]) -> dict[str, list[int]]:
    """Return split -> rows; a name with a class that train would lack is moved to train.

    Args:
        split_of: of every name; names, labels: of the rows.
    """
    split_of = dict(split_of)
    train = {label for name, label in zip(names, labels, strict=True) if split_of[name] == "train"}
    for name, label in zip(names, labels, strict=True):
        if label not in train:
            split_of[name] = "train"
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, name in enumerate(names):
        found[split_of[name]].append(row)
    return found


def families(groups: Sequence[str], texts: Sequence[str | None]) -> list[str]:
    """Return for every row the name of its family: rows of one group or with one text are of one family.

    A family's name is the least of its groups' names. (Union-find over groups, joined by their texts.)
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[str, str] = {}
    for group, text in zip(groups, texts, strict=True):
        if text is not None and (other := first.setdefault(text.strip(), group)) != group:
            one, two = sorted((root(group), root(other)))
            parent[two] = one
    return [root(group) for group in groups]


def splits_of_one(dataset: str, names: list[str], labels: Sequence[Any], option: str) -> dict[str, list[int]]:
    """Return split -> rows of a data set without splits, by a hash of each row's family.

    A family with a class that train would lack stays in train.

    Raises:
        UserError: there are too few families.
    """
    found = rows_by_split({name: split_by_hash(name.encode()) for name in names}, names, labels)
    sizes = ", ".join(f"{split} {len(rows)}" for split, rows in found.items())
    if not all(found.values()):
        raise UserError(
            f"{option}.dataset {dataset}: too few rows or groups to split one file ({sizes}); give a folder with "
            "train, validation and test files"
        )
    say(f"{option}.dataset {dataset}: one table, split by a hash of its groups: {sizes}")
    return found


def validation_rows(dataset: str, names: list[str], option: str) -> tuple[list[int], list[int]]:
    """Return the rows of train that stay, and a tenth that becomes the validation split, by a hash of the family.

    Raises:
        UserError: there are too few families.
    """
    held = [split_by_hash(name.encode()) == "validation" for name in names]
    if not any(held) or all(held):
        raise UserError(
            f"{option}.dataset {dataset}: too few training groups to set a validation split aside; "
            "give one as validation.parquet"
        )
    say(f"{option}.dataset {dataset}: no validation split: {sum(held)} of {len(held)} training rows are set aside")
    return [i for i, h in enumerate(held) if not h], [i for i, h in enumerate(held) if h]


def sample_of(labels: Sequence[Any], share: float) -> list[int]:
    """Return a share of the rows as `sample` draws them, and a row of every class at least."""
    return sample(labels, max(len(set(labels)), round(share * len(labels))))


def require_classes(size: int | None, classes: int) -> None:
    """Raise UserError where `--task.max-train-examples` leaves less than a row for each class."""
    if size is not None and size < classes:
        raise UserError(f"--task.max-train-examples {size}: train has {classes} classes; give {classes} or more")


def sample(labels: Sequence[Any], size: int) -> list[int]:
    """Return `size` rows, drawn at random (the same each time) with every class in proportion, in their order.

    Where there is room for it, every class has one row at least.
    """
    count = Counter(labels)
    if size >= len(labels):
        return list(range(len(labels)))
    quotas = {label: size * rows / len(labels) for label, rows in count.items()}
    least = 1 if size >= len(count) else 0
    taken = {label: max(least, int(quota)) for label, quota in quotas.items()}
    by_rest = sorted(count, key=lambda label: (int(quotas[label]) - quotas[label], str(label)))
    while (rest := size - sum(taken.values())) != 0:
        for label in by_rest if rest > 0 else reversed(by_rest):
            if rest and (taken[label] < count[label] if rest > 0 else taken[label] > least):
                taken[label] += 1 if rest > 0 else -1
                rest -= 1 if rest > 0 else -1
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    chosen = []
    for row in order:
        if taken[labels[row]]:
            taken[labels[row]] -= 1
            chosen.append(row)
    return sorted(chosen)
