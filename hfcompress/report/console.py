"""The table at the end of a run, and a sentence for every verdict."""

from typing import Any

NAMES = {"disk_mb": "disk", "ram_mb": "memory", "latency_ms": "latency", "latency_ratio": "latency ratio"}
UNITS = {"disk_mb": " MB", "ram_mb": " MB", "latency_ms": " ms", "latency_ratio": "x"}


def table(report: dict[str, Any]) -> str:
    """Models, then verdicts, then notes; plain text, at most 119 wide."""
    metric = report["models"][0]["accuracy"]["metric"]
    lines = [
        f"{'model':22} {'format':13} {'MB':>8} {metric:>9} {'95% interval':>15} {'macro-F1':>8} {'p50 ms':>8} "
        f"{'runtime':12} {'peak MB':>8}"
    ]
    for model in report["models"]:
        accuracy = model["accuracy"]
        low, high = accuracy["ci95"]
        lines.append(
            f"{model['name']:22} {model['format']:13} {model['bytes'] / 1e6:8.2f} {accuracy['value']:9.4f} "
            f"{f'{low:.3f} - {high:.3f}':>15} {accuracy['all']['macro_f1']:8.4f} {model['latency_ms']['p50']:8.2f} "
            f"{model['latency_ms']['runtime']:12} {number(model['peak_rss_mb'], '.0f'):>8}"
        )
    return "\n".join([*lines, "", *(f"note: {note}" for note in report["notes"]), *verdict_lines(report)])


def verdict_lines(report: dict[str, Any]) -> list[str]:
    """One sentence a verdict, and whether the budget holds."""
    lines = [
        f"{'holds' if verdict['ok'] is True else 'FAILS':6} {sentence(verdict)}" for verdict in report["verdicts"]
    ]
    failed = sum(verdict["ok"] is not True for verdict in report["verdicts"])
    return [
        *lines,
        "The budget holds."
        if lines and not failed
        else f"The budget does NOT hold: {failed} of {len(lines)} limits fail.",
    ]


def sentence(verdict: dict[str, Any]) -> str:
    """What a verdict says, for a person."""
    if verdict["limit"].startswith("drop:"):
        return drop_sentence(verdict)
    unit = UNITS[verdict["limit"]]
    against = f" of {verdict['reference']}'s" if verdict["reference"] else ""
    text = (
        f"{NAMES[verdict['limit']]}: {number(verdict['measured'], '.3g')}{unit}{against} measured, "
        f"{verdict['allowed']:g}{unit} allowed"
    )
    return text + (f", {verdict['predicted']:.3g}{unit} predicted" if verdict["predicted"] is not None else "")


def drop_sentence(verdict: dict[str, Any]) -> str:
    metric, allowed = verdict["limit"].partition(":")[2], 100 * verdict["allowed"]
    if verdict["difference"] is None:
        return f"{metric}: no difference was measured, {allowed:g} points of drop allowed"
    change = 100 * verdict["difference"]
    direction = "lower" if change < 0 else "higher"
    text = (
        f"{metric}: {abs(change):.2f} points {direction} than {verdict['reference']} (at {verdict['confidence']:.0%} "
        f"confidence not worse than {100 * verdict['lower_bound']:+.2f}), {allowed:g} points of drop allowed: "
    )
    if verdict["verdict"] == "cannot be shown":
        wanted = verdict["n_needed"]
        more = f"some {wanted} would be needed" if wanted else "no number would be enough at this difference"
        return text + f"cannot be shown with {verdict['n']} texts, {more}"
    return text + verdict["verdict"]


def number(value: float | None, form: str) -> str:
    """A number, or a dash where nothing was measured."""
    return "–" if value is None else format(value, form)
