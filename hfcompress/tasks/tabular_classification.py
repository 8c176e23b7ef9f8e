"""Predicting clicks: a click log by split, generated or from parquet, and how many rows its tables need."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hfcompress.errors import OptionError, Reason, UserError, require_numbers
from hfcompress.folders.memory import require_machine_memory
from hfcompress.tasks.click_log import SPLITS, Array, ClickLog, World
from hfcompress.tasks.hub_data import told_of_dataset
from hfcompress.tasks.task import Task

GENERATED = "generated"
ID_BYTES, ROW_BYTES = 200, 48  # of an id's truth and a row's columns in the generated log, about
IDS = ("user", "item", "category", "context")
COLUMNS = tuple(field.name for field in fields(ClickLog))


@dataclass(frozen=True)
class ClickData:
    """A log by split (train, validation, test, and live where there is one), and a hash of it all."""

    logs: dict[str, ClickLog]
    fingerprint: str

    @cached_property
    def rows(self) -> dict[str, int]:
        """How many ids of each kind the training split knows: the largest, and one."""
        return {name: int(getattr(self.logs["train"], name).max()) + 1 for name in IDS}

    def counts(self, name: str) -> Array:
        """How often each id occurs in training, [rows]."""
        return np.bincount(getattr(self.logs["train"], name), minlength=self.rows[name])


@dataclass(frozen=True)
class Clicks(Task):
    """Will this be clicked? The generated log, or any with its columns."""

    version: ClassVar[int] = 1
    name: ClassVar[str] = "tabular-classification"
    pipeline_tag: ClassVar[str] = "tabular-classification"
    auto_class: ClassVar[str | None] = None
    takes: ClassVar[str] = "a click model"
    unit: ClassVar[str] = "rows"
    metrics: ClassVar[tuple[str, ...]] = ("auc", "log_loss", "click_ece", "conversion_auc", "ctr")
    drops: ClassVar[tuple[str, ...]] = ("auc", "ctr")
    purpose: ClassVar[str] = "Ranks the items of a slate and says how likely a click and a conversion are"
    measure: ClassVar[str] = "hfcompress.evaluation.measure_clicks:MeasureClicks"
    budget: ClassVar[str] = "ClickBudget"
    page: ClassVar[str] = "hfcompress.report.pages:CLICKS"
    metric: ClassVar[str] = "auc"
    max_length: ClassVar[int] = 1
    baseline_note: ClassVar[str] = (
        "The baseline {name} (a number an item, AUC {value:.4f}) is {word} the {reference} ({of_reference:.4f}): no "
        "embeddings may be needed at all."
    )

    dataset: str = GENERATED
    """generated, or a folder or Hub id (org/name or org/name@revision) with train.parquet, validation.parquet,
    test.parquet (and live.parquet for the A/B test); columns: time (days), request, user, item, category, context
    (integers from 0), price, click, conversion."""
    users: int = 100_000
    """Of the generated log, as what follows."""
    items: int = 66_000
    categories: int = 1_000
    requests: int = 400_000
    """Of the training split; the others follow from it."""
    slate: int = 4
    """Items a request."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self)
        for name, least in (("users", 10), ("items", 10), ("categories", 1), ("requests", 100), ("slate", 2)):
            if getattr(self, name) < least:
                raise OptionError(name, f"must be at least {least}", getattr(self, name))
        if self.dataset == GENERATED:
            rows = 2 * self.slate * sum(self.split_requests().values())
            for name, size in (("users", self.users), ("items", self.items), ("categories", self.categories)):
                require_machine_memory(ID_BYTES * size, name, size)
            require_machine_memory(ROW_BYTES * rows, "requests", self.requests)

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        if self.dataset == GENERATED:
            return {}
        of_generated = ("users", "items", "categories", "requests", "seed")
        why = Reason("with {dataset} {name}: it is of the generated log", name=self.dataset)
        return dict.fromkeys(of_generated, why)

    @property
    def world(self) -> World:
        """The truth behind the generated log."""
        return World(self.users, self.items, self.categories, self.seed)

    @property
    def data(self) -> ClickData:
        if self.dataset == GENERATED:
            return generated(self)
        return read_logs(fetched(self.dataset) if self.on_hub else Path(self.dataset).expanduser())

    @property
    def identity(self) -> str:
        name = GENERATED if self.dataset == GENERATED else Path(self.dataset).name
        return f"{name}@{self.data.fingerprint[:16]}"

    def fingerprint(self) -> str:
        """What stands for this task in a stage's key."""
        return self.data.fingerprint

    def split_requests(self) -> dict[str, int]:
        """Requests of each generated split."""
        shares = {"train": 1.0, "validation": 0.06, "test": 0.25, "live": 0.6}
        return {name: max(50, round(share * self.requests)) for name, share in shares.items()}


