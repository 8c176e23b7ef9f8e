"""The report's plots as inline SVG that follows the page's colours, light or dark."""

import html
import io
import math
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from hfcompress.errors import EXTRAS, has
from hfcompress.evaluation.metrics import metric_named
from hfcompress.folders.escaping import one_line, terminal

if has("matplotlib"):  # else a report is written without plots
    import matplotlib

    matplotlib.use("svg")

    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.ticker import LogLocator, NullFormatter

INK = "#010203"  # stands for the page's text colour
REFERENCE, CANDIDATE, OTHER, BASELINE = "#7a7f87", "#1f77b4", "#8fb8de", "#e08a1e"
LABELS_WIDE = 44  # characters that fit side by side under a waterfall
NAME = 60  # characters of a label or a model's name that are written out
POINTS = 72  # of an inch, and the figures' dpi: so a display coordinate is a point
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hfcompress",
    "text.parse_math": False,  # a class may be called "$fee$"
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

NOT_DRAWN = f'<p>Not drawn, since matplotlib is not installed: pip install "hfcompress[{EXTRAS["matplotlib"][0]}]"</p>'
"""Stands in a report in place of each plot."""

Box = tuple[float, float, float, float]  # left, bottom, right, top


P = ParamSpec("P")


def plot(draw: Callable[P, str]) -> Callable[P, str]:
    """Wrap a function that draws, so that without matplotlib it returns NOT_DRAWN."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        return draw(*args, **kwargs) if has("matplotlib") else NOT_DRAWN

    return drawn


@plot
def size_latency_accuracy(models: list[dict[str, Any]], candidate: str, reference: str) -> str:
    """Size (log) against accuracy, or perplexity, with its interval; the area of a dot is the latency."""
    metric = models[0]["accuracy"]["metric"]
    shown = metric_named(metric)
    scale = 100 if shown.percent else 1
    unit = ", %" if shown.percent else "" if shown.larger_is_better else ", lower is better"
    slowest = max(model["latency_ms"]["p50"] or 0 for model in models) or 1
    dots = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), dpi=POINTS)
        axes = figure.subplots()
        for model in sorted(models, key=lambda m: -(m["latency_ms"]["p50"] or 0)):  # small dots over large ones
            accuracy, colour = model["accuracy"], colour_of(model, candidate, reference)
            x, y = model["bytes"] / 1e6, scale * accuracy["value"]
            below, above = y - scale * accuracy["ci95"][0], scale * accuracy["ci95"][1] - y
            area = 30 + 500 * (model["latency_ms"]["p50"] or 0) / slowest
            axes.errorbar(x, y, [[max(below, 0)], [max(above, 0)]], color=colour, alpha=0.4)
            axes.scatter(x, y, s=area, color=colour, alpha=0.8, edgecolors="none", zorder=3)
            dots.append((model["name"], x, y, math.sqrt(area) / 2))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("size on disk, MB (log scale); area of a dot: p50 latency")
        axes.set_ylabel(f"{metric}{unit} (95% interval)")
        axes.margins(x=0.12, y=0.08)
        figure.tight_layout()
        name_dots(axes, dots)
        return svg(figure, f"Size on disk against {metric} of every model, the area of a dot being its latency")


def standalone(element: str) -> str:
    """An svg element as a file of its own, its text in a grey that reads on light and dark pages."""
    return '<?xml version="1.0" encoding="utf-8"?>\n' + element.replace("currentColor", "#7a7f87")


def name_dots(axes: Any, dots: list[tuple[str, float, float, float]]) -> None:
    """Write each dot's name at the nearest place where it hides no other dot or name.

    Args:
        dots: name, x and y in data coordinates, radius in points.
    """
    frame = axes.get_window_extent()
    centres = [axes.transData.transform((x, y)) for _, x, y, _ in dots]
    taken: list[Box] = [(cx - r, cy - r, cx + r, cy + r) for (cx, cy), (_, _, _, r) in zip(centres, dots, strict=True)]
    for (cx, cy), (name, x, y, radius) in zip(centres, dots, strict=True):
        name = one_line(name, NAME)
        wide, high = 5.6 * len(name), 11.0  # of a 9 point font, near enough
        for step in range(1, 60):
            angle, distance = 2.4 * step, radius + 4 + 2.5 * step  # a spiral by the golden angle
            left = cx + distance * math.cos(angle) - (wide if math.cos(angle) < 0 else 0)
            bottom = cy + distance * math.sin(angle) - high / 2
            box = (left, bottom, left + wide, bottom + high)
            inside = box[0] >= frame.x0 and box[2] <= frame.x1 + 8 and box[1] >= frame.y0 and box[3] <= frame.y1 + 8
            if inside and not any(overlap(box, other) for other in taken):
                break
        taken.append(box)
        axes.annotate(
            name,
            (x, y),
            xytext=(box[0] - cx, box[1] - cy + 2),
            textcoords="offset points",
            fontsize=9,
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.35, "lw": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@plot
def waterfall(steps: list[tuple[str, float]], title: str, decimals: int) -> str:
    """What each step of the chain changed: a first bar, then changes; more than `decimals` where values are small."""
    values = [value for _, value in steps]
    top = max(values) or 1.0
    form = f".{max(decimals, 1 - math.floor(math.log10(min((v for v in values if v > 0), default=1.0))))}f"
    span = max(max(values) - min(values), 0.02 * top)  # of equal values an axis that can be read
    cut = min(values) > 0.7 * top  # close together: show the differences, not the common height
    low = min(values) - 1.2 * span if cut else 0.0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.6), dpi=POINTS)
        axes = figure.subplots()
        for i, value in enumerate(values):
            before = values[i - 1] if i else low
            colour = REFERENCE if i == 0 else CANDIDATE if i == len(values) - 1 else OTHER
            axes.bar(i, value - before, bottom=before, color=colour, width=0.6)
            axes.annotate(
                format(value, form) + (f"\n({value - before:+{form}})" if i else ""),
                (i, max(value, before)),
                ha="center",
                xytext=(0, 3),
                fontsize=9,
                textcoords="offset points",
            )
        axes.set_ylim(low, top + 0.25 * (top - low))
        names = [terminal(name) for name, _ in steps]
        widest = max(len(line) for name in names for line in name.splitlines())
        if len(names) * widest > LABELS_WIDE:  # side by side they would run into each other
            names = [name.replace("\n", " ") for name in names]
            axes.set_xticks(range(len(names)), names, fontsize=9, rotation=20, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(range(len(names)), names, fontsize=9)
        axes.set_title(title + (" (axis cut)" if cut else ""), fontsize=11)
        return svg(figure, f"What each stage changed: {title}")


@plot
def class_bars(reference: dict[str, Any], candidate: dict[str, Any], names: tuple[str, str], rare: int) -> str:
    """F1 of each class before and after, the rarest class at the bottom; one of fewer than `rare` texts says so."""
    labels = sorted(reference, key=lambda label: reference[label]["n"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.4 + 0.42 * len(labels)), dpi=POINTS)
        axes = figure.subplots()
        for side, (entries, colour) in enumerate(((reference, REFERENCE), (candidate, CANDIDATE))):
            places = [place + 0.2 - 0.4 * side for place in range(len(labels))]
            bars = axes.barh(
                places, [entries[label]["f1"] for label in labels], 0.38, color=colour, label=legend(names[side])
            )
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        counts = [reference[label]["n"] for label in labels]
        axes.set_yticks(
            range(len(labels)),
            [
                f"{one_line(label, NAME)} (n = {n}{', rare' if n < rare else ''})"
                for label, n in zip(labels, counts, strict=True)
            ],
        )
        axes.set_xlim(0, 1.04)
        axes.set_xlabel("F1")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0)
        return svg(figure, f"F1 of every class with {names[0]} and with {names[1]}")


@plot
def allotment(grids: dict[str, dict[str, Any]]) -> str:
    """Bits of each matrix as a picture: a column a layer, a row a kind of matrix; darker is more bits.

    Args:
        grids: module -> {"bits", "group_size", ...}, as allotment.json has them.
    """
    layers = sorted({int(name.split(".")[2]) for name in grids if name.startswith("model.layers.")})
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in grids))
    columns = len(layers) or 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.2 + 0.34 * len(kinds)), dpi=POINTS)
        axes = figure.subplots()
        for name, grid in grids.items():
            row, inside = kinds.index(name.rpartition(".")[2]), name.startswith("model.layers.")
            left, wide = (int(name.split(".")[2]), 1) if inside else (0, columns)
            axes.barh(row, wide, left=left, height=0.9, color=CANDIDATE, alpha=0.12 + 0.11 * grid["bits"])
            centred: dict[str, Any] = {"ha": "center", "va": "center"}
            if grid["bits"] == 8:  # the page's ink cannot be read on the darkest blue
                centred["color"] = "white"
            if columns <= 16 or not inside:
                size = grid["group_size"] or "row"
                axes.text(left + wide / 2, row, f"{grid['bits']} · g{size}", fontsize=8, **centred)
            else:
                axes.text(left + 0.5, row, str(grid["bits"]), fontsize=7, **centred)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        axes.set_xticks([layer + 0.5 for layer in layers], [str(layer) for layer in layers], fontsize=8)
        axes.set_xlabel("layer; a matrix outside of the layers takes the whole row")
        axes.set_xlim(0, columns)
        return svg(figure, "Bits of every matrix, by layer")


@plot
def compression_curve(
    points: list[dict[str, Any]], reference: float, candidate: dict[str, Any], allowed: float | None
) -> str:
    """AUC against how many times smaller a model is, a line a kind; what the reference has, and what is allowed.

    Args:
        points: kind, ratio, auc, low, high (of its interval); candidate: ratio, auc.
    """
    kinds = sorted({point["kind"] for point in points})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), dpi=POINTS)
        axes = figure.subplots()
        for i, kind in enumerate(kinds):
            colour = f"C{i}"
            mine = sorted((p for p in points if p["kind"] == kind), key=lambda p: p["ratio"])
            ratios = [p["ratio"] for p in mine]
            axes.plot(ratios, [p["auc"] for p in mine], "o-", color=colour, label=legend(kind), ms=4, lw=1.2)
            axes.vlines(ratios, [p["low"] for p in mine], [p["high"] for p in mine], color=colour, alpha=0.35)
        axes.scatter(candidate["ratio"], candidate["auc"], s=90, marker="*", color=INK, zorder=4, label="delivered")
        axes.axhline(reference, color=REFERENCE, lw=1, label="whole tables")
        if allowed is not None:
            axes.axhline(reference - allowed, color=REFERENCE, lw=1, ls="--", label="allowed")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("times smaller than in float32, the whole delivered model (log scale)")
        axes.set_ylabel("AUC on the test split (95% interval)")
        axes.legend(frameon=False, fontsize=9, loc="lower left")
        return svg(figure, "AUC against compression, a line for each kind of table")


@plot
def confidence_sequence(looks: list[dict[str, Any]], decided: dict[str, Any] | None, metric: str) -> str:
    """An A/B test's estimate over time between the bounds that hold at all looks together; above 0 it is accepted."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), dpi=POINTS)
        axes = figure.subplots()
        events = [look["events"] for look in looks]
        axes.fill_between(
            events, [look["lower"] for look in looks], [look["upper"] for look in looks], color=OTHER, alpha=0.35, lw=0
        )
        axes.plot(events, [look["theta"] for look in looks], color=CANDIDATE, lw=1.4)
        axes.axhline(0, color=INK, lw=1)
        shown = looks[len(looks) // 20 :]
        reach = max(max(abs(look["lower"]), abs(look["upper"])) for look in shown)
        axes.set_ylim(-1.1 * reach, 1.1 * reach)  # the first looks' bounds are very wide
        if decided:
            axes.axvline(decided["events"], color=CANDIDATE, lw=1, ls="--")
            word = "accepted" if decided["lower"] > 0 else "rolled back"
            axes.annotate(f" {word} after {decided['events']:,}", (decided["events"], 0.95 * reach), fontsize=9)
        axes.set_xlabel("events")
        axes.set_ylabel(f"{metric}: new minus what is tolerated")
        return svg(figure, f"The A/B test of {metric}: estimate and bounds after each look")


@plot
def reliability(bins: dict[str, list[dict[str, float]]]) -> str:
    """Observed against predicted click-through rate, a line a model: on the diagonal the probabilities are right."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.2), dpi=POINTS)
        axes = figure.subplots()
        for (name, found), colour in zip(bins.items(), (REFERENCE, CANDIDATE), strict=True):
            x, y = [b["predicted"] for b in found], [b["observed"] for b in found]
            axes.plot(x, y, "o-", color=colour, ms=4, label=legend(name))
        top = max(b["predicted"] for found in bins.values() for b in found)
        axes.plot([0, top], [0, top], color=INK, lw=0.6)
        axes.set_xlabel("predicted click-through rate")
        axes.set_ylabel("observed")
        axes.legend(frameon=False, fontsize=9)
        return svg(figure, "Observed against predicted click-through rate")


def legend(name: str) -> str:
    """A name in a legend, where matplotlib leaves out what begins with an underscore."""
    return one_line(name, NAME).replace("_", "\u2009_", 1) if name.startswith("_") else one_line(name, NAME)


def colour_of(model: dict[str, Any], candidate: str, reference: str) -> str:
    if model["format"] == "baseline":
        return BASELINE
    return {candidate: CANDIDATE, reference: REFERENCE}.get(model["name"], OTHER)


def svg(figure: Figure, description: str) -> str:
    """The figure as an svg element in the page's text colour, without size or ids of groups of its own."""
    for told in figure.findobj(Text):  # XML has no control characters
        told.set_text(terminal(told.get_text()))
    figure.tight_layout()
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # the same in every figure, and nothing refers to them
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}" '
        f'role="img" aria-label="{html.escape(one_line(description))}">' + text[text.index(">") + 1 :]
    )
