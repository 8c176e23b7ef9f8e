"""The table at the end of a run, and a sentence for every verdict."""

import textwrap
from collections.abc import Mapping
from typing import Any

from hfcompress.errors import UserError

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

AT_THE_LIMIT = 0.05  # of what is allowed is all that is left of it


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
    metric = report["models"][0]["accuracy"]["metric"]
    models = report["models"]
    own = {"perplexity": language_rows, "auc": click_rows}
    lines = own[metric](models) if metric in own else classifier_rows(models, metric)
    notes = [line for note in report["notes"] for line in textwrap.wrap(f"note: {note}", WIDTH)]
    return "\n".join([*lines, "", *notes, *verdict_lines(report)])


def classifier_rows(models: list[dict[str, Any]], metric: str) -> list[str]:
    lines = [
        f"{'model':22} {'format':12} {'MB':>8} {metric:>9} {'95% interval':>15} {'macro-F1':>8} {'p50 ms':>8} "
        f"{'runtime':12} {'peak MB':>8}"
    ]
    for model in models:
        accuracy = model["accuracy"]
        low, high = accuracy["ci95"]
        lines.append(
            f"{model['name'][:22]:22} {model['format'][:12]:12} {model['bytes'] / 1e6:8.2f} {accuracy['value']:9.4f} "
            f"{f'{low:.3f} - {high:.3f}':>15} {number(accuracy['all']['macro_f1'], '.4f'):>8} "
            f"{number(model['latency_ms']['p50'], '.2f'):>8} {model['latency_ms']['runtime'][:12]:12} "
            f"{number(model['peak_rss_mb'], '.0f'):>8}"
        )
    return lines


def click_rows(models: list[dict[str, Any]]) -> list[str]:
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


def language_rows(models: list[dict[str, Any]]) -> list[str]:
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
        return drop_sentence(verdict)
    unit = UNITS[verdict["limit"]]
    against = f" {verdict['reference']}'s" if verdict["reference"] else ""
    measured = "nothing" if verdict["measured"] is None else f"{figures(verdict['measured'])}{unit}{against}"
    text = f"{NAMES[verdict['limit']]}: {measured} measured, {figures(verdict['allowed'])}{unit} allowed"
    return text + (f", {figures(verdict['predicted'])}{unit} predicted" if verdict["predicted"] is not None else "")


def drop_sentence(verdict: dict[str, Any]) -> str:
    metric, allowed = verdict["limit"].partition(":")[2], 100 * verdict["allowed"]
    if metric == "perplexity":
        return perplexity_sentence(verdict)
    if metric == "ctr":
        return ctr_sentence(verdict)
    if verdict["difference"] is None:
        return f"{metric}: no difference was measured, {allowed:g} points of drop allowed"
    text = (
        f"{metric}: {points(verdict['difference'])} than {verdict['reference']} (at worst "
        f"{points(verdict['lower_bound'])}, {verdict['confidence']:.0%} confidence), "
        f"{allowed:g} points of drop allowed: "
    )
    if verdict["verdict"] == "cannot be shown":
        wanted = verdict["n_needed"]
        more = f"some {wanted:,} would be needed" if wanted else "no number would be enough at this difference"
        if wanted and verdict["difference"] + verdict["allowed"] < AT_THE_LIMIT * verdict["allowed"]:
            more = "and more would hardly decide: the drop itself lies at the limit"
        return text + f"cannot be shown with {verdict['n']:,} examples, {more}"
    return text + verdict["verdict"]


def perplexity_sentence(verdict: dict[str, Any]) -> str:
    """A perplexity's rise is a share of the reference's, and is written as a drop: with a minus."""
    allowed = f"{100 * verdict['allowed']:g}% more allowed"
    if verdict["difference"] is None:
        return f"perplexity: no difference was measured, {allowed}"
    change, worst = -100 * verdict["difference"], -100 * verdict["lower_bound"]
    text = (
        f"perplexity: {abs(change):.2f}% {'more' if change > 0 else 'less'} than {verdict['reference']} "
        f"(at worst {worst:+.2f}%, {verdict['confidence']:.0%} confidence), {allowed}: {verdict['verdict']}"
    )
    return text + needed(verdict, "tokens")


def ctr_sentence(verdict: dict[str, Any]) -> str:
    """A change of the click-through rate is a share of the reference's."""
    allowed = f"{100 * verdict['allowed']:g}% of loss allowed"
    if verdict["difference"] is None:
        return f"ctr: no difference was measured, {allowed}"
    text = (
        f"ctr: {verdict['difference']:+.2%} of {verdict['reference']}'s clicks (at worst "
        f"{verdict['lower_bound']:+.2%}, {verdict['confidence']:.0%} confidence), {allowed}: {verdict['verdict']}"
    )
    return text + needed(verdict, "requests")


def needed(verdict: dict[str, Any], what: str) -> str:
    """Of what cannot be shown: with how much, and how much might do."""
    if verdict["verdict"] != "cannot be shown":
        return ""
    more = f", some {verdict['n_needed']:,} would be needed" if verdict["n_needed"] else ""
    return f" with {verdict['n']:,} {what}{more}"


def points(difference: float) -> str:
    """A difference of shares in points, with its direction in words."""
    return f"{abs(100 * difference):.2f} points {'lower' if difference < 0 else 'higher'}"


def figures(value: float) -> str:
    """Four significant digits, but whole thousands: 0.09388, 12.04, 1,277."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def threads_in_words(threads: int) -> str:
    """1 thread, 2 threads."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def number(value: float | None, form: str) -> str:
    """A number, or a dash where nothing was measured."""
    return "–" if value is None else format(value, form)
