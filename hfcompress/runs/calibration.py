"""How many windows of calibration text a stage reads: no more than the task gives."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hfcompress.errors import OptionError

READERS = ("calibrate", "genai")  # groups of options with `windows`
GIVEN = "calibration_windows"  # of the task


def within_windows(options: dict[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Return a recipe's options with the windows that were not given at most those of the task.

    Args:
        given: names of the options on the command line (calibrate.windows).

    Raises:
        OptionError: more are given than the task has, which could have no effect.
    """
    most = getattr(options.get("task"), GIVEN, None)
    if most is None:
        return options
    typed, found = set(given), dict(options)
    for group in READERS:
        windows = getattr(found.get(group), "windows", None)
        if windows is None or windows <= most:
            continue
        option = f"--{group}.windows"
        if option[2:] in typed:
            raise OptionError(
                f"{group}.windows",
                "{task.calibration_windows} gives {most}, and more has no effect; raise that to {given}, or give at "
                "most {most}",
                windows,
                most=most,
                given=windows,
            )
        found[group] = replace(found[group], windows=most)
        print(f"hfcompress: {option}: {most}, all that --task.calibration-windows gives", file=sys.stderr)
    return found
