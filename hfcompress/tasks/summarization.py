"""Summarization: documents and what people wrote about them, from a data set on disk or on the Hub."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.errors import UserError
from hfcompress.tasks.splits import READERS, SPLITS, check_columns, first_line, names_repository, read_splits

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Summaries:
    """One split: documents, one or more reference summaries of each, and the group each belongs to."""

    documents: list[str]
    references: list[list[str]]
    groups: list[str]


@dataclass(frozen=True)
class SummaryData:
    """Split (test, and train and validation where there are any) -> its rows; and a hash of them all."""

    splits: dict[str, Summaries]
    fingerprint: str


@dataclass(frozen=True)
class Summarization:
    """A short text about a long one."""

    dataset: str = ""
    """A Hub id (org/name or org/name@revision), or a folder of parquet, json or csv files named after their split;
    files that name no split are the test split. Not given: no summaries are measured."""
    config: str | None = None
    """The data set's configuration on the Hub, such as 3.0.0."""
    data_files: str | None = None
    """Which files of the folder, as a pattern."""
    document_column: str = "document"
    summary_column: str = "summary"
    """A text, or a list of texts: several summaries that are equally right."""
    group_column: str | None = None
    """Documents of one group (a company's contracts) are not independent: the statistics resample whole groups."""
    max_documents: int | None = None
    """So many documents of a split at most, evenly spread over it."""

    def __post_init__(self) -> None:
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(f"--documents.max-documents {self.max_documents}: must be at least 1")

    def fingerprint(self) -> dict[str, Any]:
        """What stands for this task in a stage's key."""
        return {"data": self.data.fingerprint}

    @property
    def identity(self) -> str:
        """The data set's name and a hash of its texts, as a record names it: never a path of this machine."""
        return f"{Path(self.dataset).name}@{self.data.fingerprint[:16]}"

    @property
    def on_hub(self) -> bool:
        """Whether the data set's name is a Hub id."""
        return names_repository(self.dataset)

    @cached_property
    def data(self) -> SummaryData:
        """Load and check the documents once.

        Raises:
            UserError: the data set or a column is not there, there is no test split, or a document or a summary is
                empty.
        """
        folder = Path(self.dataset).expanduser()
        raw = read_folder(folder, self.data_files) if folder.is_dir() else read_splits(self.dataset, self.config)
        splits = {split: self._rows(split, rows) for split, rows in raw.items()}
        digest = hashlib.sha256()
        for split, rows in sorted(splits.items()):
            digest.update(repr([split, rows.documents, rows.references, rows.groups]).encode())
        return SummaryData(splits, digest.hexdigest())

    def _rows(self, split: str, rows: "Dataset") -> Summaries:
        wanted = {
            "--documents.document-column": self.document_column,
            "--documents.summary-column": self.summary_column,
            "--documents.group-column": self.group_column,
        }
        if not len(rows):
            raise UserError(f"--documents.dataset {self.dataset}: the {split} split is empty")
        check_columns(self.dataset, split, rows, wanted)
        numbers = range(len(rows))
        if self.max_documents is not None and self.max_documents < len(rows):
            numbers = np.linspace(0, len(rows) - 1, self.max_documents).round().astype(int).tolist()
            rows = rows.select(numbers)
        documents = [str(text or "").strip() for text in rows[self.document_column]]
        references = [texts_of(value) for value in rows[self.summary_column]]
        for column, values in ((self.document_column, documents), (self.summary_column, references)):
            empty = next((number for number, value in zip(numbers, values, strict=True) if not value), None)
            if empty is not None:
                raise UserError(
                    f"--documents.dataset {self.dataset}: {column} is empty in row {empty} of the {split} split; drop "
                    "such rows"
                )
        named = rows[self.group_column] if self.group_column else numbers
        return Summaries(documents, references, [str(value) for value in named])


def texts_of(value: Any) -> list[str]:
    """A summary column's value, a text or a list of texts, without empty ones."""
    texts = [value] if isinstance(value, str) else value or []
    return [str(text).strip() for text in texts if str(text or "").strip()]


def read_folder(folder: Path, data_files: str | None) -> "dict[str, Dataset]":
    """Split -> rows of a folder's files: each belongs to the split that its name holds, or else to test.

    Raises:
        UserError: no file of a kind that is read, one that cannot be read, or no test split.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    files: dict[str, list[str]] = {}
    for file in sorted(folder.glob(data_files or "*")):
        if file.suffix in READERS:
            files.setdefault(split_of(file), []).append(str(file))
    if "test" not in files:
        raise UserError(
            f"--documents.dataset {folder}: no test split among its {data_files or 'files'}; name a file "
            "test.parquet, test.csv or test.jsonl"
        )
    found = {}
    for split, names in files.items():
        try:
            found[split] = load_dataset(READERS[Path(names[0]).suffix], data_files=names, split="train")
        except (DatasetGenerationError, UnicodeDecodeError, ValueError, OSError) as error:
            raise UserError(
                f"--documents.dataset: {names[0]} cannot be read ({first_line(error.__cause__ or error)}); convert it "
                "to UTF-8 parquet, json or csv"
            ) from error
    return found


def split_of(file: Path) -> str:
    stem = file.stem.lower()
    return next((split for split, names in SPLITS.items() if any(name in stem for name in names)), "test")
