"""What report.json holds, as types.

MB and GB are 10^6 and 10^9 bytes, times are milliseconds. A JSON Schema of `Report` stands in the documentation.
"""

from typing import Any, NotRequired

from typing_extensions import TypedDict  # that of typing is taken by pydantic from Python 3.12 on


class Environment(TypedDict):
    """The machine and the libraries that the figures depend on."""

    versions: dict[str, str]
    cpu: str
    threads: int
    gpu: str | None


class Accuracy(TypedDict):
    """The scores of a model on the test split."""

    metric: str
    """The metric that the task reports first."""
    value: float
    n: int
    """Examples; tokens where a language model is scored."""
    ci95: list[float]
    """Lower and upper end of the value's interval, from a bootstrap over groups."""
    all: dict[str, Any]
    """Every metric by name; `ci95` holds their intervals, `per_class` each label's scores."""


class Latency(TypedDict):
    """The time of one request; of a language model's token behind the whole context."""

    runtime: str
    threads: int
    batch: int
    sequence_length: int | None
    """Tokens of the request; None where a request is no text of a fixed length."""
    p50: float
    p95: float
    p99: float
    runs: int
    per_token: NotRequired[float]
    first_token: NotRequired[float]


class Prediction(TypedDict, total=False):
    """What the plan predicted of a model before it was made; empty or None where nothing is predicted."""

    parameters: int
    disk_mb: float
    ram_mb: float | None
    latency_ms: float | None
    latency_ratio: float | None
    first_token_ms: float | None
    peak_over_bare_mb: float | None
    sram_kb: float | None
    flash_kb: float | None
    embedding_ratio: float | None


class ModelRow(TypedDict):
    """One model that was compared."""

    name: str
    stage: str
    """The class of the stage that made it."""
    path: str | None
    """Its folder below the run's; None of a baseline, which is no model's folder."""
    format: str
    parameters: int
    bytes: int
    """Of all its files."""
    bits_per_parameter: float
    dtypes: dict[str, int]
    """How many weights are stored in each type."""
    embedding_bytes: NotRequired[int]
    peak_rss_mb: float | None
    """Most memory of a fresh process that loads the model and answers."""
    bare_rss_mb: float | None
    """Memory of that process before it loads the model."""
    loaded_rss_mb: NotRequired[float | None]
    load_ms: float | None
    expected_bytes: NotRequired[dict[str, float]]
    """What the plan says the process's memory is made of."""
    sram_kb: NotRequired[float]
    flash_kb: NotRequired[float]
    accuracy: Accuracy
    latency_ms: Latency
    predicted: Prediction | None


class VerdictRow(TypedDict):
    """One limit of the budget, and whether it is shown to hold."""

    limit: str
    candidate: str
    reference: str | None
    kind: str
    """absolute: a measured number of the candidate; relative: a difference or ratio to the reference."""
    allowed: float
    predicted: float | None
    measured: float | None
    ok: bool
    difference: NotRequired[float | None]
    lower_bound: NotRequired[float | None]
    confidence: NotRequired[float | None]
    n: NotRequired[int | None]
    n_needed: NotRequired[int | None]
    """Examples that would decide a drop of this size, at the variance seen."""
    verdict: NotRequired[str | None]
    """shown, not shown, or exceeded: a drop that is not shown is not ok."""


class Report(TypedDict):
    """report.json of a run."""

    schema_version: int
    task: NotRequired[str]
    """The row of `hfcompress.tasks.TASKS` that was measured; runs of earlier versions do not say it."""
    recipe: str
    scale: str
    created: str
    """UTC, ISO 8601."""
    environment: Environment
    notes: list[str]
    models: list[ModelRow]
    budget: dict[str, Any]
    """The limits as they were given; `drop` maps a metric to how much lower than the reference's it may be."""
    verdicts: list[VerdictRow]
    ok: bool
    """Whether every verdict holds."""
