"""Ctrl-C before a command has begun, and when it has ended: one line, status 130, no traceback."""

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

ROOMS = ("runtime", "train", "export", "benchmarks")
AT_AN_IMPORT = """
class Interrupting:
    def find_spec(self, name, *_rest):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""
AT_THE_END = "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"


def start(room: str, when: str, prepare: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    code = (
        f"import atexit, os, signal, sys\n{when}\nsys.argv = ['medimg', '--version']\n"
        f"from medimg.{room}.__main__ import main\nmain()"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=prepare
    )


def as_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def as_nohup() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.long
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("when", [AT_AN_IMPORT, AT_THE_END], ids=["import", "end"])
def test_one_line_and_no_traceback(room: str, when: str) -> None:
    done = start(room, when, as_a_terminal)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


@pytest.mark.long
def test_an_ignored_interrupt_stays_ignored() -> None:
    done = start("runtime", AT_AN_IMPORT + AT_THE_END, as_nohup)
    assert (done.returncode, done.stderr) == (0, "")
