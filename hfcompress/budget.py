"""Budget and Verdict: the limits that a user states, and whether a measured model keeps them."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from hfcompress.errors import OptionError, Reason, UserError
from hfcompress.tasks import TASKS, task_class

LIMITS = (
    "disk_mb",
    "ram_mb",
    "peak_over_bare_mb",
    "latency_ms",
    "first_token_ms",
    "latency_ratio",
    "embedding_ratio",
    "sram_kb",
    "flash_kb",
)
PREDICTED_LIMITS = (
    "disk_mb", "ram_mb", "peak_over_bare_mb", "latency_ms", "latency_ratio", "embedding_ratio", "first_token_ms"
)  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """Limits on the candidate. MB are 10^6 bytes; what is not given is not limited."""

    disk_mb: float | None = None
    """All files that must be shipped."""
    ram_mb: float | None = None
    """Peak memory of a fresh process that loads and runs the model."""
    latency_ms: float | None = None
    """Median time of one request."""
    latency_ratio: float | None = None
    """Median time of one request over the reference's, both in onnxruntime."""
    drop: dict[str, float] = field(default_factory=dict)
    """Metric -> how much lower than the reference's it may be: accuracy 0.02 allows 2 points."""
    confidence: float = 0.95
    """One-sided confidence with which a drop must be shown to lie within its limit."""

    def __post_init__(self) -> None:
        for name in LIMITS:
            value = getattr(self, name, None)
            if value is not None and not 0 < value < math.inf:
                wanted = "above 0" if math.isfinite(value) else "a finite number; leave it out for none"
                raise OptionError(f"budget.{name}", "a limit must be {wanted}", float(value), wanted=wanted)
        for metric, value in self.drop.items():
            if metric not in self.drops():
                known = " or ".join(self.drops())
                raise OptionError("budget.drop", "there is no such metric; give {known}", metric, known=known)
            if not 0 <= value < 1:
                reason = "a share from 0 to below 1 (0.02 is 2 points)"
                raise OptionError("budget.drop", reason, (metric, value))
        if not 0.5 < self.confidence < 1:
            raise OptionError("budget.confidence", "must lie between 0.5 and 1, such as 0.95", self.confidence)

    @property
    def on_chip(self) -> "ImageBudget | None":
        """The budget itself where it limits a microcontroller's memory, else None."""
        return None

    @classmethod
    def drops(cls) -> tuple[str, ...]:
        """The metrics that may be limited: those of any task that such a budget is for."""
        tasks = [task_class(name) for name in TASKS]
        return tuple(dict.fromkeys(metric for task in tasks if task.budget == "Budget" for metric in task.drops))

    def require_drops(self, task: Any) -> None:
        """Refuse a limit on a metric that is not measured for this task.

        Raises:
            UserError: with what may be limited.
        """
        if wrong := next((metric for metric in self.drop if metric not in task.drops), None):
            raise UserError(f"--budget.drop {wrong}: it is not measured here; give {' or '.join(task.drops)}")

    def without_other_units(self, given: set[str]) -> "Budget":
        """Return these limits as defaults beside given ones (budget.ram-mb): of one in two units none is left."""
        return self


@dataclass(frozen=True)
class LanguageBudget(Budget):
    """Limits on a causal LM. `latency_ms` is a decoded token, and `drop` takes perplexity: 0.03 allows 3% more."""

    ram_gb: float | None = None
    """The same as `ram_mb` in GB (10^9 bytes): give one of them. The process answers at `context` tokens."""
    context: int = 2048
    """Tokens, prompt and answer together, that memory and time are limited at."""
    first_token_ms: float | None = None
    """Time to the first token of a prompt that fills the context."""

    def __post_init__(self) -> None:
        if self.ram_gb is not None:
            if not 0 < self.ram_gb < math.inf:
                raise OptionError("budget.ram_gb", "a limit must be above 0 and finite", self.ram_gb)
            if self.ram_mb is not None and not math.isclose(self.ram_mb, 1e3 * self.ram_gb):
                reason = "{budget.ram_gb} {gb:g} limits the same memory; give one of them"
                raise OptionError("budget.ram_mb", reason, self.ram_mb, gb=self.ram_gb)
            object.__setattr__(self, "ram_mb", 1e3 * self.ram_gb)
        elif self.ram_mb is not None:
            object.__setattr__(self, "ram_gb", self.ram_mb / 1e3)
        if self.context < 1:
            raise OptionError("budget.context", "must be at least 1", self.context)
        super().__post_init__()

    @classmethod
    def drops(cls) -> tuple[str, ...]:
        return task_class("text-generation").drops

    def without_other_units(self, given: set[str]) -> "LanguageBudget":
        if given & {"budget.ram-mb", "budget.ram-gb"}:
            return dataclasses.replace(self, ram_mb=None, ram_gb=None)
        return self


@dataclass(frozen=True)
class EmbeddingBudget(Budget):
    """Limits on an encoder whose embeddings were made smaller."""

    embedding_ratio: float | None = None
    """Bytes of the embeddings (and of the projection behind them) over the reference's: 0.125 is eight times fewer."""


@dataclass(frozen=True)
class ClickBudget(Budget):
    """Limits on a click model. `drop` takes auc (0.005 is half a point) and ctr: 0.005 is half a percent of the clicks
    that the reference's choices earn."""

    @classmethod
    def drops(cls) -> tuple[str, ...]:
        return task_class("tabular-classification").drops


