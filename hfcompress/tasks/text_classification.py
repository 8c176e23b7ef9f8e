"""Text classification: a data set on disk or on the Hub, its columns, and what counts on it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.errors import OptionError
from hfcompress.tasks.cells import column
from hfcompress.tasks.columns import check_columns
from hfcompress.tasks.cutting import beginning
from hfcompress.tasks.examples import Examples, Missing, check_cells, examples_of, held_apart
from hfcompress.tasks.find_splits import SPLITS
from hfcompress.tasks.hold_out import require_classes, sample_of
from hfcompress.tasks.labels import Classes, classes_of
from hfcompress.tasks.linear import TfidfSvm, fit
from hfcompress.tasks.overlap import Overlap
from hfcompress.tasks.splits import EMBEDDED, read_splits
from hfcompress.tasks.task import Labelled

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

    from hfcompress.tasks.linear import Baseline

EXCERPT = 160  # characters of a text that a report shows
LEAST_TOKENS = 3  # of a text: one between [CLS] and [SEP]


@dataclass(frozen=True)
class TextData:
    """A loaded task: splits train, validation and test with the columns text, label (int), group (str)."""

    splits: "DatasetDict"
    labels: list[str]
    fingerprint: str
    notes: tuple[str, ...] = ()
    """What a reader of the report must know of the data: rows left out, near-duplicates across splits."""

    def texts(self, split: str) -> list[str]:
        return column(self.splits[split], "text")

    def inputs(self, split: str, first: int | None = None) -> list[str]:
        """The texts, or the first so many, as a predictor takes them."""
        return self.texts(split)[:first]

    def label_ids(self, split: str) -> list[int]:
        return column(self.splits[split], "label")

    def groups(self, split: str) -> list[str]:
        return column(self.splits[split], "group")

    def encode(self, tokenizer: "PreTrainedTokenizerBase", max_length: int, split: str) -> "Dataset":
        """Columns input_ids, attention_mask, (token_type_ids,) labels, index (row in the split), length."""

        return encoded(tokenizer, max_length, self.texts(split), self.label_ids(split), first=0)

    def encode_unlabelled(
        self, tokenizer: "PreTrainedTokenizerBase", max_length: int, texts: list[str], first: int
    ) -> "Dataset":
        """The same columns for texts without a label (-100); `index` counts from `first`."""
        return encoded(tokenizer, max_length, texts, [-100] * len(texts), first)


def encoded(
    tokenizer: "PreTrainedTokenizerBase", max_length: int, texts: list[str], labels: list[int], first: int
) -> "Dataset":
    from datasets import Dataset

    read = [beginning(tokenizer, text, max_length) for text in texts]
    columns = dict(tokenizer(read, truncation=True, max_length=max_length))
    lengths = [len(ids) for ids in columns["input_ids"]]
    index = list(range(first, first + len(texts)))
    return Dataset.from_dict({**columns, "labels": labels, "index": index, "length": lengths})


@dataclass(frozen=True)
class TextClassification(Labelled):
    """One label a text."""

    version: ClassVar[int] = 1
    name: ClassVar[str] = "text-classification"
    pipeline_tag: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str | None] = "AutoModelForSequenceClassification"
    takes: ClassVar[str] = "a text encoder"
    unit: ClassVar[str] = "texts"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "micro_f1", "macro_f1", "recall_at_90_precision", "ece")
    drops: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    purpose: ClassVar[str] = "Labels texts like those of its test set with one of {labels} labels"
    measure: ClassVar[str] = "hfcompress.evaluation.measure:Measure"
    page: ClassVar[str] = "hfcompress.report.pages:TEXTS"
    baseline_note: ClassVar[str] = (
        "On this data the linear baseline ({name}, {value:.3f}) is {word} the {reference} ({of_reference:.3f}): a "
        "TF-IDF model may be all you need."
    )

    dataset: str = EMBEDDED
    """licence-review (embedded), a Hub id (org/name or org/name@revision), a folder of parquet, json, csv or arrow
    files named after their split, or one such file, which is split by a hash of its groups."""
    config: str | None = None
    """The data set's configuration on the Hub, such as ledgar."""
    data_files: str | None = None
    """Which files of the folder: a pattern (review_*.parquet), or train=a.csv,test=b.csv."""
    text_column: str = "text"
    label_column: str = "label"
    group_column: str | None = None
    """Texts of one group (a contract, a licence) are not independent: the statistics resample whole groups."""
    max_length: int = 128
    """Tokens a text is cut to."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """What the best checkpoint is chosen by: accuracy or macro_f1."""
    max_train_examples: int | None = None
    """Only so many training texts, drawn at random with all classes in proportion (the other splits too); for trying
    things."""
    labels: tuple[str, ...] | None = None
    """The classes in order: names for integer labels (negative positive), or the order of labels that are names."""
    missing: Missing = "refuse"
    """What happens to rows without text, label or group (-1 beside labels from 0 is none): refuse, or skip them and
    say how many."""
    overlap: Overlap = "refuse"
    """What happens where a group or a text stands in two splits: refuse the data, or drop such rows from train (and
    validation, where they stand in test)."""

    def __post_init__(self) -> None:
        if self.labels is not None:  # a list, where a lock was read
            object.__setattr__(self, "labels", tuple(map(str, self.labels)))
        for name, least in (("max_length", LEAST_TOKENS), ("max_train_examples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(name, f"must be at least {least}", value)

    def fingerprint(self) -> dict[str, Any]:
        """What stands for this task in a stage's key: the columns and a hash of the data itself."""
        return {"data": self.data.fingerprint, "max_length": self.max_length, "metric": self.metric}

    def encode(self, processor: Any, split: str) -> "Dataset":
        return self.data.encode(processor, self.max_length, split)

    def padded_by(self, processor: Any) -> "PreTrainedTokenizerBase | None":
        tokenizer: PreTrainedTokenizerBase = processor
        return tokenizer

    def excerpts(self, split: str) -> list[str]:
        return [text[:EXCERPT] for text in self.data.texts(split)]

    def baseline(self) -> "Baseline | None":
        pipeline = fit(self.data.texts("train"), self.data.label_ids("train"))
        return TfidfSvm(pipeline, len(self.data.labels))

    @cached_property
    def data(self) -> TextData:
        """Load, check and normalise the data set once.

        Raises:
            UserError: it is not there, a column is missing or holds no texts, a split is empty, a group or text
                stands in two, there is one class only, or a label is seen only in test.
        """
        raw = read_splits(self.dataset, self.config, self.data_files)
        text, label = {"--task.text-column": self.text_column}, {"--task.label-column": self.label_column}
        group = {"--task.group-column": self.group_column}
        check_columns(self.dataset, raw, {**text, **label, **group}, "--task")
        check_cells(raw, {**text, **group}, label)
        named = self.group_column or ("group" if self.dataset == EMBEDDED else None)
        of_group = ("--task.group-column", named) if named else None
        splits, notes = examples_of(raw, {**text, **label}, of_group, self.missing, self.labels)
        splits, more = held_apart(self.dataset, splits, self.overlap)
        feature = next(iter(raw.values())).features[self.label_column]
        classes = classes_of(
            f"--task.label-column {self.label_column}",
            {split: rows.labels for split, rows in splits.items()},
            self.labels,
            getattr(feature, "names", None),
        )
        return self._numbered(splits, classes, (*notes, *more))

    def _numbered(self, splits: dict[str, Examples], classes: Classes, notes: tuple[str, ...]) -> TextData:
        from datasets import Dataset, DatasetDict

        size = len(splits["train"].texts)
        require_classes(self.max_train_examples, len(classes.names))
        share = min(1.0, self.max_train_examples / size) if self.max_train_examples else 1.0
        digest = hashlib.sha256(repr(classes.names).encode())
        numbered = {}
        for split in SPLITS:
            rows = splits[split]
            if share < 1:
                rows = rows.rows(sample_of(rows.labels, share))
            columns = {
                "text": rows.texts,
                "label": [classes.number[label] for label in rows.labels],
                "group": rows.groups,
            }
            for values in columns.values():
                digest.update(repr(values).encode())
            numbered[split] = Dataset.from_dict(columns)
        return TextData(DatasetDict(numbered), classes.names, digest.hexdigest(), notes)
