"""Files that are there whole or not at all, what a kill has left of them, and the one process that may write a folder.

A file is written beside its place (NAME.part), flushed to the disk and renamed. What a killed process leaves is
therefore NAME.part, or the .tmpXXXXXX that safetensors itself renames from; `sweep` removes both.
"""

import errno
import fcntl
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hfcompress.errors import UserError
from hfcompress.folders.permissions import as_umask_says

PART = ".part"
LOCK_FILE = ".lock"
SCRATCH = ".scratch"
FOREIGN = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.directory|\.nfs[0-9a-f]+")
"""What desktops and network file systems put into any folder: no part of an Artifact, and no damage to it."""


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a file to be written under: it is flushed to the disk, then renamed to `path`.

    Raises:
        OSError: the disk did not take it, with the file's name; what was there before stays, and nothing else.
    """
    part = path.with_name(path.name + PART)
    try:
        yield part
        as_umask_says(part)
        _fsync(part)
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(part)):
            error.filename = str(path)
        raise


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yield the stream of a file that is there whole or not at all.

    Args:
        mode: w (UTF-8) or wb.

    Raises:
        OSError: see `whole_path`.
    """
    with whole_path(path) as part, part.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
        yield stream


def write_whole(path: Path, text: str) -> None:
    """Write a text file that a reader never sees half of."""
    with whole_file(path) as stream:
        stream.write(text)


def write_output(path: Path, text: str) -> None:
    """Write a text file whose place a user chose, as `write_whole`: a link stays one, a device or pipe takes the text.

    Raises:
        OSError: the place cannot be written, with its name.
    """
    target = path.resolve() if path.is_symlink() else path
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")  # which also refuses a folder
    else:
        write_whole(target, text)


def flush(files: list[Path]) -> None:
    """Bring files, and the entries of the folders that they lie in, to the disk.

    Raises:
        OSError: the disk did not take one of them, with its name.
    """
    for file in files:
        _fsync(file)
    for folder in {file.parent for file in files}:
        flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: which files it has, and under which names."""
    try:
        _fsync(folder)
    except OSError as error:  # a file system that has no such thing for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def _fsync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        error.filename = str(place)
        raise
    finally:
        os.close(handle)


def is_left_over(file: Path) -> bool:
    """Whether a file is what a killed write leaves."""
    return file.name.endswith(PART) or re.fullmatch(r"\.tmp\w{6,}", file.name) is not None


def sweep(folder: Path, *, deep: bool = True) -> None:
    """Remove the files that killed writes left.

    Args:
        deep: in the folders below, too.
    """
    for file in list(folder.rglob("*") if deep else folder.glob("*")):
        if is_left_over(file) and (file.is_symlink() or file.is_file()):
            file.unlink(missing_ok=True)


def clear(folder: Path, keep: str) -> None:
    """Remove everything in a folder but the entry `keep`."""
    for entry in list(folder.iterdir()):
        if entry.name == keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def place(file: Path, folder: Path) -> Path:
    """Give a finished file a second name in `folder` without copying its bytes; a copy where links are not known."""
    target = folder / file.name
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copyfile(file, target)
    return target


class FolderLock:
    """The right to write a folder, held until `close` or the end of this process, however it ends.

    The kernel drops the lock of a killed process, whose file then stands in nobody's way.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / LOCK_FILE
        while True:
            self.stream = self.file.open("w")
            try:
                fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.stream.close()
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise UserError(
                    f"another run works in {folder}; wait for it to end, or give this one its own --run-dir"
                ) from None
            if self._is_in_place():
                return
            self.stream.close()  # its holder has just removed it

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.stream.fileno()), self.file.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let go of the folder, and leave no file behind."""
        if not self.stream.closed:
            if self._is_in_place():
                self.file.unlink()
            self.stream.close()


@contextmanager
def scratch_below(folder: Path) -> Iterator[None]:
    """Let temporary files of this process and of those it starts lie in `folder`, where the next run removes them.

    In the system's own place those of a killed process would stay.
    """
    scratch = (folder / SCRATCH).absolute()
    own = scratch / f"{platform.node()}-{os.getpid()}"
    with suppress(FileNotFoundError):  # there is none, or another rank has just removed it
        for other in list(scratch.iterdir()):
            if not is_alive(other.name):
                shutil.rmtree(other, ignore_errors=True)
    own.mkdir(parents=True, exist_ok=True)
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir, os.environ["TMPDIR"] = str(own), str(own)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(own, ignore_errors=True)
        with suppress(OSError):  # of another rank there may still be some
            scratch.rmdir()


def is_alive(owner: str) -> bool:
    """Whether HOST-PID may still be running: processes of other machines cannot be asked."""
    host, _, process = owner.rpartition("-")
    if host != platform.node() or not process.isdigit():
        return host != ""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from or amid, one after the other."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def disk_is_full(error: BaseException | None) -> bool:
    """Whether ENOSPC is the cause: as an OSError, or as the text that safetensors, torch and onnx make of it."""
    return any(
        (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        or re.search(r"no space left on device|disk quota|os error 28|os error 122|file write failed|unexpected pos",
                     str(cause), re.I)
        for cause in chain(error)
    )  # fmt: skip


def full_disk(error: BaseException, *places: Path) -> str:
    """Say of an error that `disk_is_full` which file was not written, and how much room its disk has.

    Args:
        places: where the command writes, for errors that name no file; the one with the least room is said.
    """
    # shutil copies from filename to filename2.
    files = [c.filename2 or c.filename for c in chain(error) if isinstance(c, OSError)]
    named = [Path(str(file)) for file in files if file is not None and not isinstance(file, int)]
    candidates = named[:1] or [*places, Path(tempfile.gettempdir())]
    rooms = [(shutil.disk_usage(existing(place)).free, str(place)) for place in candidates]
    free, where = min(rooms)
    return f"the disk that holds {where} is full ({free / 1e6:.1f} MB free)"


def existing(place: Path) -> Path:
    """The place itself, or the nearest folder above it that is there."""
    return next((p for p in (place, *place.absolute().parents) if p.exists()), Path("/"))


def say_left(folder: Path) -> None:
    """Name on standard error what runs with other options left unfinished in a run's folder."""
    for part in sorted(folder.glob(f"*{PART}")):
        if part.is_dir():
            size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
            text = f"{part} ({size / 1e6:.0f} MB): unfinished, of other options; delete it if it is not wanted"
            print(text, file=sys.stderr)
