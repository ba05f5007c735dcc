"""The project's commands as processes of their own, for the scripts beside this file."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from registry import ROOT

BIN = Path(sys.executable).parent
"""Where the commands are installed: beside the interpreter."""


class CommandFailedError(Exception):
    """A command did not end with status 0; its own message has been shown."""

    def __init__(self, command: str, status: int) -> None:
        super().__init__(f"{command} ended with status {status}")
        self.status = status


def run_command(*arguments: str | Path) -> float:
    """Show a command as a user would type it, run it, and show and return its time in seconds.

    Raises:
        CommandFailedError: it failed.
    """
    command = [str(argument) for argument in arguments]
    print(f"\n$ {as_typed(shlex.join(command))}", flush=True)
    start = time.perf_counter()
    status = subprocess.run([str(BIN / command[0]), *command[1:]], check=False).returncode
    seconds = time.perf_counter() - start
    print(f"[{command[0]}: {seconds:.1f} s]", flush=True)
    if status != 0:
        raise CommandFailedError(command[0], status)
    return seconds


def run_script(name: str, *arguments: str | Path) -> Any:  # noqa: ANN401  any layout
    """Run a script of this folder in a process of its own; give the JSON in the last line that it prints."""
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def as_typed(text: str) -> str:
    """Name files as a user would: the project's from its root, the real data sets by their variable."""
    real = os.environ.get("MEDIMG_TEST_DATA")
    text = text.replace(f"{ROOT}/", "")
    return text.replace(real, "$MEDIMG_TEST_DATA") if real else text


def read_json(path: Path) -> Any:  # noqa: ANN401  any layout
    """Read what a command wrote with `--json`."""
    return json.loads(path.read_text(encoding="utf-8"))
