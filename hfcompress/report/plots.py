"""The report's plots as inline SVG that follows the page's colours, light or dark."""

import io
import re
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour
REFERENCE, CANDIDATE, OTHER, BASELINE, BAD = "#7a7f87", "#1f77b4", "#8fb8de", "#e08a1e", "#c23b3b"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hfcompress",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
}


def size_latency_accuracy(models: list[dict[str, Any]], candidate: str, reference: str) -> str:
    """Size (log) against accuracy with its interval; the area of a dot is the latency."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6))
        axes = figure.subplots()
        slowest = max(model["latency_ms"]["p50"] for model in models)
        for i, model in enumerate(sorted(models, key=lambda m: m["bytes"])):
            value, (low, high) = model["accuracy"]["value"], model["accuracy"]["ci95"]
            colour = colour_of(model, candidate, reference)
            x = model["bytes"] / 1e6
            axes.errorbar(x, 100 * value, [[100 * (value - low)], [100 * (high - value)]], color=colour, alpha=0.35)
            axes.scatter(
                x,
                100 * value,
                s=30 + 500 * model["latency_ms"]["p50"] / slowest,
                color=colour,
                alpha=0.75,
                edgecolors="none",
                zorder=3,
            )
            axes.annotate(
                model["name"],
                (x, 100 * value),
                xytext=(8, 12 if i % 2 else -16),
                textcoords="offset points",
                fontsize=9,
            )
        axes.set_xscale("log")
        axes.set_xlabel("size on disk, MB (log scale); area of a dot: p50 latency")
        axes.set_ylabel(f"{models[0]['accuracy']['metric']}, % (95% interval)")
        axes.margins(x=0.15)
        return svg(figure)


def waterfall(steps: list[tuple[str, float]], title: str, form: str) -> str:
    """What each step of the chain changed: a first bar, then the changes, in the units of `form`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.4))
        axes = figure.subplots()
        for i, (_, value) in enumerate(steps):
            before = steps[i - 1][1] if i else 0.0
            last = i == len(steps) - 1
            colour = REFERENCE if i == 0 else CANDIDATE if last else OTHER
            axes.bar(i, value - before if i else value, bottom=before, color=colour, width=0.6)
            axes.annotate(
                format(value, form),
                (i, max(value, before)),
                ha="center",
                xytext=(0, 3),
                fontsize=9,
                textcoords="offset points",
            )
        values = [value for _, value in steps]
        if min(values) > 0.7 * max(values):  # close together: show the differences, not the common height
            span = max(max(values) - min(values), 1e-9)
            axes.set_ylim(min(values) - 1.5 * span, max(values) + 0.8 * span)
        axes.set_xticks(range(len(steps)), [name for name, _ in steps], fontsize=9)
        axes.set_title(title, fontsize=11)
        axes.margins(y=0.15)
        return svg(figure)


def class_bars(reference: dict[str, Any], candidate: dict[str, Any], names: tuple[str, str]) -> str:
    """F1 of each class before and after, the rarest class at the bottom."""
    labels = sorted(reference, key=lambda label: reference[label]["n"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.2 + 0.36 * len(labels)))
        axes = figure.subplots()
        places = range(len(labels))
        axes.barh(
            [p + 0.2 for p in places],
            [reference[label]["f1"] for label in labels],
            0.38,
            color=REFERENCE,
            label=names[0],
        )
        axes.barh(
            [p - 0.2 for p in places],
            [candidate[label]["f1"] for label in labels],
            0.38,
            color=CANDIDATE,
            label=names[1],
        )
        axes.set_yticks(list(places), [f"{label} (n = {reference[label]['n']})" for label in labels])
        axes.set_xlim(0, 1)
        axes.set_xlabel("F1")
        axes.legend(loc="lower right", frameon=False)
        return svg(figure)


def colour_of(model: dict[str, Any], candidate: str, reference: str) -> str:
    if model["format"] == "baseline":
        return BASELINE
    return {candidate: CANDIDATE, reference: REFERENCE}.get(model["name"], OTHER)


def svg(figure: Figure) -> str:
    """The figure as an svg element without size, fonts or colours of its own."""
    figure.tight_layout()
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        r'<svg xmlns="http://www.w3.org/2000/svg" '
        r'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" role="img">',
        text,
        count=1,
    )
