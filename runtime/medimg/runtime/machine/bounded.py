"""A function in a process of its own, whose memory, processor time and written bytes are bounded.

For libraries that a damaged or hostile file can make loop, crash or fill the memory. What the process
answers is JSON; what it does to itself costs the caller one message.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medimg.runtime.errors import MedimgError, ModelError

ENDED_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2): the signal that a process gets when its parent ends."""
_WALL_FACTOR = 20
"""How much longer than its processor time a process may take on a busy machine."""
_CHILD = (
    "import sys; count = int(sys.argv[1]); sys.path[:] = sys.argv[2 : 2 + count]; "
    "from medimg.runtime.machine.bounded import answer; answer(*sys.argv[2 + count :])"
)


@dataclass(frozen=True)
class Bounds:
    """What a process may use."""

    memory_bytes: int = 1536 * 2**20
    """Address space, the interpreter's own some 300 MiB among it."""
    cpu_s: int = 20
    written_bytes: int = 256 * 2**20
    """Size of the largest file that it writes."""


def call(task: str, *arguments: str, bounds: Bounds, subject: str) -> Any:  # noqa: ANN401  any JSON value
    """Run a function elsewhere.

    Args:
        task: its name, as `package.module:function`; it takes texts and gives what JSON holds.
        arguments: for the function.
        bounds: what its process may use.
        subject: the file that it reads, for messages.

    Raises:
        ModelError: the function refused, or its process ended, or used more than it may.
    """
    path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109  a string is wanted
    # -B: a bound on written bytes would cut compiled modules, which every later process would read.
    limits = json.dumps([bounds.memory_bytes, bounds.cpu_s, bounds.written_bytes])
    command = [sys.executable, "-I", "-B", "-c", _CHILD, str(len(path)), *path, limits, task, *arguments]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            status = process.wait(bounds.cpu_s * _WALL_FACTOR)
        except subprocess.TimeoutExpired:
            status = -signal.SIGXCPU
        finally:
            process.kill()
        said.seek(0)
        text = said.read()
    if status:
        raise ModelError(f"{subject}: {_how_it_ended(status, bounds)}")
    result = json.loads(text)
    if "error" in result:
        raise ModelError(result["error"])
    return result["answer"]


def answer(limits: str, task: str, *arguments: str) -> None:
    """Run a function within limits and print what it gives; the process's side of `call`."""
    end_with_parent()
    memory_bytes, cpu_s, written_bytes = json.loads(limits)
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, written_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    module, _, name = task.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    try:
        found = {"answer": function(*arguments)}
    except MedimgError as error:
        found = {"error": str(error)}
    except MemoryError:
        sys.exit(_OUT_OF_MEMORY)
    sys.stdout.write(json.dumps(found))


def end_with_parent() -> None:
    """Have the system end this process when its parent ends, however that happens."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(ENDED_WITH_PARENT, signal.SIGKILL)


_OUT_OF_MEMORY = 3


def _how_it_ended(status: int, bounds: Bounds) -> str:
    if status == _OUT_OF_MEMORY:
        return f"reading it takes more than {bounds.memory_bytes >> 20} MiB of memory: refused"
    if status == -signal.SIGXCPU:
        return f"reading it takes longer than {bounds.cpu_s} s: refused"
    if status == -signal.SIGXFSZ:
        return f"it unfolds to more than {bounds.written_bytes:,} bytes: refused"
    if status > 0:
        return f"the process that reads it stopped (exit status {status})"
    return f"reading it crashed ({signal.Signals(-status).name}): the file is damaged"
