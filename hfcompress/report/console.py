"""The table at the end of a run, and a sentence for every verdict."""

import textwrap
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError
from hfcompress.evaluation.metrics import METRICS, metric_named
from hfcompress.evaluation.metrics.metric import Metric
from hfcompress.tasks import measured_task

if TYPE_CHECKING:
    from hfcompress.tasks.task import Task

WIDTH = 119
NAMES = {
    "disk_mb": "disk",
    "ram_mb": "memory",
    "latency_ms": "latency",
    "first_token_ms": "first token",
    "latency_ratio": "latency ratio",
    "embedding_ratio": "embedding bytes",
    "peak_over_bare_mb": "memory over the bare runtime",
    "sram_kb": "SRAM",
    "flash_kb": "flash",
}
UNITS = {
    "disk_mb": " MB",
    "ram_mb": " MB",
    "latency_ms": " ms",
    "first_token_ms": " ms",
    "latency_ratio": "x",
    "embedding_ratio": "x",
    "peak_over_bare_mb": " MB",
    "sram_kb": " KB",
    "flash_kb": " KB",
}
OUTCOMES = {"holds": "holds", "fails": "FAILS", "cannot be shown": "NOT SHOWN"}


def candidate_row(report: dict[str, Any]) -> dict[str, Any]:
    """What report.json says of the model that the verdicts are about.

    Raises:
        UserError: there is no verdict, or none of a model.
    """
    candidates = [verdict["candidate"] for verdict in report["verdicts"][:1]]
    found: list[dict[str, Any]] = [row for row in report["models"] if row["name"] in candidates]
    if not found:
        raise UserError("report.json: its verdicts name none of its models; run the recipe again")
    return found[0]


def table(report: dict[str, Any]) -> str:
    """Models, then notes, then verdicts; plain text, at most 119 wide."""
    task = measured_task(report)
    lines = resolve_name(task.page).rows(report["models"], task)
    notes = [line for note in report["notes"] for line in textwrap.wrap(f"note: {note}", WIDTH)]
    return "\n".join([*lines, "", *notes, *verdict_lines(report)])


def beside(task: "type[Task]") -> Metric:
    """Return the metric that stands beside the first one in short tables: the last that a budget may limit."""
    return METRICS[task.drops[-1]]


def labelled_rows(models: list[dict[str, Any]], task: "type[Task]") -> list[str]:
    """Of a task with labels: its metric with an interval, and another one beside it."""
    metric, other = models[0]["accuracy"]["metric"], beside(task)
    lines = [
        f"{'model':22} {'format':12} {'MB':>8} {metric:>9} {'95% interval':>15} {other.label:>8} {'p50 ms':>8} "
        f"{'runtime':12} {'peak MB':>8}"
    ]
    for model in models:
        accuracy = model["accuracy"]
        low, high = accuracy["ci95"]
        lines.append(
            f"{model['name'][:22]:22} {model['format'][:12]:12} {model['bytes'] / 1e6:8.2f} {accuracy['value']:9.4f} "
            f"{f'{low:.3f} - {high:.3f}':>15} {number(accuracy['all'][other.said], other.form):>8} "
            f"{number(model['latency_ms']['p50'], '.2f'):>8} {model['latency_ms']['runtime'][:12]:12} "
            f"{number(model['peak_rss_mb'], '.0f'):>8}"
        )
    return lines


def click_rows(models: list[dict[str, Any]], task: "type[Task]") -> list[str]:
    """CTR is of what the model would choose, a share of clicks; predicted CTR is the mean probability."""
    lines = [
        f"{'model':26} {'format':12} {'MB':>8} {'AUC':>7} {'CTR':>8} {'log-loss':>8} {'pred. CTR':>9} {'ECE':>7} "
        f"{'p50 ms':>8} {'peak MB':>8}"
    ]
    for model in models:
        every = model["accuracy"]["all"]
        lines.append(
            f"{model['name'][:26]:26} {model['format'][:12]:12} {model['bytes'] / 1e6:8.3f} {every['auc']:7.4f} "
            f"{every['ctr']:8.4%} {every['log_loss']:8.4f} {every['predicted_ctr']:9.4f} {every['ece']:7.4f} "
            f"{number(model['latency_ms']['p50'], '.3f'):>8} {number(model['peak_rss_mb'], '.0f'):>8}"
        )
    return lines


def language_rows(models: list[dict[str, Any]], task: "type[Task]") -> list[str]:
    """KL and agreement are against the reference, on the same tokens."""
    lines = [
        f"{'model':18} {'format':12} {'MB':>9} {'bits':>6} {'perplexity':>10} {'KL, nats':>9} {'top-1':>7} "
        f"{'ms a token':>10} {'first, ms':>10} {'peak MB':>8}"
    ]
    for model in models:
        every, timed = model["accuracy"]["all"], model["latency_ms"]
        lines.append(
            f"{model['name'][:18]:18} {model['format'][:12]:12} {model['bytes'] / 1e6:9.2f} "
            f"{model['bits_per_parameter']:6.2f} {every['perplexity']:10.3f} {number(every['kl'], '.5f'):>9} "
            f"{number(every['agreement'], '.2%'):>7} {timed['per_token']:10.2f} {timed['first_token']:10.1f} "
            f"{number(model['peak_rss_mb'], '.0f'):>8}"
        )
    return lines


def verdict_lines(report: Mapping[str, Any]) -> list[str]:
    """One sentence a verdict, and whether the budget holds."""
    lines = [
        line
        for verdict in report["verdicts"]
        for line in textwrap.wrap(
            f"{OUTCOMES[outcome(verdict)]:9} {sentence(verdict)}", WIDTH, subsequent_indent=" " * 10
        )
    ]
    failed = sum(verdict["ok"] is not True for verdict in report["verdicts"])
    return [
        *lines,
        "The budget holds."
        if lines and not failed
        else f"The budget does NOT hold: {failed} of {len(report['verdicts'])} limits fail.",
    ]


def outcome(verdict: dict[str, Any]) -> str:
    """ "holds", "fails", or "cannot be shown": too few examples, or nothing measured, which is no failure."""
    if verdict["ok"] is True:
        return "holds"
    return "cannot be shown" if verdict.get("verdict") == "cannot be shown" else "fails"


def sentence(verdict: dict[str, Any]) -> str:
    """What a verdict says, for a person."""
    if verdict["limit"].startswith("drop:"):
        return metric_named(verdict["limit"].partition(":")[2]).sentence(verdict)
    unit = UNITS[verdict["limit"]]
    against = f" {verdict['reference']}'s" if verdict["reference"] else ""
    measured = "nothing" if verdict["measured"] is None else f"{figures(verdict['measured'])}{unit}{against}"
    text = f"{NAMES[verdict['limit']]}: {measured} measured, {figures(verdict['allowed'])}{unit} allowed"
    return text + (f", {figures(verdict['predicted'])}{unit} predicted" if verdict["predicted"] is not None else "")


def figures(value: float) -> str:
    """Four significant digits, but whole thousands: 0.09388, 12.04, 1,277."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def threads_in_words(threads: int) -> str:
    """1 thread, 2 threads."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def number(value: float | None, form: str) -> str:
    """A number, or a dash where nothing was measured."""
    return "–" if value is None else format(value, form)
