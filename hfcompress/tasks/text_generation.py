"""Causal language modelling: texts, the windows that calibrate a model, and those that score it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hfcompress.errors import OptionError, Reason, UserError
from hfcompress.tasks.cells import texts
from hfcompress.tasks.columns import check_columns, check_texts, groups_of
from hfcompress.tasks.documents import documents_apart
from hfcompress.tasks.find_splits import say
from hfcompress.tasks.overlap import Overlap
from hfcompress.tasks.splits import EMBEDDED, read_splits
from hfcompress.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODED_TEXTS = 64  # at once: what the tokenizer says beside the ids takes a hundred times their room
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Window:
    """Tokens that are read at once; from `first` on they are scored. `group` is the document they come from."""

    ids: list[int]
    first: int
    group: str


@dataclass(frozen=True)
class LanguageData:
    """Texts and their groups by split (train, validation, test), and a hash of them all."""

    texts: dict[str, list[str]]
    groups: dict[str, list[str]]
    fingerprint: str
    notes: tuple[str, ...] = ()
    """What a reader of the report must know of the data: rows left out, near-duplicates across splits."""


@dataclass(frozen=True)
class CausalLM(Task):
    """The next token, on texts."""

    version: ClassVar[int] = 1
    name: ClassVar[str] = "text-generation"
    pipeline_tag: ClassVar[str] = "text-generation"
    auto_class: ClassVar[str | None] = "AutoModelForCausalLM"
    takes: ClassVar[str] = "a causal LM"
    unit: ClassVar[str] = "tokens"
    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "kl", "agreement")
    drops: ClassVar[tuple[str, ...]] = ("perplexity",)
    purpose: ClassVar[str] = "Writes on where a text ends"
    measure: ClassVar[str] = "hfcompress.evaluation.measure_language:MeasureLanguage"
    budget: ClassVar[str] = "LanguageBudget"
    page: ClassVar[str] = "hfcompress.report.pages:LANGUAGE"
    metric: ClassVar[str] = "perplexity"

    dataset: str = EMBEDDED
    """licence-review (embedded), a Hub id (org/name or org/name@revision), a folder of parquet, json, csv or arrow
    files named after their split, or one such file, which is split by a hash of its groups."""
    config: str | None = None
    """The data set's configuration on the Hub, such as wikitext-2-raw-v1."""
    data_files: str | None = None
    """Which files of the folder: a pattern (review_*.parquet), or train=a.csv,test=b.csv."""
    text_column: str = "text"
    group_column: str | None = None
    """Texts of one group (a licence, a book) are not independent: the statistics resample whole groups."""
    overlap: Overlap = "refuse"
    """What happens where a group, or a text of sixteen words at least, stands in two splits: refuse the data, or drop
    such rows from train (and validation, where they stand in test)."""
    window: int = 512
    """Tokens that are read at once, in calibration and where perplexity is measured."""
    stride: int | None = None
    """Tokens by which the windows of a long text are apart: each scored token but a text's first ones has at least
    window - stride tokens before it. Half of the window when not given."""
    calibration_windows: int = 32
    """Windows of training text that the calibrated algorithms see."""
    test_tokens: int = 32_768
    """How much of the test split is read for perplexity, evenly spread over its texts."""

    def __post_init__(self) -> None:
        if self.stride is not None and not 0 < self.stride <= self.window:
            raise OptionError("stride", "from 1 to {window} ({n})", self.stride, n=self.window)
        for name, least in (("window", 8), ("calibration_windows", 1), ("test_tokens", 1)):
            if getattr(self, name) < least:
                raise OptionError(name, f"must be at least {least}", getattr(self, name))

    @property
    def step(self) -> int:
        """Tokens by which windows are apart."""
        return self.window // 2 if self.stride is None else self.stride

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`; `measured`: only where perplexity is measured this is an input."""
        if not inputs.get("measured"):
            return {}
        return {"calibration_windows": Reason("in this recipe: nothing is calibrated")}

    def fingerprint(self) -> dict[str, Any]:
        """What stands for this task in a stage's key."""
        return {
            "data": self.data.fingerprint,
            "window": self.window,
            "stride": self.step,
            "calibration_windows": self.calibration_windows,
            "test_tokens": self.test_tokens,
        }

    @property
    def max_length(self) -> int:
        """What every task calls the tokens of a request."""
        return self.window

    @cached_property
    def data(self) -> LanguageData:
        """Load and check the texts once.

        Raises:
            UserError: the data set or its text column is not there, a split holds no text, or a text stands in two.
        """
        raw = read_splits(self.dataset, self.config, self.data_files)
        group_column = self.group_column or ("group" if self.dataset == EMBEDDED else None)
        columns = {"--task.text-column": self.text_column, "--task.group-column": group_column}
        check_columns(self.dataset, raw, columns, "--task")
        check_texts(raw, columns)
        kept = {}
        for split, rows in raw.items():
            written = texts(rows, self.text_column)
            groups = groups_of(rows, group_column, "--task.group-column", split)
            kept[split] = [(t, g) for t, g in zip(written, groups, strict=True) if t is not None and t.strip()]
            if not kept[split]:
                raise UserError(f"--task.dataset {self.dataset}: the {split} split holds no text")
            if empty := len(rows) - len(kept[split]):
                say(f"--task.dataset {self.dataset}: {empty} of {len(rows)} rows of {split} hold no text: left out")
        kept, notes = documents_apart(self.dataset, kept, group_column is not None, self.overlap, "--task")
        found = {split: [text for text, _ in rows] for split, rows in kept.items()}
        named = {split: [group for _, group in rows] for split, rows in kept.items()}
        digest = hashlib.sha256(repr([sorted(found.items()), sorted(named.items())]).encode()).hexdigest()
        return LanguageData(found, named, digest, notes)

    def calibration(self, tokenizer: "PreTrainedTokenizerBase") -> Array:
        """Windows of training text, int64 [calibration_windows, window], evenly spread over the joined texts.

        Raises:
            UserError: there is less text than that.
        """
        stream = joined(tokenizer, self.data.texts["train"])
        windows = len(stream) // self.window
        if windows < self.calibration_windows:
            reason = "train has {tokens:,} tokens: {n} windows of {size}; give more text, or fewer or shorter windows"
            raise OptionError(
                "task.calibration_windows",
                reason,
                self.calibration_windows,
                tokens=len(stream),
                n=windows,
                size=self.window,
            )
        chosen = np.linspace(0, windows - 1, self.calibration_windows).round().astype(int)
        return stream[: windows * self.window].reshape(windows, self.window)[chosen]

    def blocks(self, tokenizer: "PreTrainedTokenizerBase", split: str) -> Array:
        """All joined texts of a split, int64 [blocks, window]; what does not fill a window at the end is left out.

        Raises:
            UserError: the texts do not fill one window.
        """
        stream = joined(tokenizer, self.data.texts[split])
        if len(stream) < self.window:
            reason = "the {split} split has {tokens:,} tokens; give no more"
            raise OptionError("task.window", reason, self.window, split=split, tokens=len(stream))
        return stream[: len(stream) // self.window * self.window].reshape(-1, self.window)

    def test_windows(self, tokenizer: "PreTrainedTokenizerBase") -> list[Window]:
        """The windows of test text that are scored, see `windows`."""
        return self.windows(tokenizer, "test", self.test_tokens)

    def windows(self, tokenizer: "PreTrainedTokenizerBase", split: str, wanted: int) -> list[Window]:
        """Some windows of a split whose tokens are scored: whole texts, evenly chosen, cut into strided windows.

        Args:
            wanted: scored tokens; the last window may add some.
        """
        texts, groups = self.data.texts[split], self.data.groups[split]
        order = np.random.default_rng(0).permutation(len(texts))  # any prefix is spread over the split
        found: list[Window] = []
        tokens = 0
        for row in map(int, order):
            ids = with_ends(tokenizer, tokenizer(texts[row], add_special_tokens=False)["input_ids"])
            for window in strided(ids, self.window, self.step, groups[row]):
                found.append(window)
                tokens += len(window.ids) - window.first
                if tokens >= wanted:
                    return found
        return found


def strided(ids: list[int], window: int, stride: int, group: str) -> list[Window]:
    """A text as windows `stride` apart; each of its tokens but the first is scored once."""
    found = [Window(ids[:window], 1, group)]
    end = window
    while end < len(ids):
        start = min(end, len(ids) - 1) + stride - window
        stop = min(start + window, len(ids))
        found.append(Window(ids[start:stop], end - start, group))
        end = stop
    return found


def joined(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> Array:
    """All texts one after another, each with its begin and end tokens, int64 [tokens]."""
    found = []
    for start in range(0, len(texts), ENCODED_TEXTS):
        encoded = tokenizer(texts[start : start + ENCODED_TEXTS], add_special_tokens=False)["input_ids"]
        found.append(np.array([token for ids in encoded for token in with_ends(tokenizer, ids)], dtype=np.int64))
    return np.concatenate(found)


def with_ends(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """A text's tokens between begin and end, as far as the tokenizer knows such tokens."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [*begin, *ids, *end]
