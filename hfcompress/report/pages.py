"""report.html and model_card.md of a run: what differs by its task stands in a `Page` that the task names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from hfcompress.folders.files import write_whole
from hfcompress.report import plots
from hfcompress.report.card import render_card
from hfcompress.report.clicks import clicks_card, clicks_html, curve
from hfcompress.report.console import click_rows, labelled_rows, language_rows
from hfcompress.report.html import ends, render_html
from hfcompress.report.images import images_card, images_html
from hfcompress.report.language import language_card, language_html
from hfcompress.report.sections import section_pictures
from hfcompress.tasks import measured_task

if TYPE_CHECKING:
    from hfcompress.tasks.task import Task

Report = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """How the runs of a task are shown."""

    html: Callable[[Report, Report, list[Report]], str]
    """report.json's object, details, records of all stages -> report.html."""
    card: Callable[[Report, Report, str | None, dict[str, str] | None], str]
    """report.json's object, details, repository, places -> the card."""
    rows: Callable[[list[Report], "type[Task]"], list[str]]
    """The models of report.json, task -> the lines of the table in the console."""
    plot: Callable[[Report, Report, Report], str | None] | None = None
    """report.json's object, candidate, reference -> the card's picture; None: size, latency and accuracy."""


TEXTS = Page(render_html, render_card, labelled_rows)
IMAGES = Page(images_html, images_card, labelled_rows)
CLICKS = Page(clicks_html, clicks_card, click_rows, plot=curve)
LANGUAGE = Page(language_html, language_card, language_rows)


def shown_by(details: Report) -> Page:
    """Return the page that the task of a run names."""
    page: Page = resolve_name(measured_task(details).page)
    return page


def page_of(report: Report, details: Report) -> str:
    """Return report.html."""
    return shown_by(details).html(report, details, details["records"])


def card_of(
    report: Report, details: Report, repository: str | None = None, places: dict[str, str] | None = None
) -> str:
    """Return the model card.

    Args:
        repository: org/name, when the card is for the Hub; places: each file there, and the model it is of.
    """
    return shown_by(details).card(report, details, repository, places)


def pictures_of(report: Report, details: Report) -> dict[str, str]:
    """Return the pictures that the card of a repository shows: file name -> svg."""
    candidate, reference = ends(report, details)
    own = shown_by(details).plot
    plot = own(report, candidate, reference) if own is not None else None
    found = {"plot.svg": plot or plots.size_latency_accuracy(report["models"], candidate["name"], reference["name"])}
    found |= section_pictures(details)
    return {name: plots.standalone(element) for name, element in found.items()}


def write_pages(run: Path, report: Report, details: Report) -> None:
    """Write both into the run's folder."""
    write_whole(run / "report.html", page_of(report, details))
    write_whole(run / "model_card.md", card_of(report, details))
