"""Task: what an example is, how it is read and encoded, and what is measured of a model's answers to it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hfcompress.errors import Reason
from hfcompress.tasks.splits import names_repository

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from hfcompress.tasks.linear import Baseline


class Task(Protocol):
    """The data of a recipe, and what a model is to do with it.

    A task is a frozen dataclass whose fields are the options `--task.*`; each has a default and a docstring. It
    derives from this class (or from `Labelled`), stands in a file named after `name`, and has a row in `TASKS`.
    Nothing outside its file asks which task it has: what differs is said by the attributes below.

    - Importing its file imports no torch: `--help` reads the options.
    - Reading `data` twice, in two processes, gives the same rows in the same order, and the same `fingerprint`.
    - No group, and no text, stands in two of train, validation and test, unless the user chose otherwise.
    - What is wrong with the data raises `UserError` when `data` is read: one line that names the option.
    - A record names the data by `identity`: it holds no path of this machine.
    """

    version: ClassVar[int]
    """Raised by one when the same data is read or encoded in another way than before: part of every key."""
    name: ClassVar[str]
    """Its row in TASKS, and with underscores its file."""
    pipeline_tag: ClassVar[str]
    """What the Hub calls it: the card's `pipeline_tag`."""
    auto_class: ClassVar[str | None]
    """The class of transformers that loads its models; None where transformers has none."""
    takes: ClassVar[str]
    """The kind of model that it needs, in words, as its spec says of itself (`described_as`): "a text encoder"."""
    unit: ClassVar[str]
    """What is counted in the test split, in the plural: "texts"."""
    metrics: ClassVar[tuple[str, ...]]
    """What is measured with an interval: names in `hfcompress.evaluation.metrics.METRICS`."""
    drops: ClassVar[tuple[str, ...]]
    """Those of them whose paired difference is measured: what `--budget.drop` may limit, and what may choose the best
    checkpoint."""
    purpose: ClassVar[str]
    """What its models do, for a card: a format of `labels`, how many there are."""
    measure: ClassVar[str]
    """module:class of the stage that measures its models (see `evaluation/measure.py`)."""
    budget: ClassVar[str] = "Budget"
    """The class in `hfcompress.budget` of its recipes' limits."""
    page: ClassVar[str]
    """module:name of the `Page` that shows a run of it (see `report/pages.py`)."""
    baseline_note: ClassVar[str] = ""
    """What a reader is told where the baseline is as good as the reference: a format of `name`, `value`, `word`,
    `reference` and `of_reference`; empty where nothing is."""
    has_images: ClassVar[bool] = False
    """Whether `data.images(split)` gives images, with which an export can be calibrated."""
    varied: ClassVar[bool] = False
    """Whether training examples are varied anew in each epoch, so that a teacher's outputs cannot be kept."""

    dataset: str
    """An embedded data set, a folder or file, or a Hub id."""

    @property
    def metric(self) -> str:
        """The metric that stands first in tables: one of `metrics`."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens that a request is cut to; what a task without tokens says has no effect."""
        ...

    @property
    def data(self) -> Any:
        """The data set, read and checked once.

        Raises:
            UserError: the data cannot be used.
        """
        ...

    def fingerprint(self) -> Any:
        """Return what enters a stage's key: a hash of the data, and the options that change what is made."""
        ...

    @property
    def identity(self) -> str:
        """The data set's name and the first half of a hash of its content, parted by @."""
        return f"{Path(self.dataset).name}@{self.data.fingerprint[:16]}"

    @property
    def on_hub(self) -> bool:
        """Whether the data set's name is a Hub id."""
        return names_repository(self.dataset)

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """Return the options without effect on these inputs of a stage, and why: see `stage.unused_options`."""
        return {}


class Labelled(Task, Protocol):
    """A task whose examples each have a truth that a model with a head of `labels` predicts.

    `data` has `labels` (names, in the order of the head's rows), and for each split `inputs(split)` (as a predictor
    takes them), `label_ids(split)` (int [examples]) and `groups(split)` (names).
    """

    classes: ClassVar[bool] = True
    """Whether an example's truth is one of the labels: then F1 of each label is measured, and a report shows which
    examples changed theirs."""

    def encode(self, processor: Any, split: str) -> Any:
        """Return a split as a model is trained on it: a row has the model's inputs, `labels` and `index`.

        Args:
            processor: the model's tokenizer or image processor.
        """
        ...

    def padded_by(self, processor: Any) -> "PreTrainedTokenizerBase | None":
        """Return what pads a batch of encoded examples; None where they are of one shape, and stacked as they are."""
        ...

    def excerpts(self, split: str) -> list[str]:
        """Return what is shown of each example in a report."""
        ...

    def baseline(self) -> "Baseline | None":
        """Return a model without a transformer, fitted on train; None where there is none."""
        return None

    def truth(self, split: str) -> "np.ndarray[Any, Any]":
        """Return what metrics hold the answers against, [examples]."""
        import numpy as np

        return np.array(self.data.label_ids(split))
