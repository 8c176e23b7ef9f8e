"""The cards of a folder of runs, held against their reports or written: `python -m hfcompress.report.cards`."""

import argparse
import json
import sys
from pathlib import Path

from hfcompress.folders.files import write_whole
from hfcompress.report.pages import card_of


def cards(folder: Path) -> list[tuple[Path, str]]:
    """(README.md, what it must say) of every folder that holds a report.json and its details.json."""
    found = []
    for file in sorted(folder.glob("*/report.json")):
        report, details = (
            json.loads((file.parent / name).read_text(encoding="utf-8")) for name in ("report.json", "details.json")
        )
        found.append((file.parent / "README.md", card_of(report, details)))
    return found


def differing(folder: Path) -> list[Path]:
    """The cards that do not say what their report says."""
    return [path for path, text in cards(folder) if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    """Check the cards in a folder against their reports, or write them: exit 1 when one differs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write the cards instead of checking them")
    arguments = parser.parse_args()
    if arguments.write:
        for path, text in cards(arguments.folder):
            write_whole(path, text)
        return 0
    wrong = differing(arguments.folder)
    for path in wrong:
        print(f"{path} differs from the report.json beside it: make cards", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
