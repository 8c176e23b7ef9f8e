"""report.json of every shipped card, and of a run, has the fields of its types, and no others."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from hfcompress.report.schema import Report

CARDS = sorted((Path(__file__).parents[2] / "model_cards").glob("*/report.json"))
REPORT = TypeAdapter(Report)


def require_schema(report: Any) -> None:
    """Refuse a report with a missing field, a field of another type, or one more (which pydantic leaves out)."""
    assert REPORT.validate_python(report) == report


@pytest.mark.parametrize("file", CARDS, ids=lambda file: file.parent.name)
def test_the_reports_of_the_shipped_cards(file: Path) -> None:
    require_schema(json.loads(file.read_text()))


def test_the_report_of_a_run(finished: Path) -> None:
    require_schema(json.loads((finished / "report.json").read_text()))


def test_a_missing_field_another_type_and_a_field_more_are_seen() -> None:
    report = json.loads(CARDS[0].read_text())
    for change in ({"ok": "maybe"}, {"models": [{"name": "teacher"}]}, {"environment": {}}):
        with pytest.raises(ValidationError):
            require_schema(report | change)
    with pytest.raises(AssertionError):
        require_schema(report | {"seed": 7})
