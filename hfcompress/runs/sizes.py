"""Default sizes of students that a model has not: lowered to its own, since nobody typed them."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfcompress.architectures import ENCODERS
from hfcompress.errors import UserError
from hfcompress.folders.guard import read_config

GROUPS = ("distill", "prune")  # each makes a model out of the one before, at most as large
SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")


def within_sizes(options: dict[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Return a recipe's options with the student's sizes that were not given at most those of what it is made of.

    A line on standard error says each. Only models that are folders here are looked at; what is wrong with them is
    said where they are read.

    Args:
        given: names of the options that were typed (distill.num-hidden-layers). These stay: they are refused later.
    """
    has_student = folder_of(options, "student").is_dir()  # then nothing is distilled
    most, name = sizes_of(options, ("student",) if has_student else ("teacher", "base"))
    typed, found = set(given), dict(options)
    head_size = most.get("hidden_size", 0) // max(1, most.get("num_attention_heads", 1))
    for group in GROUPS[1:] if has_student else GROUPS:
        fields = getattr(found.get(group), "__dict__", {})
        for field in SIZES:
            size, limit, option = fields.get(field), most.get(field), f"{group}.{field.replace('_', '-')}"
            if size is None or limit is None:
                continue
            if size > limit and option not in typed:
                size = limit
                found[group] = replace(found[group], **{field: size})
                print(f"hfcompress: --{option}: {size}, all that {name} has", file=sys.stderr)
            most[field] = min(size, limit)  # the next group cuts what this one leaves
        if head_size:  # a hidden size says the heads, where they are not given
            most["num_attention_heads"] = min(most["num_attention_heads"], most["hidden_size"] // head_size)
    return found


def folder_of(options: dict[str, Any], name: str) -> Path:
    """Return the folder that an option names, if it names one."""
    return Path(str(options.get(name))).expanduser()


def sizes_of(options: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, int], str]:
    """Return the sizes of the first of these models that is here, and its folder's name; none where none is."""
    for name in names:
        folder = folder_of(options, name)
        try:
            config = read_config(folder)
            encoder = ENCODERS[config["model_type"]]
            found = {size: config[encoder.name(size)] for size in SIZES}
        except (UserError, OSError, LookupError):
            continue
        if all(isinstance(size, int) for size in found.values()):
            return found, folder.name
    return {}, ""
