"""Commands with what they cost: seconds, and the memory of the process and all that it starts."""

import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from commands import BIN, CommandFailedError, as_typed

SAMPLED_EVERY_S = 0.05


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    seconds: float
    peak_mib: float
    """Largest sum of resident memory over the process and its children; shared pages count in each."""
    status: int
    output: str
    """What it wrote to standard output."""

    def figures(self) -> dict[str, float]:
        """Give the numbers that belong into a result."""
        return {"seconds": round(self.seconds, 1), "peak_mib": round(self.peak_mib)}


def run_measured(
    *arguments: str | Path, accepted: tuple[int, ...] = (0,), counted: int | None = None
) -> Cost:
    """Show a command as a user would type it, and run it.

    Args:
        arguments: the command, from those beside the interpreter.
        accepted: exit statuses that are no failure.
        counted: the process whose memory and descendants' counts; the command's own unless given.

    Raises:
        CommandFailedError: it failed.
    """
    command = [str(argument) for argument in arguments]
    print(f"\n$ {as_typed(shlex.join(command))}", flush=True)
    with tempfile.TemporaryFile() as output:
        start, peak = time.perf_counter(), 0
        with subprocess.Popen([str(BIN / command[0]), *command[1:]], stdout=output) as process:
            while process.poll() is None:
                peak = max(peak, _resident_bytes(counted or process.pid))
                time.sleep(SAMPLED_EVERY_S)
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read().decode()
    print(f"[{command[0]}: {seconds:.1f} s, {peak / 2**20:.0f} MiB]", flush=True)
    if process.returncode not in accepted:
        raise CommandFailedError(command[0], process.returncode)
    return Cost(seconds, peak / 2**20, process.returncode, text)


def _resident_bytes(pid: int) -> int:
    """Sum over a process and its descendants; those that end meanwhile count nothing."""
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    found = 0
    for process in processes:
        try:
            found += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return found
