"""Which files of a folder are train, validation and test: one rule, on names of files and folders.

A name belongs to a split when one of the split's names stands in it as a whole word: what letters and digits make up
between other characters, in any case. `review_train.jsonl`, `train-00000-of-00002.parquet` and `val/` belong to one;
`latest.csv` (no word of it is a split's), `trainer.csv` and `train_test.csv` (two splits) do not. A file below a
folder that belongs to a split is of that split, whatever its own name. Such files and folders are looked for in the
folder and in its `data/`, as a clone from the Hub has them.
"""

import os
import re
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hfcompress.errors import UserError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
READ = "parquet, arrow, csv, tsv, json, jsonl and ndjson files, the last five also as .gz"
# What may hold data and is not read; any other file (a README, a script) is not mentioned.
NOT_READ = {
    ".txt", ".tab", ".xlsx", ".xls", ".ods", ".zip", ".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z", ".feather",
    ".orc", ".avro", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".db", ".sqlite", ".tfrecord", ".xml", ".yaml",
    ".yml", ".conll", ".bio",
}  # fmt: skip
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # files of `datasets`
SHARD = re.compile(r"[-_.](\d+)-of-(\d+)$")
NAMED = 6  # files in one message


@dataclass(frozen=True)
class Found:
    """Files by split; `loose` are data files that no split's name stands in; `ignored` are of a kind not read."""

    files: dict[str, list[Path]]
    loose: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)

    def unused(self, folder: Path) -> str:
        """Return what was found and is not used, as a sentence's end; empty where there is nothing."""
        names = [name_in(folder, file) for file in self.loose]
        kinds = [f"{name_in(folder, file)} (not a kind that is read)" for file in self.ignored]
        return listed(sorted(names) + sorted(kinds))


def kind_of(file: Path) -> str | None:
    """Return how a file is read (parquet, arrow, json or csv), by the end of its name in any case; None: it is not."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        kind = KINDS.get(Path(file.stem).suffix.lower())
        return kind if kind in ("json", "csv") else None
    return KINDS.get(suffix)


def stem_of(file: Path) -> str:
    """Return a file's name without what says its kind: train for train.jsonl.gz."""
    return Path(file.stem).stem if file.suffix.lower() == ".gz" else file.stem


def splits_in(name: str) -> set[str]:
    """Return the splits of which a name stands as a whole word in this one."""
    words = set(re.split(r"[\W_]+", name.lower()))
    return {split for split, names in SPLITS.items() if words & set(names)}


def split_of(name: str) -> str | None:
    """Return the one split that a file's or folder's name belongs to; None where there is none, or more than one."""
    found = splits_in(name)
    return found.pop() if len(found) == 1 else None


def find_files(folder: Path, pattern: str | None, option: str = "--task") -> Found:
    """Find the files of every split.

    Args:
        folder: the data set.
        pattern: which of its files, as a pattern; or SPLIT=PATTERN, several with commas between; None: all.
        option: what the options' names begin with, for messages.

    Raises:
        UserError: two files could be one split, shards of one are missing, or a pattern finds nothing.
    """
    if pattern and "=" in pattern:
        return Found(chosen(folder, pattern, option))
    sources: dict[str, dict[str, list[Path]]] = {}
    loose, ignored = [], []
    for file in files_in(folder, pattern, option):
        split = split_above(folder, file) or split_of(stem_of(file))
        if kind_of(file) is None:
            if pattern or split or file.suffix.lower() in NOT_READ:
                ignored.append(file)
        elif split is None:
            loose.append(file)
        else:
            sources.setdefault(split, {}).setdefault(source_of(folder, file), []).append(file)
    for split, files in ((split, sources[split]) for split in SPLITS if split in sources):
        if len(files) > 1:
            raise UserError(
                f"{option}.dataset {folder}: {listed(sorted(files))} could all be {split}; choose with "
                f'{option}.data-files, such as "review_*.parquet" or {split}={sorted(files)[0]}'
            )
    found = {split: next(iter(sources[split].values())) for split in SPLITS if split in sources}
    for split, shards in found.items():
        check_shards(folder, split, shards, option)
    return Found(found, loose, ignored)


