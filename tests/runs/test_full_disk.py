"""A file system that is really full, under a run, its report, its export and its push: one line, and it goes on."""

import io
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hfcompress.cli import main
from hfcompress.cli.traffic import refresh
from hfcompress.errors import UserError
from hfcompress.folders.files import write_output
from hfcompress.rollout.traffic import Event, as_line, assigned
from hfcompress.runs.run import Run
from hfcompress.training.adopt import Adopt
from tests.fork_server import ForkServer
from tests.hub_server import Hub, serve


class Disk:
    """A file system of its own below a folder.

    Args:
        megabytes: its size.
    """

    def __init__(self, folder: Path, megabytes: float) -> None:
        self.folder = folder
        folder.mkdir()
        self.mounted = os.geteuid() == 0 and self._mount("-t", "tmpfs", "-o", size(megabytes), "tmpfs")

    def _mount(self, *words: str) -> bool:
        return subprocess.run(["mount", *words, str(self.folder)], capture_output=True).returncode == 0

    def make_room(self, megabytes: float) -> None:
        assert self._mount("-o", f"remount,{size(megabytes)}")

    def fill(self) -> None:
        """Take all the room that is left."""
        with (self.folder / "filler").open("wb", buffering=0) as stream:
            for block in (65536, 4096):
                try:
                    while stream.write(bytes(block)):
                        pass
                except OSError:
                    continue


def size(megabytes: float) -> str:
    return f"size={int(megabytes * 1024)}k"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", 1)
    if not made.mounted:
        pytest.skip("a file system of its own can be mounted by root alone")
    yield made
    subprocess.run(["umount", "-l", str(made.folder)], check=True)


