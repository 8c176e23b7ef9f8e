"""report.html and model_card.md of a run: a table with what differs by the kind of its models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcompress.folders.files import write_whole
from hfcompress.report import plots
from hfcompress.report.card import render_card
from hfcompress.report.clicks import clicks_card, clicks_html, curve
from hfcompress.report.html import ends, render_html
from hfcompress.report.images import images_card, images_html
from hfcompress.report.language import language_card, language_html

Report = dict[str, Any]
LINEAR = (
    "On this data the linear baseline ({name}, {value:.3f}) is {word} the {reference} ({of_reference:.3f}): a TF-IDF "
    "model may be all you need."
)
ITEM_RATES = (
    "The baseline {name} (a number an item, AUC {value:.4f}) is {word} the {reference} ({of_reference:.4f}): no "
    "embeddings may be needed at all."
)


@dataclass(frozen=True)
class Kind:
    """What a run of one kind of models says of them."""

    html: Callable[[Report, Report, list[Report]], str]
    """report.json's object, details, records of all stages -> report.html."""
    card: Callable[[Report, Report, str | None, dict[str, str] | None], str]
    """report.json's object, details, repository, places -> the card."""
    plot: Callable[[Report, Report, Report], str | None] | None = None
    """report.json's object, candidate, reference -> the card's picture; None: size, latency and accuracy."""
    keeps_answers: bool = True
    """Whether the measurement keeps what the candidate said of each test example."""
    baseline: str = LINEAR
    """What is said where a baseline is as good as the reference."""


KINDS: dict[str | None, Kind] = {
    None: Kind(render_html, render_card),
    "images": Kind(images_html, images_card),
    "clicks": Kind(clicks_html, clicks_card, plot=curve, keeps_answers=False, baseline=ITEM_RATES),
    "language": Kind(language_html, language_card, keeps_answers=False),
}
"""`kind` of measurements.json -> the above; text classifiers have none."""


def kind_of(details: Report) -> Kind:
    """Return what differs for the models of a run; of a kind that is not known, as of text classifiers."""
    kind = details.get("kind")
    return KINDS.get(kind if isinstance(kind, str) else None, KINDS[None])


def page_of(report: Report, details: Report) -> str:
    """Return report.html."""
    return kind_of(details).html(report, details, details["records"])


def card_of(
    report: Report, details: Report, repository: str | None = None, places: dict[str, str] | None = None
) -> str:
    """Return the model card.

    Args:
        repository: org/name, when the card is for the Hub; places: each file there, and the model it is of.
    """
    return kind_of(details).card(report, details, repository, places)


def pictures_of(report: Report, details: Report) -> dict[str, str]:
    """Return the pictures that the card of a repository shows: file name -> svg."""
    candidate, reference = ends(report, details)
    own = kind_of(details).plot
    plot = own(report, candidate, reference) if own is not None else None
    found = {"plot.svg": plot or plots.size_latency_accuracy(report["models"], candidate["name"], reference["name"])}
    if "allotment" in details:
        found["bits.svg"] = plots.allotment(details["allotment"]["grids"])
    return {name: plots.standalone(element) for name, element in found.items()}


def write_pages(run: Path, report: Report, details: Report) -> None:
    """Write both into the run's folder."""
    write_whole(run / "report.html", page_of(report, details))
    write_whole(run / "model_card.md", card_of(report, details))
