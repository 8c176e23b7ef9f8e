"""What a stage of a recipe found stands in the report of its run, whatever the task."""

import json
from pathlib import Path
from typing import Any

import pytest

from hfcompress.planning.plan import Plan
from hfcompress.report.pages import card_of, page_of, pictures_of
from hfcompress.report.sections import sections_of

CARDS = Path(__file__).parents[2] / "model_cards"
HEADINGS = {"allotment": "Where the bits went", "rollout": "Before users: shadow, replay, A/B"}


def shipped(card: str) -> tuple[dict[str, Any], dict[str, Any]]:
    report, details = (json.loads((CARDS / card / file).read_text()) for file in ("report.json", "details.json"))
    return report, details | {"records": details.get("records", [])}


@pytest.mark.parametrize(
    ("card", "name"), [("summarize_7b-small", "allotment"), ("ctr_embeddings-small", "rollout")], ids=str
)
def test_sections_are_shown_in_pages_cards_and_pictures(card: str, name: str) -> None:
    report, before = shipped(card)
    assert name in sections_of(before), "beside the rest, as earlier releases wrote it"
    contents = before[name]
    bare = {key: value for key, value in before.items() if key not in HEADINGS} | {"sections": {}}
    details = bare | {"sections": {name: contents}}
    assert page_of(report, details) == page_of(report, before)
    assert card_of(report, details, "org/name", {}) == card_of(report, before, "org/name", {})
    assert HEADINGS[name] in page_of(report, details)
    assert HEADINGS[name] not in page_of(report, bare)
    assert ("bits.svg" in pictures_of(report, details)) == (name == "allotment")
    assert card_of(report, details, "org/name", {}) != card_of(report, bare, "org/name", {})


def test_a_classifier_has_a_rollout_too() -> None:
    report, details = shipped("legal_bert-small")
    rollout = shipped("ctr_embeddings-small")[1]["rollout"]
    assert HEADINGS["rollout"] in page_of(report, details | {"sections": {"rollout": rollout}})


def test_a_section_of_ones_own_is_a_table_and_its_texts_are_text() -> None:
    report, details = shipped("legal_bert-small")
    page = page_of(report, details | {"sections": {"<b>mine": {"seconds": 1.5, "found": {"a": [1]}, "text": "<i>x"}}})
    assert "<h2>&lt;b&gt;mine</h2>" in page
    assert "&lt;i&gt;x" in page
    assert "{&#34;a&#34;: [1]}" in page


def test_what_compare_does_not_take_is_a_mistake_of_the_recipe_in_plan_too() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'note'"):
        Plan().compare(reference=None, candidate=None, budget=None, task=None, measure=None, note=("x",))  # type: ignore[arg-type, call-arg]
