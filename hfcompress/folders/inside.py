"""Names that stand in somebody's files (records, reports, locks, indexes) as paths that stay inside their folder."""

import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hfcompress.errors import UserError
from hfcompress.folders.escaping import one_line

LONGEST = 1000  # characters of a name with its folders
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def relative(name: Any, where: str) -> PurePosixPath:
    """Return a name as a relative path that only goes down.

    Args:
        name: as it was read; where: the file that it stands in, for the message.

    Raises:
        UserError: it is no text, empty, absolute, has `..` or a backslash, or characters that no file name needs.
    """
    wrong = None
    if not isinstance(name, str) or not name:
        wrong = "is no name of a file"
    elif len(name) > LONGEST:
        wrong = f"is longer than {LONGEST} characters"
    elif UNPRINTABLE.search(name):
        wrong = "holds a control character"
    elif name.startswith(("/", "~")) or "\\" in name or PureWindowsPath(name).drive:
        wrong = "is not a relative path"
    elif any(part in ("", ".", "..") for part in name.split("/")):
        wrong = "leaves its folder"
    if wrong:
        raise UserError(f"{where} names {one_line(str(name), 80)!r}, which {wrong}: it is not read")
    return PurePosixPath(name)


def component(name: Any, where: str) -> str:
    """Return a name that is to be one component of a path, such as a record's or a model's.

    Raises:
        UserError: see `relative`; or it has a slash in it.
    """
    if len(relative(name, where).parts) != 1:
        raise UserError(f"{where} names {one_line(str(name), 80)!r}, which is no single name: it is not read")
    return str(name)


def inside(folder: Path, name: Any, where: str | None = None) -> Path:
    """Return the path of a name in a folder. What is there must be a regular file or a folder, and lie inside.

    A link that leaves the folder is refused, except in the Hub's cache, whose snapshots are links to its own blobs.

    Args:
        folder: that the name is relative to; name: as it was read.
        where: the file that the name stands in, for the message [the folder].

    Raises:
        UserError: see `relative`; or what is there is elsewhere, or a device, pipe or socket.
    """
    where = where or str(folder)
    path = folder / relative(name, where)
    try:
        found = path.resolve(strict=True)
        mode = found.stat().st_mode
    except (OSError, RuntimeError):  # nothing is there, or a link to itself
        if path.is_symlink():
            raise UserError(f"{where} names {name!r}, a link that leads nowhere: it is not read") from None
        return path
    if not any(found.is_relative_to(place) for place in allowed(folder)):
        raise UserError(f"{where} names {name!r}, a link that leaves its folder: it is not read")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{where} names {name!r}, which is neither a file nor a folder: it is not read")
    return path


def allowed(folder: Path) -> list[Path]:
    """Return where the files of a folder may lie: in it, or in the blobs of the Hub's cache that it is in."""
    root = folder.resolve()
    repository = next((parent.parent for parent in (root, *root.parents) if parent.name == "snapshots"), None)
    blobs = [] if repository is None else [repository / "blobs"]
    return [root, *(b.resolve() for b in blobs if b.parent.name.startswith(("models--", "datasets--")))]