def chosen(folder: Path, pattern: str, option: str) -> dict[str, list[Path]]:
    """Return split -> files for train=PATTERN,test=PATTERN."""
    found: dict[str, list[Path]] = {}
    for part in filter(None, (part.strip() for part in pattern.split(","))):
        name, _, wanted = part.partition("=")
        split = split_of(name.strip())
        if split is None or not wanted:
            raise UserError(
                f"{option}.data-files {pattern}: {part} is not SPLIT=FILE with a split train, validation or test"
            )
        files = [file for file in matches(folder, wanted.strip(), option) if file.is_file()]
        if unread := next((file for file in files if kind_of(file) is None), None):
            raise UserError(f"{option}.data-files {part}: {unread.name} is not read; read are {READ}")
        if not files:
            raise UserError(f"{option}.data-files {part}: {folder} has no such file")
        found.setdefault(split, []).extend(files)
    return found


def matches(folder: Path, pattern: str, option: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{option}.data-files {pattern}: {error}; give a pattern below {folder}") from None


def files_in(folder: Path, pattern: str | None, option: str) -> list[Path]:
    """Return the files that are looked at, without hidden ones and those that describe a data set."""
    if pattern:
        files = matches(folder, pattern, option)
    else:
        places = [folder, folder / "data"]
        places += [below for place in places for below in folders_in(place) if split_of(below.name)]
        files = [file for place in places if place.is_dir() for file in sorted(place.iterdir())]
    files = [file for file in files if not hidden(file) and file.name not in ABOUT_DATA]
    if dangling := next((file for file in files if kind_of(file) and not file.exists()), None):
        raise UserError(f"{option}.dataset {folder}: {dangling.name} is a link to nothing; fetch its file")
    return [file for file in files if file.is_file()]


def hidden(path: Path) -> bool:
    """Whether a name says that it is not a user's data: .DS_Store, ._train.csv, the cache files of `datasets`."""
    return path.name.startswith((".", "__")) or (path.suffix == ".arrow" and path.name.startswith("cache-"))


def split_above(folder: Path, file: Path) -> str | None:
    """Return the split that a folder between the data set and a file belongs to."""
    return next(filter(None, (split_of(part) for part in file.relative_to(folder).parts[:-1])), None)


def source_of(folder: Path, file: Path) -> str:
    """Return what holds one split: a file, all shards of one, or all files of a split's folder."""
    place = file.parent.relative_to(folder)
    if split_above(folder, file):
        return f"{place.as_posix()}/"
    name = SHARD.sub("", stem_of(file)) + file.name[len(stem_of(file)) :]
    return (place / name).as_posix()


def check_shards(folder: Path, split: str, files: list[Path], option: str) -> None:
    """Raise UserError where one split is in files of two kinds, or shards of it are missing."""
    kinds = {kind_of(file): file for file in files}
    if len(kinds) > 1:
        raise UserError(
            f"{option}.dataset {folder}: {listed([name_in(folder, file) for file in kinds.values()])} could both be "
            f"{split}; choose with {option}.data-files, such as {split}={name_in(folder, files[0])}"
        )
    numbers: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if found := SHARD.search(stem_of(file)):
            key = (SHARD.sub("", stem_of(file)), int(found[2]))
            numbers.setdefault(key, set()).add(int(found[1]))
    for (_, count), seen in numbers.items():
        if len(seen) != count:
            raise UserError(
                f"{option}.dataset {folder}: {len(seen)} of the {count} files of {split} are there "
                f"({listed(sorted(name_in(folder, file) for file in files))}); fetch the others"
            )


def split_folders(folder: Path, option: str = "--task") -> dict[str, Path]:
    """Return split -> folder of class folders: directly below, or below `data/` where the folder itself has none.

    Raises:
        UserError: two could be one split.
    """
    for place in (folder, folder / "data"):
        found: dict[str, list[Path]] = {}
        for below in folders_in(place):
            if folders_in(below) and (split := split_of(below.name)):
                found.setdefault(split, []).append(below)
        for split, places in found.items():
            if len(places) > 1:
                raise UserError(
                    f"{option}.dataset {folder}: {listed([p.name + '/' for p in places])} could all be {split}; "
                    "keep one of them there"
                )
        if found:
            return {split: found[split][0] for split in SPLITS if split in found}
    return {}


def folders_in(place: Path) -> list[Path]:
    """Return the folders in a folder, without hidden ones, by name."""
    return (
        [below for below in sorted(place.iterdir()) if below.is_dir() and not hidden(below)] if place.is_dir() else []
    )


def name_in(folder: Path, file: Path) -> str:
    """Return a file's name as seen from its data set."""
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def listed(names: list[str]) -> str:
    """Return the first names with commas between, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


@lru_cache(maxsize=1024)
def say(line: str) -> None:
    """Write a line about the data on standard error: once in a process, and on one rank of several."""
    if os.environ.get("RANK", "0") == "0":
        print(f"hfcompress: {line}", file=sys.stderr)