@lru_cache(maxsize=2)
def generated(task: Clicks) -> ClickData:
    """The log that a task's numbers stand for."""
    world = task.world
    logs = {name: world.requests(name, count, task.slate) for name, count in task.split_requests().items()}
    return ClickData(logs, hash_of(logs, json.dumps(asdict(task))))


def fetched(dataset: str) -> Path:
    """The parquet files of a data set on the Hub, in its cache.

    Raises:
        UserError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = dataset.partition("@")
    with told_of_dataset(dataset):
        return Path(
            snapshot_download(
                repository, repo_type="dataset", revision=revision or None, allow_patterns=["*.parquet", "README.md"]
            )
        )


@lru_cache(maxsize=2)
def read_logs(folder: Path) -> ClickData:
    """The log in a folder of parquet files.

    Raises:
        UserError: a file or a column is missing, an id is no integer from 0, or a click is not 0 or 1.
    """
    logs = {}
    for split in SPLITS:
        file = folder / f"{split}.parquet"
        if file.is_file():
            logs[split] = read_log(file)
        elif split != "live":
            raise UserError(f"--task.dataset {folder}: has no {file.name}; see hfcompress run ctr_embeddings --help")
    hashes = {split: hash_of({"": log}, "") for split, log in logs.items()}
    for one, other in combinations(logs, 2):
        if hashes[one] == hashes[other]:
            raise UserError(f"--task.dataset {folder}: {one} and {other} are the same rows; split the log by time")
    return ClickData(logs, hash_of(logs, ""))


def read_log(file: Path) -> ClickLog:
    """One parquet file, its requests in the order in which they begin, the rows of each together."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a parquet file that can be read ({error}); write it again") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise UserError(f"{file} has no column {missing[0]}; it needs {', '.join(COLUMNS)}")
    if not table.num_rows:
        raise UserError(f"{file} has no rows; every split needs some")
    columns = {name: table.column(name).to_numpy() for name in COLUMNS}
    for name in ("request", *IDS):
        if columns[name].dtype.kind not in "iu" or columns[name].min() < 0:
            raise UserError(f"{file}: the column {name} must hold integers from 0; number the ids first")
    for name in ("click", "conversion"):
        if not np.isin(columns[name], (0, 1)).all():
            raise UserError(f"{file}: the column {name} must hold 0 or 1")
    for name in ("time", "price"):
        if not np.isfinite(columns[name]).all():
            raise UserError(f"{file}: the column {name} must hold finite numbers")
    _, number = np.unique(columns["request"], return_inverse=True)
    begun = np.full(number.max() + 1, np.inf)
    np.minimum.at(begun, number, columns["time"])  # rows of a request may have times of their own
    order = np.lexsort((columns["time"], number, begun[number]))
    kinds = {"time": np.float32, "price": np.float32, "click": np.int8, "conversion": np.int8}
    return ClickLog(**{name: columns[name][order].astype(kinds.get(name, np.int64)) for name in COLUMNS})


def write_logs(data: ClickData, folder: Path) -> None:
    """As `read_logs` reads it."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    for split, log in data.logs.items():
        table = pyarrow.table({name: getattr(log, name) for name in COLUMNS})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")


def hash_of(logs: dict[str, ClickLog], more: str) -> str:
    digest = hashlib.sha256(more.encode())
    for split, log in logs.items():
        digest.update(split.encode())
        for name in COLUMNS:
            digest.update(np.ascontiguousarray(getattr(log, name)).data)
    return digest.hexdigest()
