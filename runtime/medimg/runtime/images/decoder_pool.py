"""Decoders with a record of memory errors, each in a process of its own.

What such a decoder does to its process costs one file its answer. Requests go over a socket; answers come
back in memory that the parent makes and nobody else can name (memfd_create(2)), so that nothing is left
behind however either side ends. A worker ends when its parent does, because its socket closes.
"""

import atexit
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Final

from medimg.runtime.errors import DecoderError, ImageError
from medimg.runtime.images.decoder_worker import HEAD, READY, REPLY, read_exactly

LIMIT_S: Final = 5.0
LIMIT_S_PER_MIB: Final = 0.25
"""GDCM took 0.034 s of a server's processor for each MiB of a mammogram in lossless JPEG."""
PATIENCE: Final = 12.0
_START_LIMIT_S: Final = 60.0
# -I: not the current folder nor the environment decides what the child imports, only the parent's own path.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from medimg.runtime.images.decoder_worker import serve; serve(sys.argv[1])"
)


class DecoderPool:
    """Worker processes for one task, started when first needed and used again.

    There are never more than threads that call `run` at the same time. May be used by any number of threads.

    Args:
        task: the module whose `start()` gives the worker's `Decode`.
        limit_s: seconds of processor time after which a worker is killed, and a little more for each MiB of
            its answer; a machine that is busy does not change whether there is an answer.
        patience: how many times as long it may take by the clock.
    """

    def __init__(self, task: str, limit_s: float = LIMIT_S, patience: float = PATIENCE) -> None:
        self._task = task
        self._limit_s, self._patience = limit_s, patience
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        atexit.register(self.close)
        # A forked child must neither share the parent's sockets nor keep them open.
        os.register_at_fork(after_in_child=self._forget)

    def run(self, request: bytes, answer_bytes: int) -> mmap.mmap:
        """Have a worker answer.

        Args:
            request: what the task understands.
            answer_bytes: size of the answer, at least 1.

        Raises:
            ImageError: the worker gave a reason.
            DecoderError: it ended, or took longer than the limit.
        """
        worker = self._take()
        try:
            limit_s = self._limit_s + LIMIT_S_PER_MIB * answer_bytes / 2**20
            reason, answer = worker.ask(request, answer_bytes, limit_s, limit_s * self._patience)
        except BaseException:
            worker.kill()
            raise
        with self._lock:
            self._idle.append(worker)
        if reason:
            raise ImageError(reason)
        return answer

    def close(self) -> None:
        """End the workers that are idle; the next `run` starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def _take(self) -> "_Worker":
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return _Worker(self._task)
            if worker.alive:
                return worker
            worker.kill()

    def _forget(self) -> None:
        """Start anew in a forked child, where another thread may have held the lock."""
        self._lock = threading.Lock()
        for worker in self._idle:
            worker.disown()
        self._idle = []


class _Worker:
    """One process and the socket to it."""

    def __init__(self, task: str) -> None:
        path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109  a string is wanted
        with contextlib.ExitStack() as opened:
            try:
                self._socket, theirs = map(opened.enter_context, socket.socketpair())
                # A session of its own, so that Ctrl-C is the parent's alone.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _CHILD, task, *path],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                # No memory or descriptors left: this file has no answer, others may have one.
                raise DecoderError(f"its decoder cannot be started ({error.strerror})") from None
            opened.pop_all()
            theirs.close()
        self._socket.settimeout(_START_LIMIT_S)
        try:
            ready = self._socket.recv(len(READY))
        except OSError:
            ready = b""
        if ready != READY:
            self.kill()
            raise DecoderError(f"its decoder does not start: {task}.start() must work in {sys.executable}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, request: bytes, answer_bytes: int, processor_s: float, clock_s: float
    ) -> tuple[str, mmap.mmap]:
        """Give the reason why there is no answer, or an empty one, and the answer's memory."""
        deadline = time.monotonic() + clock_s
        memory, answer = _shared_memory(answer_bytes)
        try:
            self._allow(deadline)
            head = HEAD.pack(len(request), answer_bytes, processor_s, clock_s + 1)
            socket.send_fds(self._socket, [head], [memory])
            self._socket.sendall(request)
            self._allow(deadline)
            reply = read_exactly(self._socket, REPLY.size)
            if len(reply) < REPLY.size:
                raise DecoderError(self._how_it_ended(processor_s))
            done, reason_bytes = REPLY.unpack(reply)
            reason = "" if done else read_exactly(self._socket, reason_bytes).decode(errors="replace")
        except TimeoutError:
            raise DecoderError(f"its decoder took longer than {clock_s:.3g} s and was stopped") from None
        except OSError:
            raise DecoderError(self._how_it_ended(processor_s)) from None
        finally:
            os.close(memory)
        return reason, answer

    def kill(self) -> None:
        """End the process, at once and whatever it does, and collect it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def disown(self) -> None:
        """Close this process's copy of a socket that another one owns."""
        self._socket.close()
        self._process.returncode = 0

    def _allow(self, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))

    def _how_it_ended(self, processor_s: float) -> str:
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if status == -signal.SIGPROF:
            return f"its decoder took longer than {processor_s:.3g} s of processor time and was stopped"
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        return f"its decoder crashed ({how}): the file may be damaged"


def _shared_memory(size_bytes: int) -> tuple[int, mmap.mmap]:
    """Map a file without a name; the descriptor is what another process maps it by."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("medimg")
    else:
        # Python builds for a C library older than glibc 2.27.
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size_bytes)
        return descriptor, mmap.mmap(descriptor, size_bytes)
    except (OSError, ValueError, OverflowError) as error:
        os.close(descriptor)
        raise DecoderError(f"no memory for its {size_bytes:,} bytes of pixels ({error})") from None
