"""Summarization: documents and what people wrote about them, from a data set on disk or on the Hub."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hfcompress.errors import OptionError, UserError
from hfcompress.tasks.cells import column, not_text, spelled, texts
from hfcompress.tasks.columns import check_columns, check_texts, groups_of
from hfcompress.tasks.examples import Missing
from hfcompress.tasks.find_splits import say
from hfcompress.tasks.overlap import Keys, Overlap, checked, near_duplicates
from hfcompress.tasks.splits import names_repository, read_splits

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Summaries:
    """One split: documents, one or more reference summaries of each, and the group each belongs to."""

    documents: list[str]
    references: list[list[str]]
    groups: list[str]

    def of(self, which: list[int]) -> "Summaries":
        """Return some of the rows."""
        documents, references = [self.documents[i] for i in which], [self.references[i] for i in which]
        return Summaries(documents, references, [self.groups[i] for i in which])


@dataclass(frozen=True)
class SummaryData:
    """Split (test, and train and validation where there are any) -> its rows; and a hash of them all."""

    splits: dict[str, Summaries]
    fingerprint: str


@dataclass(frozen=True)
class Summarization:
    """A short text about a long one."""

    version: ClassVar[int] = 1
    """Raised by one when the same data is read or encoded in another way than before: part of every key."""
    dataset: str = ""
    """A Hub id (org/name or org/name@revision), a folder of parquet, json, csv or arrow files named after their split
    (a single file that names none is the test split), or one such file. Not given: no summaries are measured."""
    config: str | None = None
    """The data set's configuration on the Hub, such as 3.0.0."""
    data_files: str | None = None
    """Which files of the folder: a pattern (review_*.parquet), or test=a.csv."""
    document_column: str = "document"
    summary_column: str = "summary"
    """A text, or a list of texts: several summaries that are equally right."""
    group_column: str | None = None
    """Documents of one group (a company's contracts) are not independent: the statistics resample whole groups."""
    missing: Missing = "refuse"
    """What happens to rows without a document or a summary: refuse the data, or skip them and say how many."""
    overlap: Overlap = "refuse"
    """What happens where a document or a group stands in two splits: refuse the data, or drop such rows from train
    (and validation, where they stand in test)."""
    max_documents: int | None = None
    """So many documents of a split at most, evenly spread over it."""

    def __post_init__(self) -> None:
        if self.max_documents is not None and self.max_documents < 1:
            raise OptionError("max_documents", "must be at least 1", self.max_documents)

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
        raw = read_splits(self.dataset, self.config, self.data_files, "--documents", needed=("test",))
        of_texts = {"--documents.document-column": self.document_column, "--documents.group-column": self.group_column}
        of_summaries = {"--documents.summary-column": self.summary_column}
        check_columns(self.dataset, raw, {**of_texts, **of_summaries}, "--documents")
        check_texts(raw, of_texts)
        lists = {s: rows for s, rows in raw.items() if not_text(rows, self.summary_column) == "lists"}
        check_texts({split: rows for split, rows in raw.items() if split not in lists}, {**of_summaries})
        splits = self._apart({split: self._rows(split, rows) for split, rows in raw.items()})
        digest = hashlib.sha256()
        for split, found in sorted(splits.items()):
            digest.update(repr([split, found.documents, found.references, found.groups]).encode())
        return SummaryData(splits, digest.hexdigest())

    def _rows(self, split: str, rows: "Dataset") -> Summaries:
        documents = [(text or "").strip() for text in texts(rows, self.document_column)]
        references = [texts_of(value) for value in column(rows, self.summary_column)]
        numbers = range(len(rows))
        groups = groups_of(rows, self.group_column, "--documents.group-column", split)
        empty: dict[int, str] = {}
        for name, values in ((self.document_column, documents), (self.summary_column, references)):
            empty |= {row: name for row, value in enumerate(values) if not value and row not in empty}
        if empty and self.missing == "refuse":
            row = min(empty)
            more = f" ({len(empty)} such rows in all)" if len(empty) > 1 else ""
            raise UserError(
                f"--documents.dataset {self.dataset}: {empty[row]} is empty in row {row} of the {split} split{more}; "
                "drop such rows, or leave them out with --documents.missing skip"
            )
        kept = [row for row in numbers if row not in empty]
        if empty:
            say(f"--documents.dataset {self.dataset}: {len(empty)} of {len(rows)} rows of {split} are left out")
        if not kept:
            raise UserError(f"--documents.dataset {self.dataset}: no row of {split} has a document and a summary")
        if self.max_documents is not None and self.max_documents < len(kept):
            places = np.linspace(0, len(kept) - 1, self.max_documents).round().astype(int).tolist()
            kept = [kept[place] for place in places]
        return Summaries(documents, references, groups).of(kept)

    def _apart(self, splits: dict[str, Summaries]) -> dict[str, Summaries]:
        """The splits with no document or group in two of them."""
        keys = {
            split: Keys(list(rows.documents), rows.groups if self.group_column else None)
            for split, rows in splits.items()
        }
        kept, notes = checked(self.dataset, keys, self.overlap, "--documents")
        for note in notes + near_duplicates(keys):
            say(f"--documents.dataset {self.dataset}: {note}")
        return {split: rows.of(kept[split]) for split, rows in splits.items()}


def texts_of(value: Any) -> list[str]:
    """A summary column's value, a text or a list of texts, without empty ones."""
    found = [spelled(entry) for entry in value] if isinstance(value, list) else [spelled(value)]
    return [text.strip() for text in found if text and text.strip()]
