"""Splits of a data set: from a file, a folder or the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING

from hfcompress.errors import UserError
from hfcompress.tasks import licence_review
from hfcompress.tasks.cells import texts
from hfcompress.tasks.find_splits import (
    READ,
    SPLITS,
    Found,
    find_files,
    folders_in,
    hidden,
    kind_of,
    listed,
    name_in,
    say,
    split_of,
)
from hfcompress.tasks.hold_out import ALL
from hfcompress.tasks.hub_data import read_hub
from hfcompress.tasks.read_tables import read_table

if TYPE_CHECKING:
    from datasets import Dataset

EMBEDDED = "licence-review"
SPLIT_COLUMNS = ("split", "subset", "partition", "fold", "set")  # columns that may say the split of every row
SPLIT_NAMES = {name for names in SPLITS.values() for name in names}


def names_repository(dataset: str) -> bool:
    """Whether it is a Hub id, org/name or org/name@revision, and no folder or file here."""
    return dataset.count("/") == 1 and dataset[0] not in "./~" and not Path(dataset).exists()


def read_splits(
    dataset: str,
    config: str | None = None,
    data_files: str | None = None,
    option: str = "--task",
    needed: tuple[str, ...] = ("train", "test"),
) -> "dict[str, Dataset]":
    """Return split -> rows of the embedded data set, a file, a folder's files or a data set on the Hub.

    One table without splits is the split "all".

    Args:
        dataset: as the task has it.
        config: a configuration on the Hub, or a folder in the folder.
        data_files: which files of the folder; see `find_files`.
        option: what the options' names begin with, for messages.
        needed: splits that must be there. Where test alone is needed, a folder's only file without a split's name is
            test.

    Raises:
        UserError: it is not there or cannot be read, a needed split is not there, or an option has no meaning for it.
    """
    place = Path(dataset).expanduser()
    if not dataset.strip():
        raise UserError(f"{option}.dataset: it is empty; give a file, a folder or a Hub id (org/name)")
    if data_files and not place.is_dir():
        raise UserError(f"{option}.data-files {data_files}: {dataset} is no folder; leave the option out")
    if dataset == EMBEDDED:
        return dict(licence_review.load())
    if place.is_dir():
        return _read_folder(dataset, place, config, data_files, option, needed)
    if place.is_file():
        if kind_of(place) is None:
            raise UserError(f"{option}.dataset {dataset}: not a file that is read; read are {READ}")
        return _read_one(dataset, [place], option, needed)
    if dataset.startswith((".", "/", "~")) or dataset.count("/") != 1 or kind_of(place):
        raise UserError(f"{option}.dataset {dataset}: no such folder or file; give one, or a Hub id (org/name)")
    return read_hub(dataset, config, option, needed)


def _read_folder(
    dataset: str, folder: Path, config: str | None, data_files: str | None, option: str, needed: tuple[str, ...]
) -> "dict[str, Dataset]":
    if config is not None:
        folder = folder / config
        if not folder.is_dir():
            raise UserError(f"{option}.config {config}: {dataset} has no such folder; leave the option out")
    shards = [file for file in sorted(folder.glob("*.arrow")) if not hidden(file)]
    if shards and (folder / "state.json").is_file() and not data_files:  # as Dataset.save_to_disk writes one table
        return _read_one(dataset, shards, option, needed)
    found = find_files(folder, data_files, option)
    files, unused = found.files, found.unused(folder)
    if needed == ("test",) and "test" not in files and len(found.loose) == 1:
        files, unused = files | {"test": found.loose}, Found({}, [], found.ignored).unused(folder)
    if missing := [split for split in needed if split not in files]:
        raise UserError(_what_is_missing(dataset, folder, missing[0], found, option))
    if unused and not data_files:
        say(f"{option}.dataset {dataset}: not used: {unused}")
    return {split: read_table(files[split]) for split in SPLITS if split in files}


def _what_is_missing(dataset: str, folder: Path, split: str, found: Found, option: str) -> str:
    """Return the message for a folder without a split: what is there, and what can be typed."""
    there = ", ".join(
        f"{name} is {listed([name_in(folder, file) for file in files])}" for name, files in found.files.items()
    )
    message = f"{option}.dataset {dataset}: no {split} split"
    if there:
        message += f" ({there})"
    if unused := found.unused(folder):
        message += f"; not used: {unused}"
    if len(found.loose) == 1 and not found.files:
        return f"{message}; {option}.dataset {found.loose[0]} splits that file by a hash of its groups"
    if found.loose:
        return f"{message}; say which it is: {option}.data-files {_example(folder, split, found)}"
    inner = [below for below in folders_in(folder) if any(map(kind_of, below.iterdir()))]
    if inner and not found.files:
        return f"{message}; its folder {inner[0].name}/ has files: {option}.dataset {inner[0]}"
    return (
        f"{message}; name a file {split}.parquet, {split}.csv or {split}.jsonl, or a folder {split}/ "
        f"(images may lie in {split}/CLASS/); read are {READ}"
    )


def _example(folder: Path, split: str, found: Found) -> str:
    """Return SPLIT=FILE for every split that is there, and a loose file for the one that is not."""
    wanted = {name: shards[0] for name, shards in found.files.items() if len(shards) == 1}
    free = list(found.loose)
    for name in (split, *(other for other in ("train", "test") if other not in found.files and other != split)):
        if free:
            likely = next((file for file in free if any(word in file.name.lower() for word in SPLITS[name])), free[0])
            wanted[name] = likely
            free.remove(likely)
    return ",".join(f"{name}={name_in(folder, file)}" for name, file in wanted.items())


def _read_one(dataset: str, files: list[Path], option: str, needed: tuple[str, ...]) -> "dict[str, Dataset]":
    """Return the splits that a column of one table says; else the whole table as test, or as "all" to be split."""
    rows = read_table(files)
    for name in SPLIT_COLUMNS:
        single = name in rows.column_names and type(rows.features[name]).__name__ in ("Value", "ClassLabel")
        if single and (found := _by_column(dataset, rows, name, option, needed)):
            return found
    return {"test" if needed == ("test",) else ALL: rows}


def _by_column(
    dataset: str, rows: "Dataset", name: str, option: str, needed: tuple[str, ...]
) -> "dict[str, Dataset] | None":
    """Return the splits that a column says; None where its values are no names of several splits.

    Raises:
        UserError: it names several splits, and not one that is needed.
    """
    values = texts(rows, name)
    said = {value: split_of(value) for value in set(values) if value is not None}
    there = set(filter(None, said.values()))
    alone = all(said[value] is None or value.strip().lower() in SPLIT_NAMES for value in said)
    others = [value for value in values if value is None or said[value] is None]
    if not there or (others and not alone) or (len(there) < 2 and not set(needed) <= there):
        return None
    if missing := [split for split in needed if split not in there]:
        raise UserError(
            f"{option}.dataset {dataset}: its column {name} says {' and '.join(sorted(there))}, and no row is of "
            f"{missing[0]}; name such rows there, or take the column out: then rows are split by a hash"
        )
    say(f"{option}.dataset {dataset}: its column {name} says the split of every row")
    if others:
        shown = listed(sorted({"no value" if value is None else repr(value) for value in others}))
        say(f"{option}.dataset {dataset}: {len(others)} of {len(rows)} rows are not used: {name} is {shown}")
    splits = [None if value is None else said[value] for value in values]
    return {
        split: rows.select([i for i, found in enumerate(splits) if found == split])
        for split in SPLITS
        if split in there
    }
