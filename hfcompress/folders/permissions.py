"""The modes of files that libraries write: what the user's umask says, as for any file that a program opens."""

import os
from pathlib import Path


def umask() -> int:
    """Return this process's umask, without changing it where the kernel tells it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    except (OSError, StopIteration, ValueError):
        found = os.umask(0o077)
        os.umask(found)
        return found


def as_umask_says(place: Path) -> None:
    """Give a file, or every file below a folder, the mode of a newly opened one: safetensors writes 0600.

    A file with other links, and a symbolic link, is another's too (an adopted model's weights) and stays as it is.
    """
    mode = 0o666 & ~umask()
    for file in [place] if place.is_file() else sorted(place.rglob("*")):
        if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
            file.chmod(mode)
