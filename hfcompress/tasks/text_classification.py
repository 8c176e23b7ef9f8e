"""Text classification: a data set on disk or on the Hub, its columns, and what counts on it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.errors import UserError
from hfcompress.tasks.splits import (
    EMBEDDED,
    SPLITS,
    check_columns,
    class_names,
    class_values,
    column,
    names_repository,
    read_splits,
    with_validation,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

LEAST_TOKENS = 3  # of a text: one between [CLS] and [SEP]


@dataclass(frozen=True)
class TextData:
    """A loaded task: splits train, validation and test with the columns text, label (int), group (str)."""

    splits: "DatasetDict"
    labels: list[str]
    fingerprint: str

    kind: ClassVar[str] = "texts"

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

    columns = dict(tokenizer(texts, truncation=True, max_length=max_length))
    lengths = [len(ids) for ids in columns["input_ids"]]
    index = list(range(first, first + len(texts)))
    return Dataset.from_dict({**columns, "labels": labels, "index": index, "length": lengths})


@dataclass(frozen=True)
class TextClassification:
    """One label a text."""

    dataset: str = EMBEDDED
    """licence-review (embedded), a Hub id (org/name or org/name@revision), or a folder of parquet, json or csv files
    named after their split."""
    config: str | None = None
    """The data set's configuration on the Hub, such as ledgar."""
    data_files: str | None = None
    """Which files of the folder, as a pattern: review_*.parquet."""
    text_column: str = "text"
    label_column: str = "label"
    group_column: str | None = None
    """Texts of one group (a contract, a licence) are not independent: the statistics resample whole groups."""
    max_length: int = 128
    """Tokens a text is cut to."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """What the best checkpoint is chosen by: accuracy or macro_f1."""
    max_train_examples: int | None = None
    """Only the first so many training texts (the others too, in proportion); for trying things."""

    def __post_init__(self) -> None:
        for name, least in (("max_length", LEAST_TOKENS), ("max_train_examples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--task.{name.replace('_', '-')} {value}: must be at least {least}")

    def fingerprint(self) -> dict[str, Any]:
        """What stands for this task in a stage's key: the columns and a hash of the data itself."""
        return {"data": self.data.fingerprint, "max_length": self.max_length, "metric": self.metric}

    @property
    def identity(self) -> str:
        """The data set's name and a hash of its texts, as a record names it: never a path of this machine."""
        return f"{Path(self.dataset).name}@{self.data.fingerprint[:16]}"

    @property
    def on_hub(self) -> bool:
        """Whether the data set's name is a Hub id."""
        return names_repository(self.dataset)

    @cached_property
    def data(self) -> TextData:
        """Load, check and normalise the data set once.

        Raises:
            UserError: it is not there, a column is missing, a split is empty, there is one class only, or a label
                is seen only in test.
        """
        raw = read_splits(self.dataset, self.config, self.data_files)
        for split, rows in raw.items():
            self._check_columns(split, rows)
        splits = with_validation(self.dataset, {s: self._columns(rows) for s, rows in raw.items()})
        values = class_values(self.label_column, splits)
        return self._numbered(splits, values, class_names(raw["train"].features[self.label_column], values))

    def _check_columns(self, split: str, rows: "Dataset") -> None:
        wanted = {
            "--task.text-column": self.text_column,
            "--task.label-column": self.label_column,
            "--task.group-column": self.group_column,
        }
        check_columns(self.dataset, split, rows, wanted)
        for option, name in wanted.items():
            values = column(rows, name) if name is not None else []
            missing = next((i for i, value in enumerate(values) if value is None or value == ""), None)
            if missing is not None:
                raise UserError(f"{option} {name}: row {missing} of the {split} split is empty; drop such rows")

    def _columns(self, rows: "Dataset") -> "Dataset":
        """Keep text, label and group under these names; without a group column every text is its own group."""
        from datasets import Dataset

        group_column = self.group_column or ("group" if self.dataset == EMBEDDED else None)
        groups = [str(v) for v in column(rows, group_column)] if group_column else [str(i) for i in range(len(rows))]
        texts = [str(v) for v in column(rows, self.text_column)]
        return Dataset.from_dict({"text": texts, "label": column(rows, self.label_column), "group": groups})

    def _numbered(self, splits: "dict[str, Dataset]", values: list[Any], labels: list[str]) -> TextData:
        from datasets import Dataset, DatasetDict

        number = {value: i for i, value in enumerate(values)}
        share = min(1.0, self.max_train_examples / len(splits["train"])) if self.max_train_examples else 1.0
        digest = hashlib.sha256(repr(labels).encode())
        numbered = {}
        for split in SPLITS:
            rows = splits[split].select(range(max(1, round(share * len(splits[split])))))
            columns = {
                "text": column(rows, "text"),
                "label": [number[v] for v in column(rows, "label")],
                "group": column(rows, "group"),
            }
            for values in columns.values():
                digest.update(repr(values).encode())
            numbered[split] = Dataset.from_dict(columns)
        return TextData(DatasetDict(numbered), labels, digest.hexdigest())
