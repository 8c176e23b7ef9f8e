"""Default lengths of texts and requests that a model has no positions for: lowered, since nobody typed them."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfcompress.errors import UserError

LENGTHS = {"task": "max_length", "measure": "sequence_length"}  # group -> its option in tokens


def within_positions(options: dict[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Return a recipe's options with the lengths that were not given at most what base and teacher have positions for.

    Args:
        given: names of the options on the command line (task.max-length). These stay: they are refused later.
    """
    from hfcompress.architectures.text_inputs import text_limit

    typed, found = set(given), dict(options)
    for name in ("base", "teacher"):
        folder = Path(str(options.get(name))).expanduser()
        if not (folder / "config.json").is_file():
            continue
        try:
            limit = text_limit(folder)
        except UserError:  # said where the folder is read
            continue
        for group, field in LENGTHS.items():
            length = getattr(found.get(group), "__dict__", {}).get(field)  # a field, not a property
            option = f"{group}.{field.replace('_', '-')}"
            if length is not None and length > limit and option not in typed:
                found[group] = replace(found[group], **{field: limit})
                print(f"hfcompress: --{option}: {limit}, all that {folder.name} has positions for", file=sys.stderr)
    return found
