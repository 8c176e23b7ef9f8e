"""report.html and model_card.md of a run, by the kind of its models."""

from pathlib import Path
from typing import Any

from hfcompress.folders.files import write_whole


def page_of(report: dict[str, Any], details: dict[str, Any]) -> str:
    """report.html."""
    kind = details.get("kind")
    if kind == "language":
        from hfcompress.report.language import language_html

        return language_html(report, details, details["records"])
    if kind == "clicks":
        from hfcompress.report.clicks import clicks_html

        return clicks_html(report, details, details["records"])
    if kind == "images":
        from hfcompress.report.images import images_html

        return images_html(report, details, details["records"])
    from hfcompress.report.html import render_html

    return render_html(report, details, details["records"])


def card_of(
    report: dict[str, Any],
    details: dict[str, Any],
    repository: str | None = None,
    places: dict[str, str] | None = None,
) -> str:
    """The model card.

    Args:
        repository: org/name, when the card is for the Hub; places: each file there, and the model it is of.
    """
    kind = details.get("kind")
    if kind == "language":
        from hfcompress.report.language import language_card

        return language_card(report, details, repository, places)
    if kind == "clicks":
        from hfcompress.report.clicks import clicks_card

        return clicks_card(report, details, repository, places)
    if kind == "images":
        from hfcompress.report.images import images_card

        return images_card(report, details, repository, places)
    from hfcompress.report.card import render_card

    return render_card(report, details, repository, places)


def pictures_of(report: dict[str, Any], details: dict[str, Any]) -> dict[str, str]:
    """The pictures that the card of a repository shows: file name -> svg."""
    from hfcompress.report import plots
    from hfcompress.report.clicks import curve
    from hfcompress.report.html import ends

    candidate, reference = ends(report, details)
    plot = curve(report, candidate, reference) if details.get("kind") == "clicks" else None
    found = {"plot.svg": plot or plots.size_latency_accuracy(report["models"], candidate["name"], reference["name"])}
    if "allotment" in details:
        found["bits.svg"] = plots.allotment(details["allotment"]["grids"])
    return {name: plots.standalone(element) for name, element in found.items()}


def write_pages(run: Path, report: dict[str, Any], details: dict[str, Any]) -> None:
    """Both, into the run's folder."""
    write_whole(run / "report.html", page_of(report, details))
    write_whole(run / "model_card.md", card_of(report, details))
