"""Ctrl-C, also while modules load: exit code 130 and one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys
module, times = sys.argv[1], int(sys.argv[2])
sys.argv[:] = ["hfcompress", *sys.argv[3:]]
def watch(event, arguments):
    global times
    if event == "import" and arguments[0] == module and times:
        for _ in range(times):
            times -= 1
            os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(watch)
from hfcompress.__main__ import main
main()
"""
SAID = "hfcompress: interrupted; run the same command again to go on\n"


def interrupted(module: str, times: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command line that gets SIGINT when it begins to import a module."""
    words = [sys.executable, "-c", PROGRAM, module, str(times), *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("module", ["hfcompress.cli", "tyro", "hfcompress.cli.running", "torch"])
def test_an_interrupt_while_modules_load_is_one_line(module: str, tmp_path: Path) -> None:
    done = interrupted(module, 1, "run", "legal_bert", "--smoke", "--run-dir", str(tmp_path / "run"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", SAID)


def test_a_second_interrupt_ends_at_once_and_prints_no_more(tmp_path: Path) -> None:
    done = interrupted("transformers", 2, "run", "legal_bert", "--smoke", "--run-dir", str(tmp_path / "run"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", SAID)


def test_an_interrupt_in_a_finalizer_ends_the_command() -> None:
    """Python prints what is raised there and goes on."""
    code = """
import os, signal, sys
import hfcompress.cli
class Noisy:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
def command():
    Noisy()
    print("went on")
hfcompress.cli.main = command
from hfcompress.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", SAID)


def test_where_the_shell_ignores_the_signal_it_stays_ignored() -> None:
    """A command that was started with & is not to end when another one gets Ctrl-C."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + PROGRAM
    words = [sys.executable, "-c", code, "tyro", "1", "list"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "legal_bert" in done.stdout
