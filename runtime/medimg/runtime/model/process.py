"""A framework in a process of its own: both sides.

A file that brings a framework down brings down that process only; what goes wrong there is one message.
The process's memory is bounded while it opens a model, and it ends when its parent does.
"""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, TypeAlias

from medimg.runtime import protocol
from medimg.runtime.errors import MedimgError, ModelError
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.machine.bounded import end_with_parent

Message: TypeAlias = dict[str, Any]
Reply: TypeAlias = tuple[Message, list[bytes]]
Answer: TypeAlias = Callable[[Message, list[bytes]], Reply]

OPENING_BYTES = 3 * 2**30
"""Memory that opening any model may take beside eight times its arrays."""
_OPENING_FACTOR = 8
_MAX_WORDS = 400
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_NAMED_ERROR = re.compile(r"(?:[\w.]*\.)?(\w+(?:Error|Exception)): (.*)")
_ARGUMENTS = "Arguments received by"
_WHERE = re.compile(r"Traceback|in user code:|Exception encountered when calling|File \"|\{\{node")
"""How lines begin that say where something went wrong, not what."""
_CAUSE = "Exception encountered: "


class ModelProcess:
    """The command's side."""

    def __init__(self, module: str, framework: str, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            module: what runs in it, by `serve`.
            framework: its name in messages.
            environment: all of its variables.
        """
        self._name = framework
        # A file, not a pipe: nobody reads it unless the process dies, and a full pipe would stop it.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._held = contextlib.ExitStack()
        # TensorFlow leaves the code that it generates where temporary files go.
        folder = self._held.enter_context(temporary_folder("process"))
        # No module comes from the current folder; Ctrl-C is the parent's alone.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**environment, "PYTHONSAFEPATH": "1", "TMPDIR": str(folder)},
            cwd=sys.prefix,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def ask(self, subject: Path, message: Message, *blobs: bytes) -> Reply:
        """Send a request and wait for the answer.

        Args:
            subject: the user's file, for messages.
            message: what to do, by the name `do`.
            blobs: arrays for it.

        Raises:
            ModelError: the framework refused, or the process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            protocol.send(self._process.stdin, message, *blobs)
            answer = protocol.receive(self._process.stdout)
        except (BrokenPipeError, EOFError):
            answer = None
        except BaseException:
            self.close()
            raise
        if answer is None:
            raise ModelError(f"{subject}: {self._how_it_ended(str(message['do']))}")
        if "error" in answer[0]:
            self.close()
            raise ModelError(f"{subject}: {self._name} cannot {message['do']} it: {answer[0]['error']}")
        return answer

    def close(self) -> None:
        """End the process, and wait for that."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._log.close()
        self._held.close()

    def _how_it_ended(self, task: str) -> str:
        status = self._process.wait()
        words = self._last_words()
        self.close()
        if status == -signal.SIGKILL:
            return f"the process that {self._name} ran in was killed, as the system does when memory runs out"
        if status < 0:
            how = signal.Signals(-status).name
            return f"{self._name} crashed when it was to {task} the model ({how}){words}"
        return f"{self._name} stopped when it was to {task} the model (exit status {status}){words}"

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""


def serve(answer: Answer) -> None:
    """Answer requests until standard input ends; the process's side.

    Args:
        answer: gives message and blobs for a message and its blobs. What it raises is told to the parent,
            and ends the process.
    """
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What frameworks print must not come between the messages.
    sys.excepthook = lambda kind, error, trace: _report(answers, kind, error, trace)
    while (request := protocol.receive(sys.stdin.buffer)) is not None:
        message, blobs = answer(*request)
        protocol.send(answers, message, *blobs)


@contextlib.contextmanager
def opening(arrays_bytes: int) -> Iterator[None]:
    """Bound what opening a model adds to this process's memory.

    Args:
        arrays_bytes: size of the model's arrays.

    Raises:
        ModelError: it takes more.
    """
    extra = OPENING_BYTES + _OPENING_FACTOR * arrays_bytes
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + extra
    if before[1] == resource.RLIM_INFINITY or limit < before[1]:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
            raise ModelError(
                f"takes more than {extra >> 20:,} MiB of memory, far more than its arrays of "
                f"{arrays_bytes >> 20:,} MiB: refused"
            ) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def sense(error: BaseException) -> str:
    """Give the sentence of an error that says what is wrong: frameworks put it last, behind where it was."""
    text = _ESCAPES.sub("", str(error)).partition(_ARGUMENTS)[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kind = type(error).__name__
    for place in range(len(lines) - 1, -1, -1):
        if found := _NAMED_ERROR.match(lines[place]):
            kind, lines = found[1], [found[2], *lines[place + 1 :]]
            break
    causes = [line.removeprefix(_CAUSE) for line in lines if line.startswith(_CAUSE)]
    said = causes[-1:] or [line for line in lines if not _WHERE.match(line)] or lines
    return f"{kind}: {said[0]}" if said else kind


def _data_bytes() -> int:
    """Read how much memory of its own this process has."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmData:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


def _report(
    answers: BinaryIO, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    said = str(error) if issubclass(kind, MedimgError) else sense(error)
    protocol.send(answers, {"error": said[:_MAX_WORDS]})
    sys.__excepthook__(kind, error, trace)
