"""What a foreign tokenizer's normalizers may make of a text: not thousands of characters of each one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError

MOST_GROWTH = 1000  # characters that all replacements together may make of one


def require_bounded_growth(tokenizer: Any, folder: Path) -> None:
    """Refuse a fast tokenizer whose normalizers could make a short text take gigabytes.

    A text is cut before it is tokenized (tasks/cutting.py), so that a bounded growth bounds memory. Patterns need
    no bound here: the engine of tokenizers (Oniguruma) gives up a match after ten million steps back.

    Args:
        tokenizer: of transformers; folder: where it is from.

    Raises:
        UserError: with how much of one character they could make.
    """
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return
    growth = 1
    for rule in rules(json.loads(normalizer.__getstate__())):
        if rule.get("type") == "Replace":
            matches_nothing = "Regex" in rule.get("pattern", {})  # such as a*: also put between all characters
            growth *= max(1, len(rule.get("content", "")) + matches_nothing)
    if growth > MOST_GROWTH:
        raise UserError(
            f"{folder / 'tokenizer.json'}: its normalizers could make {growth:,} characters of one (at most "
            f"{MOST_GROWTH:,}); fetch the tokenizer again, or leave the model out"
        )


def rules(found: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a nested description."""
    if isinstance(found, dict):
        yield found
    for value in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from rules(value)
