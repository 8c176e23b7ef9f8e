"""Text classification: a data set on disk or on the Hub, its columns, and what counts on it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
EMBEDDED = "licence-review"


@dataclass(frozen=True)
class TextData:
    """A loaded task: splits train, validation and test with the columns text, label (int), group (str)."""

    splits: "DatasetDict"
    labels: list[str]
    fingerprint: str

    def texts(self, split: str) -> list[str]:
        return list(self.splits[split]["text"])

    def label_ids(self, split: str) -> list[int]:
        return list(self.splits[split]["label"])

    def groups(self, split: str) -> list[str]:
        return list(self.splits[split]["group"])

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
    metric: str = "accuracy"
    """What the best checkpoint is chosen by: accuracy or macro_f1."""
    max_train_examples: int | None = None
    """Only the first so many training texts (the others too, in proportion); for trying things."""

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
        splits = self._with_validation({s: self._columns(rows) for s, rows in raw.items()})
        labels = self._labels(raw, splits)
        return self._numbered(splits, labels)

    def _check_columns(self, split: str, rows: "Dataset") -> None:
        wanted = {"--task.text-column": self.text_column, "--task.label-column": self.label_column}
        if self.group_column:
            wanted["--task.group-column"] = self.group_column
        for option, column in wanted.items():
            if column not in rows.column_names:
                raise UserError(
                    f"{option} {column}: the {split} split has no such column, only {', '.join(rows.column_names)}"
                )
        if len(rows) == 0:
            raise UserError(f"--task.dataset {self.dataset}: the {split} split is empty")
        for option, column in wanted.items():
            missing = next((i for i, value in enumerate(rows[column]) if value is None or value == ""), None)
            if missing is not None:
                raise UserError(f"{option} {column}: row {missing} of the {split} split is empty; drop such rows")

    def _columns(self, rows: "Dataset") -> "Dataset":
        """Keep text, label and group under these names; without a group column every text is its own group."""
        from datasets import Dataset

        group_column = self.group_column or ("group" if self.dataset == EMBEDDED else None)
        groups = [str(v) for v in rows[group_column]] if group_column else [str(i) for i in range(len(rows))]
        return Dataset.from_dict(
            {"text": [str(v) for v in rows[self.text_column]], "label": rows[self.label_column], "group": groups}
        )

    def _with_validation(self, splits: "dict[str, Dataset]") -> "dict[str, Dataset]":
        """Without a validation split, a tenth of the training groups becomes one, by a hash of the group."""
        if "validation" in splits:
            return splits
        rows = splits["train"]
        held = [int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10 == 0 for group in rows["group"]]
        if not any(held) or all(held):
            raise UserError(
                f"--task.dataset {self.dataset}: too few training groups to set a validation split aside; "
                "give one as validation.parquet"
            )
        return {
            "train": rows.select([i for i, h in enumerate(held) if not h]),
            "validation": rows.select([i for i, h in enumerate(held) if h]),
            "test": splits["test"],
        }

    def _labels(self, raw: "dict[str, Dataset]", splits: "dict[str, Dataset]") -> list[str]:
        seen = sorted(set(splits["train"]["label"]), key=lambda value: (str(type(value)), value))
        if len(seen) < 2:
            raise UserError(
                f"--task.label-column {self.label_column}: only one class in train ({seen[0]!r}); "
                "a classifier needs two"
            )
        for split in ("validation", "test"):
            unknown = sorted({str(v) for v in set(splits[split]["label"]) - set(seen)})
            if unknown:
                raise UserError(
                    f"--task.label-column {self.label_column}: {', '.join(map(repr, unknown[:3]))} stands "
                    f"only in {split}, never in train; drop these rows or add training texts"
                )
        feature = raw["train"].features[self.label_column]
        names = getattr(feature, "names", None)
        return [names[value] if names else str(value) for value in seen]

    def _numbered(self, splits: "dict[str, Dataset]", labels: list[str]) -> TextData:
        from datasets import Dataset, DatasetDict

        values = sorted(set(splits["train"]["label"]), key=lambda value: (str(type(value)), value))
        number = {value: i for i, value in enumerate(values)}
        share = min(1.0, self.max_train_examples / len(splits["train"])) if self.max_train_examples else 1.0
        digest = hashlib.sha256(repr(labels).encode())
        numbered = {}
        for split in SPLITS:
            rows = splits[split].select(range(max(1, round(share * len(splits[split])))))
            columns = {
                "text": list(rows["text"]),
                "label": [number[v] for v in rows["label"]],
                "group": list(rows["group"]),
            }
            for column in columns.values():
                digest.update(repr(column).encode())
            numbered[split] = Dataset.from_dict(columns)
        return TextData(DatasetDict(numbered), labels, digest.hexdigest())


def names_repository(dataset: str) -> bool:
    """Whether it is a Hub id, org/name or org/name@revision, and no folder here."""
    return dataset.count("/") == 1 and dataset[0] not in "./~" and not Path(dataset).is_dir()


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
        raise UserError(f"--task.dataset {dataset}: no such folder; give a folder, a Hub id (org/name), or {EMBEDDED}")
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
            f"--task.dataset {dataset}: cannot be had from the Hub ({_first_line(error)}); check the name "
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
                f"--task.dataset: {files[0]} {what} ({_first_line(cause)}); convert it to UTF-8 parquet, json or csv"
            ) from error
    return _need_splits(dataset, found)


def _need_splits(dataset: str, found: "dict[str, Dataset]") -> "dict[str, Dataset]":
    for split in ("train", "test"):
        if split not in found:
            raise UserError(
                f"--task.dataset {dataset}: no {split} split; name a file {split}.parquet, "
                f"{split}.csv or {split}.jsonl"
            )
    return found


def _is_shard(file: Path) -> bool:
    """Hub shards are named train-00000-of-00002."""
    return "-of-" in file.stem


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
