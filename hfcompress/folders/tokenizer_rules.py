"""What a foreign tokenizer's rules may take: no thousands of characters for one, and no hours for a text."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError

MOST_GROWTH = 1000  # characters that all replacements together may make of one
MOST_SECONDS = 1.0  # of the processor, for all PROBES; patterns in use take a thousandth of it
# Runs of characters that patterns repeat, each ended by one that it does not have; behind it some of every kind, as
# the engine tries nothing where a character that a match must have does not follow at all. Patterns whose time doubles
# with every character take the limit at the shorter ones, those of the length's third power at the longest.
PROBES = tuple(
    unit * (length // len(unit)) + end + "aB9 \n!\u6f22"
    for length in (16, 32, 64, 256, 1024)
    for unit, end in (("a", "!"), ("aB", "9"), ("7", "x"), (" ", "x"), ("!", "x"), ("\n", "x"), ("\u00e9", "9"),
                      ("\u6f22", "x"), ("a b1.", "\u6f22"))
)  # fmt: skip


def require_bounded_growth(tokenizer: Any, folder: Path) -> None:
    """Refuse a fast tokenizer whose normalizers could make a short text take gigabytes.

    A text is cut before it is tokenized (tasks/cutting.py), so that a bounded growth bounds memory.

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


def require_quick_patterns(tokenizer: Any, folder: Path) -> None:
    """Refuse a fast tokenizer whose patterns take seconds for a short text.

    The engine of tokenizers (Oniguruma) gives up after ten million steps back from one position: a pattern just below
    that limit at every position takes a tenth of a second a character.

    Args:
        tokenizer: of transformers; folder: where it is from.

    Raises:
        UserError: the time is over, or the engine has given up.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = [part for part in (getattr(backend, "normalizer", None), getattr(backend, "pre_tokenizer", None)) if part]
    if not any("Regex" in rule for part in steps for rule in rules(written(part))):
        return
    begun = time.thread_time()
    for text in PROBES:
        try:
            for part in steps:
                (part.normalize_str if hasattr(part, "normalize_str") else part.pre_tokenize_str)(text)
            if time.thread_time() - begun < MOST_SECONDS:
                continue
            reason = f"they take more than {MOST_SECONDS:g} s for a few words"
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # pyo3's, which has no public name
                raise
            reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{folder / 'tokenizer.json'}: its patterns step back without end ({reason}); fetch the tokenizer again, "
            "or leave the model out"
        )


def written(step: Any) -> Any:
    """Return a normalizer or pre-tokenizer as tokenizer.json has it; nothing of one that is transformers' own code."""
    try:
        return json.loads(step.__getstate__())
    except Exception:  # tokenizers raises a bare Exception: "Custom PreTokenizer cannot be serialized"
        return {}


def rules(found: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a nested description."""
    if isinstance(found, dict):
        yield found
    for value in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from rules(value)