def command(*words: str | Path) -> tuple[int, str]:
    """A command line's exit code, and what it says on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.argv", ["hfcompress", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0), err.getvalue()


@dataclass(frozen=True)
class Large:
    """A stage that writes two files of a third of a megabyte, which is said to be theirs in many ways."""

    way: str

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, out: Path) -> dict[str, Any]:
        import torch
        from safetensors.numpy import save_file

        values = np.random.default_rng(0).integers(0, 256, 400_000, dtype=np.uint8)
        for number in range(4):
            file = out / f"{number}.bin"
            if self.way == "safetensors":
                save_file({"a": values}, file)
            elif self.way == "torch":
                torch.save(torch.from_numpy(values), file)
            elif self.way == "numpy":
                np.savez(file.with_suffix(".npz"), a=values)
            elif self.way == "copy":
                (out / "work" / "source").write_bytes(values.tobytes())
                shutil.copyfile(out / "work" / "source", file)
            else:
                file.write_bytes(values.tobytes())
        return {}


@pytest.mark.parametrize("way", ["safetensors", "torch", "numpy", "copy", "plain"])
def test_a_stage_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(way: str, disk: Disk) -> None:
    run = Run(disk.folder / "run", "test", "small")
    with pytest.raises(UserError, match=rf"^large: the disk that holds .*{disk.folder.name}.* is full \(.* MB free\)"):
        run(Large(way))
    disk.make_room(8)
    assert run(Large(way)).damage(hashed=True) is None
    run.close()
    assert [path.name for path in run.folder.iterdir()] == [run.made[0].path.name]


def test_a_run_cannot_begin_on_a_full_disk_and_says_so(disk: Disk) -> None:
    disk.fill()
    code, said = command("run", "ctr_embeddings", "--run-dir", disk.folder / "run", "--smoke")
    assert code == 2
    last = said.splitlines()[-1]
    assert last.startswith("hfcompress: ")
    assert "is full (0.0 MB free); make room" in last
    assert "Traceback" not in said


def test_a_report_on_a_full_disk_is_one_line_and_the_old_one_stays(disk: Disk, finished: Path) -> None:
    disk.make_room(16)
    run = shutil.copytree(finished, disk.folder / "run")
    before = (run / "report.html").read_bytes()
    disk.fill()
    code, said = command("report", run)
    assert (code, len(said.splitlines())) == (2, 1)
    assert re.search(r"report\.(html|json) is full \(0\.0 MB free\); make room", said)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.part"))
    (disk.folder / "filler").unlink()
    assert command("report", run)[0] == 0
    assert (run / "report.html").read_bytes() == before


def test_an_export_to_a_full_disk_is_one_line_and_leaves_nothing(disk: Disk, finished: Path) -> None:
    disk.make_room(0.1)
    out = disk.folder / "exported"
    code, said = command("export", finished, "--to", "onnx", "--out", out)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "is full (" in said
    assert not list(disk.folder.iterdir())
    disk.make_room(16)
    half = disk.folder / "exported.part"  # of an export that was killed
    half.mkdir()
    (half / "model.onnx").write_bytes(b"half")
    assert command("export", finished, "--to", "onnx", "--out", out)[0] == 0
    assert [path.name for path in disk.folder.iterdir()] == ["exported"]
    assert (out / "model.onnx").stat().st_size > 4


def test_a_push_from_a_full_disk_needs_none_of_it(disk: Disk, finished: Path) -> None:
    disk.make_room(16)
    run = shutil.copytree(finished, disk.folder / "run")
    disk.fill()
    code, said = command("push", run, "--hub-model-id", "org/name", "--dry-run", "--license", "mit", "--allow-failed")
    assert (code, said) == (0, "")


def hub_command(hub: Hub, home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command line of a client of this Hub whose cache, and whose place of temporary files, is `home`."""
    return subprocess.run(
        [sys.executable, "-m", "hfcompress", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | hub.environment(home) | {"TMPDIR": str(home)},
        timeout=600,
    )


def test_a_push_from_a_full_disk_arrives_and_a_fetch_to_one_is_one_line(disk: Disk, finished: Path) -> None:
    disk.make_room(16)
    run = shutil.copytree(finished, disk.folder / "run")
    home = disk.folder / "home"
    home.mkdir()
    disk.fill()
    with serve() as hub:
        words = ("push", run, "--hub-model-id", "org/small", "--license", "mit", "--allow-failed")
        done = hub_command(hub, home, *words)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert {"report.json", "recipe.lock.json"} <= set(hub.repositories["org/small"].commits("main")[-1])
        fetched = hub_command(hub, home, "predict", "org/small", "--text", "a")
        assert fetched.returncode == 2, fetched.stdout
        assert len(fetched.stderr.splitlines()) == 1
        assert "is full (0.0 MB free); make room, then run the same command again" in fetched.stderr
        (disk.folder / "filler").unlink()
        assert hub_command(hub, home, "predict", "org/small", "--text", "a").returncode == 0


def test_a_page_that_the_disk_does_not_take_is_one_line_and_the_old_one_stays(disk: Disk, tmp_path: Path) -> None:
    events = [
        Event(id=str(i), arm=assigned(str(i), "a", 0.5), user=str(i), outcome={"ctr": float(i % 2)})
        for i in range(400)
    ]
    traffic, page = tmp_path / "traffic.jsonl", disk.folder / "ab.html"
    traffic.write_bytes(b"".join(map(as_line, events)))
    words = ("ab", traffic, "--metric", "ctr", "--tolerance", "0.3", "--report", page)
    command(*words)
    before = page.read_bytes()
    disk.fill()
    code, said = command(*words)
    assert (code, len(said.splitlines())) == (2, 1)
    assert f"the disk that holds {page} is full (0.0 MB free); make room" in said
    assert page.read_bytes() == before
    assert sorted(path.name for path in disk.folder.iterdir()) == ["ab.html", "filler"]


def test_a_shadow_tests_page_may_not_stop_its_answers(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    page = disk.folder / "page.html"
    write_output(page, "old")
    disk.fill()
    assert refresh(page, "new" * 10_000)
    assert refresh(page, "new" * 10_000, True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hfcompress: --page {page}: the disk that holds {page} is full (0.0 MB free)")
    assert page.read_text(encoding="utf-8") == "old"
    (disk.folder / "filler").unlink()
    assert not refresh(page, "new" * 10_000, True)
    assert page.read_text(encoding="utf-8") == "new" * 10_000


def test_a_page_goes_to_where_a_link_points_and_into_a_device(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "real" / "page.html")
    write_output(link, "a")
    write_output(link, "b")
    assert link.is_symlink()
    assert (tmp_path / "real" / "page.html").read_text(encoding="utf-8") == "b"
    write_output(Path("/dev/null"), "a")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(IsADirectoryError):
        write_output(tmp_path / "real", "a")


def test_an_adopted_model_on_a_full_disk_is_adopted_when_there_is_room(
    disk: Disk, tiny_teacher: Path, tiny_task: Any
) -> None:
    disk.make_room(0.3)
    run = Run(disk.folder / "run", "test", "small")
    with pytest.raises(UserError, match=r"teacher: the disk .* is full .* run the same command again"):
        run(Adopt(), model=tiny_teacher, task=tiny_task, name="teacher")
    disk.make_room(16)
    made = run(Adopt(), model=tiny_teacher, task=tiny_task, name="teacher")
    run.close()
    assert made.damage(hashed=True) is None
    assert not [name for name in made.record.files if name.startswith(".tmp")]


@pytest.mark.slow
def test_a_smoke_run_goes_on_each_time_that_its_full_disk_gets_some_room(tmp_path: Path, disk: Disk) -> None:
    """From 64 kB upwards: whatever is being written when the disk is full ends in one line."""
    folder, megabytes, stopped = disk.folder / "run", 0.0625, 0
    words = ("tests.kill_start:start", str(folder), None, "run", "any_causal_lm", "--smoke", "--run-dir", str(folder))
    with ForkServer(tmp_path) as server:
        while True:
            disk.make_room(megabytes)
            done = server.call(*words, timeout=300, most_mb=4000)
            assert "Traceback" not in done.err, done.err[-3000:]
            if done.out and '"code": 2' not in done.out:  # with a full disk standard output may be let go, too
                break
            assert "is full (" in done.err.splitlines()[-1], done.err
            stopped, megabytes = stopped + 1, 1.25 * megabytes
            assert megabytes < 64
    assert stopped > 3
    assert (folder / "report.json").is_file()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part") or path.name.startswith(".tmp")]
