"""Files that are there whole or not at all, what a kill leaves of them, and the lock of a folder."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hfcompress.errors import UserError
from hfcompress.folders.files import (
    LOCK_FILE,
    SCRATCH,
    FolderLock,
    clear,
    disk_is_full,
    full_disk,
    is_left_over,
    place,
    scratch_below,
    sweep,
    whole_file,
    write_whole,
)
from hfcompress.recipes import tiny


def test_a_file_that_fails_amid_writing_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "old")

    def write() -> None:
        with whole_file(file) as stream:
            stream.write("half of the ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"a\.json") as failed:
        write()
    assert failed.value.filename == str(file)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old"}


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed, whole_file(tmp_path / "a.json"):
        (tmp_path / "nowhere").read_text()
    assert failed.value.filename == str(tmp_path / "nowhere")


def test_what_killed_writes_leave_is_known_and_swept(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    left = [tmp_path / "a.safetensors.part", tmp_path / ".tmp8aZ3xQ", tmp_path / "deep" / ".tmpABCDEF"]
    kept = [tmp_path / "partial.json", tmp_path / ".tmp", tmp_path / "deep" / "a.part.txt"]
    for file in (*left, *kept):
        file.write_text("x")
    assert all(map(is_left_over, left))
    sweep(tmp_path)
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(kept)


def test_safetensors_leaves_what_is_swept(tmp_path: Path) -> None:
    """If it names its temporary file otherwise one day, nothing would be swept any more."""
    code = "import sys; import numpy as np; from safetensors.numpy import save_file\n"
    code += "while True: save_file({'a': np.zeros(4_000_000)}, f'{sys.argv[1]}/whole')"
    left = list[Path]()
    for _ in range(20):  # the kill may come just after the file was renamed
        saving = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        while not any(file.name != "whole" for file in tmp_path.iterdir()):
            assert saving.poll() is None
        saving.kill()
        saving.wait()
        if left := [file for file in tmp_path.iterdir() if file.name != "whole"]:
            break
    assert left
    assert all(map(is_left_over, left)), left


def test_clearing_keeps_one_entry(tmp_path: Path) -> None:
    for name in ("work", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "config.json").touch()
    clear(tmp_path, keep="work")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["work", "work/file"]


def test_a_placed_file_takes_no_room_and_stays_when_its_first_name_goes(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shard = tmp_path / "shard"
    shard.write_text("weights")
    (tmp_path / "out" / "shard").write_text("of a killed call")
    placed = place(shard, tmp_path / "out")
    assert placed.samefile(shard)
    shard.unlink()
    assert placed.read_text() == "weights"


def test_where_links_are_not_known_a_placed_file_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "shard").write_text("weights")
    (tmp_path / "out").mkdir()
    assert place(tmp_path / "shard", tmp_path / "out").read_text() == "weights"


def test_a_lock_refuses_a_second_holder_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    held = FolderLock(folder)
    with pytest.raises(UserError, match=r"another run works in .*run; wait for it to end"):
        FolderLock(folder)
    held.close()
    assert not list(folder.iterdir())
    FolderLock(folder).close()


def test_the_lock_of_a_killed_process_stands_in_nobodys_way(tmp_path: Path) -> None:
    code = "import os, signal, sys; from pathlib import Path; from hfcompress.folders.files import FolderLock\n"
    code += "held = FolderLock(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / LOCK_FILE).is_file()
    FolderLock(tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_removed_while_one_waited_for_it_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes would hold two files of the same name."""
    flock, opened = fcntl.flock, list[int]()

    def removed_meanwhile(stream: int, how: int) -> None:
        if not opened:
            (tmp_path / LOCK_FILE).unlink()
        opened.append(1)
        flock(stream, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    held = FolderLock(tmp_path)
    assert len(opened) == 2
    assert os.path.samestat((tmp_path / LOCK_FILE).stat(), os.fstat(held.stream.fileno()))
    held.close()


def test_temporary_files_lie_below_the_run_and_go_with_it(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    killed = tmp_path / SCRATCH / f"{os.uname().nodename}-999999999"
    elsewhere = tmp_path / SCRATCH / "another-machine-1"
    for folder in (killed, elsewhere):
        folder.mkdir(parents=True)
    with scratch_below(tmp_path):
        assert not killed.exists()
        assert elsewhere.exists()
        own = Path(tempfile.mkdtemp())
        assert tmp_path / SCRATCH in own.parents
        code = "import tempfile; print(tempfile.gettempdir())"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == str(own.parent)
    assert not own.exists()
    assert tempfile.gettempdir() == before
    shutil.rmtree(elsewhere)
    with scratch_below(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_is_known_by_whatever_raises_it(error: Exception) -> None:
    assert disk_is_full(error)
    wrapped = ValueError("the stage failed")
    wrapped.__cause__ = error
    assert disk_is_full(wrapped)
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))


def test_a_full_disk_is_said_with_the_file_and_the_room(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "gone" / "a.bin"))
    assert f"the disk that holds {tmp_path / 'gone' / 'a.bin'} is full (" in full_disk(error)
    copied = OSError(errno.ENOSPC, "No space left on device", "source", None, str(tmp_path / "target"))
    assert "target is full" in full_disk(copied)
    assert " MB free)" in full_disk(RuntimeError("os error 28"), tmp_path)


def test_smoke_data_are_written_once_and_anew_when_a_kill_or_a_hand_changed_them(tmp_path: Path) -> None:
    written = list[Path]()

    def write(folder: Path) -> None:
        written.append(folder)
        (folder / "train.jsonl").write_text("one\n")
        (folder / "test.jsonl").write_text("two\n")

    data = tmp_path / "smoke" / "data"
    half = data.with_name("data.part")
    half.mkdir(parents=True)
    (half / "train.jsonl").write_text("on")
    harms: list[Callable[[], object]] = [
        lambda: None,
        lambda: (data / "test.jsonl").unlink(),
        lambda: (data / "train.jsonl").write_text("o\n"),
        lambda: (data / "more.jsonl").touch(),
        lambda: data.with_name("data.sha256").write_text("half of a ha"),
    ]
    for count, harm in enumerate(harms, 1):
        harm()
        assert tiny.made(data, write) == data
        assert tiny.made(data, write) == data
        assert len(written) == count
        assert {file.name: file.read_text() for file in data.iterdir()} == {
            "train.jsonl": "one\n",
            "test.jsonl": "two\n",
        }
        assert not half.exists()
