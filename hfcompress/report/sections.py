"""Sections of a report that a stage's own file fills: what `Run.compare(sections=...)` was given, name by name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from hfcompress.folders.escaping import markdown
from hfcompress.report import plots
from hfcompress.report.templates import template

Contents = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """How what a stage found is shown."""

    page: Callable[[Contents], str]
    """Contents of the stage's file -> HTML."""
    card: Callable[[Contents], str] | None = None
    """Contents -> Markdown for the model card."""
    pictures: Callable[[Contents], dict[str, str]] | None = None
    """Contents -> file name -> svg, for a repository's card."""


def allotment_page(found: Contents) -> str:
    """Return where the bits of each matrix went."""
    picture = plots.allotment(found["grids"])
    return template("section_allotment.html.j2").render(found=found, kinds=by_kind(found), picture=picture)


def by_kind(allotment: Contents) -> list[dict[str, Any]]:
    """Return a row per kind of matrix (q_proj, embed_tokens, ...): count, bytes, bits per weight, predicted KL."""
    kinds: dict[str, dict[str, Any]] = {}
    for name, module in allotment["modules"].items():
        kind = name.rpartition(".")[2]
        row = kinds.setdefault(kind, {"kind": kind, "count": 0, "bytes": 0.0, "weights": 0, "kl": 0.0})
        row["count"] += 1
        for part in ("bytes", "weights", "kl"):
            row[part] += module[part]
    return [row | {"bits": 8 * row["bytes"] / row["weights"]} for row in kinds.values()]


def autotune_page(found: Contents) -> str:
    """Return what each configuration that was tried lost."""
    return template("section_autotune.html.j2").render(found=found)


def summaries_page(found: Contents) -> str:
    """Return the summaries that the models wrote, with their metrics."""
    return template("section_summaries.html.j2").render(found=found)


def rollout_page(found: Contents) -> str:
    """Return what replay, shadow and the A/B test showed."""
    ab = found["ab"]
    picture = plots.confidence_sequence(ab["looks"], ab["decided"], "ctr") if ab["looks"] else None
    return template("section_rollout.html.j2").render(found=found, picture=picture)


def rollout_card(found: Contents) -> str:
    """Return the verdict of the A/B test as Markdown."""
    said = markdown(f"Tolerance {found['tolerance']}: {found['ab']['text']}.".replace("\n", "; "))
    return f"## The A/B test\n\n{said}\n\n"


def json_page(name: str, found: Contents) -> str:
    """Return a section that has no page of its own: its numbers and texts as a table, what is nested as JSON."""
    rows = {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}
    return template("section.html.j2").render(name=name, rows=rows)


SECTIONS = {
    "allotment": Section(
        allotment_page,
        card=lambda _: "![bits of every matrix, by layer](bits.svg)\n\n",
        pictures=lambda found: {"bits.svg": plots.allotment(found["grids"])},
    ),
    "autotune": Section(autotune_page),
    "summaries": Section(summaries_page),
    "rollout": Section(rollout_page, card=rollout_card),
}


def sections_of(details: dict[str, Any]) -> dict[str, Contents]:
    """Return the contents of a run's sections by name; details.json of earlier releases has them beside the rest."""
    earlier = {name: details[name] for name in SECTIONS if name in details}
    return dict(details.get("sections", earlier))


def pages_of(details: dict[str, Any]) -> list[Markup]:
    """Return the sections of a run as HTML, in the recipe's order."""
    return [
        Markup(SECTIONS[name].page(found) if name in SECTIONS else json_page(name, found))
        for name, found in sections_of(details).items()
    ]


def known(details: dict[str, Any]) -> list[tuple[Section, Contents]]:
    """Return the sections of a run that have a page of their own, with their contents."""
    return [(SECTIONS[name], contents) for name, contents in sections_of(details).items() if name in SECTIONS]


def cards_of(details: dict[str, Any], repository: str | None) -> str:
    """Return the sections of a run as Markdown for its card.

    Args:
        repository: org/name, when the card is for the Hub, where its pictures lie beside it.
    """
    shown = [(section, contents) for section, contents in known(details) if repository or not section.pictures]
    return "".join(section.card(contents) for section, contents in shown if section.card)


def section_pictures(details: dict[str, Any]) -> dict[str, str]:
    """Return the pictures of a run's sections: file name -> svg."""
    return {
        file: drawn
        for section, contents in known(details)
        if section.pictures
        for file, drawn in section.pictures(contents).items()
    }
