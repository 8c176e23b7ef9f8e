"""Data sets on the Hub: fetched, at the revision that is asked for, and read as the files say."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hfcompress.errors import UserError
from hfcompress.folders.fetch import network_errors
from hfcompress.tasks.find_splits import SPLITS, files_in, find_files, kind_of, listed, say, split_of
from hfcompress.tasks.read_tables import first_line, read_table

if TYPE_CHECKING:
    from datasets import Dataset

Files = dict[str, list[Path]]


def read_hub(dataset: str, config: str | None, option: str, needed: tuple[str, ...]) -> "dict[str, Dataset]":
    """Return split -> rows of a data set on the Hub; csv and json files are read as text, as those of a folder are.

    Raises:
        UserError: it cannot be had, two of its splits could be one, or a needed one is not there.
    """
    repository, _, revision = dataset.partition("@")
    with told_of_dataset(dataset, option):
        commit = commit_of(repository, revision) if revision else None
        files = text_files(repository, config, commit)
    loaded: dict[str, Dataset | list[Path]] = {}
    if files is None:
        loaded.update(prepared(dataset, repository, config, commit, option))
    else:
        loaded.update(files)
    found: dict[str, list[str]] = {}
    for name in loaded:
        if split := split_of(name):
            found.setdefault(split, []).append(name)
    for split, names in found.items():
        if len(names) > 1:
            raise UserError(
                f"{option}.dataset {dataset}: its splits {listed(names)} could all be {split}; download it and choose "
                f"with {option}.data-files"
            )
    for split in needed:
        if split not in found:
            raise UserError(f"{option}.dataset {dataset}: no {split} split, only {listed(list(loaded))}")
    if unused := [name for name in loaded if split_of(name) is None]:
        say(f"{option}.dataset {dataset}: splits that are not used: {listed(unused)}")
    chosen = {split: loaded[found[split][0]] for split in SPLITS if split in found}
    return {split: read_table(rows) if isinstance(rows, list) else rows for split, rows in chosen.items()}


def prepared(
    dataset: str, repository: str, config: str | None, commit: str | None, option: str
) -> "dict[str, Dataset]":
    """Return the splits as `datasets` makes them: of files that say what their columns hold."""
    from datasets import load_dataset

    with told_of_dataset(dataset, option):
        loaded = load_dataset(repository, config, revision=commit)
    # Without the Hub, datasets takes whatever revision it has, and says so in a warning only.
    if commit and not all(commit in file["filename"] for rows in loaded.values() for file in rows.cache_files):
        raise UserError(f"{option}.dataset {dataset}: the cache holds another revision, and the Hub is not there")
    return {str(name): rows for name, rows in loaded.items()}


def text_files(repository: str, config: str | None, commit: str | None) -> Files | None:
    """Return split -> the files of a data set of csv or json files, in the cache; None where it is of another kind.

    `datasets` would guess a type for each column of such files. Which files are which split it knows from the data
    set's card; without network it does not, and the files are found as those of a folder are.
    """
    from datasets import load_dataset_builder
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json
    from huggingface_hub import constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        return cached_files(repository, config, commit)
    builder = load_dataset_builder(repository, config, revision=commit)
    if not isinstance(builder, Csv | Json) or not builder.config.data_files:
        return None
    found: Files = {}
    for split, addresses in builder.config.data_files.items():
        for address in map(str, addresses):
            parts = re.fullmatch(r"hf://datasets/([^@]+)@([^/]+)/(.+)", address)
            if parts is None or kind_of(Path(parts[3])) is None:
                return None
            file = hf_hub_download(parts[1], parts[3], repo_type="dataset", revision=parts[2])
            found.setdefault(str(split), []).append(Path(file))
    if commit is None:
        commit_of(repository, "main")  # so that the cache knows it without network
    return found


def cached_files(repository: str, config: str | None, commit: str | None) -> Files | None:
    """The same of what the cache holds; None where it holds no csv or json files of this data set."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", revision=commit, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    folder = folder / config if config and (folder / config).is_dir() else folder
    files = find_files(folder, None).files
    return files if any(kind_of(file) in ("csv", "json") for file in files_in(folder, None, "--task")) else None


def commit_of(repository: str, revision: str) -> str:
    """The commit that a data set's revision means: on the Hub, or as the cache last knew it.

    Its card is fetched, which is how the client's cache learns what a revision means, for a later run without network.
    """
    from huggingface_hub import snapshot_download

    card = ["README.md", ".gitattributes"]
    return Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=card)).name


@contextmanager
def told_of_dataset(dataset: str, option: str = "--task") -> Iterator[None]:
    """Why a data set cannot be had from the Hub, as one line.

    Raises:
        UserError: in place of the clients' exceptions.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    others: tuple[type[Exception], ...] = (
        OSError,
        ValueError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        *network_errors(),
    )
    try:
        yield
    except RevisionNotFoundError:
        raise UserError(f"{option}.dataset {dataset}: no such revision; see its page for those it has") from None
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set: unset it" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached: try again"
        raise UserError(f"{option}.dataset {dataset}: this revision is not in the cache, and {why}") from None
    except others as error:
        raise UserError(
            f"{option}.dataset {dataset}: cannot be had from the Hub ({first_line(error)}); check the name "
            "and the network, or give a file or folder of parquet, json or csv files"
        ) from error
