"""Splits of a data set: read from a folder or the Hub, a validation split set aside, classes counted."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
EMBEDDED = "licence-review"


def names_repository(dataset: str) -> bool:
    """Whether it is a Hub id, org/name or org/name@revision, and no folder here."""
    return dataset.count("/") == 1 and dataset[0] not in "./~" and not Path(dataset).is_dir()


def check_columns(dataset: str, split: str, rows: "Dataset", wanted: dict[str, str | None]) -> None:
    """Every wanted column (option -> column; None is not wanted) is there, and there are rows.

    Raises:
        UserError: with the option.
    """
    for option, column in wanted.items():
        if column is not None and column not in rows.column_names:
            raise UserError(
                f"{option} {column}: the {split} split has no such column, only {', '.join(rows.column_names)}"
            )
    if len(rows) == 0:
        raise UserError(f"--task.dataset {dataset}: the {split} split is empty")


def with_validation(dataset: str, splits: "dict[str, Dataset]") -> "dict[str, Dataset]":
    """Without a validation split, a tenth of the training groups becomes one, by a hash of the group.

    Raises:
        UserError: there are too few groups.
    """
    if "validation" in splits:
        return splits
    rows = splits["train"]
    held = [int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10 == 0 for group in column(rows, "group")]
    if not any(held) or all(held):
        raise UserError(
            f"--task.dataset {dataset}: too few training groups to set a validation split aside; "
            "give one as validation.parquet"
        )
    return {
        "train": rows.select([i for i, h in enumerate(held) if not h]),
        "validation": rows.select([i for i, h in enumerate(held) if h]),
        "test": splits["test"],
    }


def column(rows: "Dataset", name: str) -> list[Any]:
    """A column's values, read at once: to walk through a column of `datasets` reads it row by row."""
    return list(rows[name][:])


def class_values(label_column: str, splits: "dict[str, Dataset]") -> list[Any]:
    """The values that stand for classes in train, in order.

    Raises:
        UserError: train has one class only, or another split has one that train does not.
    """
    for split, rows in splits.items():
        if missing := sum(label is None for label in column(rows, "label")):
            raise UserError(f"--task.label-column {label_column}: {missing} rows of the {split} split have no label")
    seen = sorted(set(column(splits["train"], "label")), key=lambda value: (str(type(value)), value))
    if len(seen) < 2:
        raise UserError(
            f"--task.label-column {label_column}: only one class in train ({seen[0]!r}); a classifier needs two"
        )
    for split in ("validation", "test"):
        unknown = sorted({str(v) for v in set(column(splits[split], "label")) - set(seen)})
        if unknown:
            raise UserError(
                f"--task.label-column {label_column}: {', '.join(map(repr, unknown[:3]))} stands "
                f"only in {split}, never in train; drop these rows or add training examples"
            )
    return seen


def class_names(feature: Any, values: list[Any]) -> list[str]:
    """The names of class values: as the data set's feature has them, else the values themselves."""
    names = getattr(feature, "names", None)
    return [names[value] if names else str(value) for value in values]


def read_splits(dataset: str, config: str | None = None, data_files: str | None = None) -> "dict[str, Dataset]":
    """Split -> rows of the embedded data set, a folder's files or a data set on the Hub.

    Raises:
        UserError: it is not there or cannot be read, or has no train or no test split.
    """
    if dataset == EMBEDDED:
        from hfcompress.tasks import licence_review

        return dict(licence_review.load())
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        return _read_files(dataset, folder, data_files)
    if dataset.startswith((".", "/", "~")) or dataset.count("/") != 1:
        raise UserError(f"--task.dataset {dataset}: no such folder; give a folder or a Hub id (org/name)")
    return _read_hub(dataset, config)


def _read_hub(dataset: str, config: str | None) -> "dict[str, Dataset]":
    from datasets import load_dataset

    repository, _, revision = dataset.partition("@")
    with told_of_dataset(dataset):
        commit = commit_of(repository, revision) if revision else None
        loaded = load_dataset(repository, config, revision=commit)
    # Without the Hub, datasets takes whatever revision it has, and says so in a warning only.
    if commit and not all(commit in file["filename"] for rows in loaded.values() for file in rows.cache_files):
        raise UserError(f"--task.dataset {dataset}: the cache holds another revision of it, and the Hub is not there")
    named = {split: loaded[alias] for split, names in SPLITS.items() for alias in names if alias in loaded}
    return _need_splits(dataset, named)


def commit_of(repository: str, revision: str) -> str:
    """The commit that a data set's revision means: on the Hub, or as the cache last knew it.

    Its card is fetched, which is how the client's cache learns what a revision means, for a later run without network.
    """
    from huggingface_hub import snapshot_download

    card = ["README.md", ".gitattributes"]
    return Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=card)).name


@contextmanager
def told_of_dataset(dataset: str) -> Iterator[None]:
    """Why a data set cannot be had from the Hub, as one line.

    Raises:
        UserError: in place of the clients' exceptions.
    """
    import requests
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError:
        raise UserError(f"--task.dataset {dataset}: no such revision; see its page for those it has") from None
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set: unset it" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached: try again"
        raise UserError(f"--task.dataset {dataset}: this revision is not in the cache, and {why}") from None
    except (
        ConnectionError,
        OfflineModeIsEnabled,
        requests.RequestException,
        HfHubHTTPError,
        OSError,
        ValueError,
    ) as error:
        raise UserError(
            f"--task.dataset {dataset}: cannot be had from the Hub ({first_line(error)}); check the name "
            "and the network, or give a folder of parquet, json or csv files"
        ) from error


def _read_files(dataset: str, folder: Path, data_files: str | None) -> "dict[str, Dataset]":
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    found: dict[str, Dataset] = {}
    for split, names in SPLITS.items():
        files = [
            file
            for file in sorted(folder.glob(data_files or "*"))
            if file.suffix in READERS and any(name in file.stem.lower() for name in names)
        ]
        stems = {file.stem for file in files if not _is_shard(file)}
        if len(stems) > 1:
            raise UserError(
                f"--task.dataset {folder}: {', '.join(sorted(f.name for f in files))} could all be {split}; "
                'choose with --task.data-files, such as "review_*.parquet"'
            )
        if not files:
            continue
        if empty := next((file for file in files if file.stat().st_size == 0), None):
            raise UserError(f"--task.dataset: {empty} is empty; the {split} split needs texts")
        try:
            found[split] = load_dataset(READERS[files[0].suffix], data_files=[str(f) for f in files], split="train")
        except (DatasetGenerationError, UnicodeDecodeError, ValueError, OSError) as error:
            cause = error.__cause__ or error
            what = "is not UTF-8 text" if "codec can't decode" in f"{cause}{error}" else "cannot be read"
            raise UserError(
                f"--task.dataset: {files[0]} {what} ({first_line(cause)}); convert it to UTF-8 parquet, json or csv"
            ) from error
    return _need_splits(dataset, found)


def _need_splits(dataset: str, found: "dict[str, Dataset]") -> "dict[str, Dataset]":
    for split in ("train", "test"):
        if split not in found:
            raise UserError(
                f"--task.dataset {dataset}: no {split} split; name a file {split}.parquet, "
                f"{split}.csv or {split}.jsonl (images may lie in {split}/CLASS/)"
            )
    return found


def _is_shard(file: Path) -> bool:
    """Hub shards are named train-00000-of-00002."""
    return "-of-" in file.stem


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