@dataclass(frozen=True)
class ImageBudget(Budget):
    """Limits on an image classifier. KB are 1024 bytes, as microcontrollers' data sheets count."""

    peak_over_bare_mb: float | None = None
    """Peak memory of a fresh process that loads and runs the model, less what it takes before it loads the model."""
    sram_kb: float | None = None
    """Peak of live activations of the int8 graph, in KB of 1024 bytes."""
    flash_kb: float | None = None
    """int8 weights, int32 biases and scales of the int8 graph, in KB of 1024 bytes."""

    @property
    def on_chip(self) -> "ImageBudget | None":
        return None if self.sram_kb is None and self.flash_kb is None else self

    @classmethod
    def drops(cls) -> tuple[str, ...]:
        return ("accuracy",)


@dataclass(frozen=True)
class Verdict:
    """One limit of a candidate against what was measured (report.json, `verdicts`)."""

    limit: str
    candidate: str
    reference: str | None
    kind: str
    allowed: float
    predicted: float | None
    measured: float | None
    ok: bool
    difference: float | None = None
    lower_bound: float | None = None
    confidence: float | None = None
    n: int | None = None
    n_needed: int | None = None
    verdict: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As report.json has it: the statistics stand only with a drop."""
        values = dataclasses.asdict(self)
        if not self.limit.startswith("drop:"):
            for name in ("difference", "lower_bound", "confidence", "n", "n_needed", "verdict"):
                del values[name]
        return values


def verdicts(
    budget: Budget,
    candidate: str,
    reference: str,
    latency_reference: str,
    models: list[dict[str, Any]],
    differences: dict[str, Any],
    predicted: dict[str, Any],
) -> list[Verdict]:
    """Hold what was measured against every stated limit.

    Args:
        models: the measured rows, as in report.json.
        differences: metric -> paired difference of the candidate to the reference (see evaluation/measure.py).
        predicted: disk_mb, ram_mb, latency_ms, latency_ratio, embedding_ratio as `plan` predicted them, where it did.

    Raises:
        UserError: the budget limits nothing.
    """
    rows = {row["name"]: row for row in models}
    row, against = rows[candidate], rows[latency_reference]
    ratio = row["latency_ms"]["p50"] / against["latency_ms"]["p50"]
    embeddings, whole = row.get("embedding_bytes"), rows[reference].get("embedding_bytes")
    relative_to = {"latency_ratio": latency_reference, "embedding_ratio": reference}
    measured = {
        "disk_mb": row["bytes"] / 1e6,
        "ram_mb": row["peak_rss_mb"],
        "peak_over_bare_mb": over_bare_mb(row),
        "latency_ms": row["latency_ms"]["p50"],
        "first_token_ms": row["latency_ms"].get("first_token"),
        "latency_ratio": ratio,
        "sram_kb": row.get("sram_kb"),
        "flash_kb": row.get("flash_kb"),
        "embedding_ratio": embeddings / whole if embeddings and whole else None,
    }
    found = []
    for limit, value in measured.items():
        allowed = getattr(budget, limit, None)
        if allowed is not None:
            found.append(
                Verdict(
                    limit,
                    candidate,
                    relative_to.get(limit),
                    "relative" if limit in relative_to else "absolute",
                    allowed,
                    predicted.get(limit),
                    value,
                    ok=value is not None and value <= allowed,
                )
            )
    found += [
        drop_verdict(metric, allowed, candidate, reference, differences.get(metric))
        for metric, allowed in budget.drop.items()
    ]
    if not found:
        raise UserError(Reason("the budget limits nothing; give at least one limit, such as {budget.disk_mb} 12"))
    return found


def over_bare_mb(row: dict[str, Any]) -> float | None:
    """Peak memory less what the runtime takes before it loads the model; None where either was not measured."""
    peak, bare = row["peak_rss_mb"], row.get("bare_rss_mb")
    return None if peak is None or bare is None else float(peak - bare)


def drop_verdict(
    metric: str, allowed: float, candidate: str, reference: str, difference: dict[str, Any] | None
) -> Verdict:
    """A drop holds only when it is shown: too few examples to decide is not ok."""
    common: dict[str, Any] = {
        "limit": f"drop:{metric}",
        "candidate": candidate,
        "reference": reference,
        "kind": "relative",
        "allowed": allowed,
        "predicted": None,
    }
    from hfcompress.evaluation.statistics import Difference, n_needed, verdict

    if difference is None:
        return Verdict(**common, measured=None, ok=False, verdict="cannot be shown")
    found = Difference(**{field.name: difference[field.name] for field in dataclasses.fields(Difference)})
    decision = verdict(found, allowed)
    return Verdict(
        **common,
        measured=-found.difference,
        ok=decision == "shown",
        difference=found.difference,
        lower_bound=found.lower_bound,
        confidence=found.confidence,
        n=found.n,
        n_needed=n_needed(found, allowed),
        verdict=decision,
    )


def predicted_verdicts(budget: Budget, candidate: str, predicted: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each stated limit; `ok` is None where nothing is predicted, as for every drop."""
    limits = {name: getattr(budget, name, None) for name in PREDICTED_LIMITS} | {
        f"drop:{m}": drop for m, drop in budget.drop.items()
    }
    rows = []
    for limit, allowed in limits.items():
        if allowed is not None:
            value = predicted.get(limit)
            ok = None if value is None else value <= allowed
            rows.append({"limit": limit, "candidate": candidate, "allowed": allowed, "predicted": value, "ok": ok})
    return rows
