"""What C libraries write to C's standard error while they decode.

libjpeg goes on with pixels that it made up, and says so there alone; libpng repeats what the file holds.
While a decoder runs, glibc's variable `stderr` is a file in memory: neither descriptor 2 nor Python's
`sys.stderr` is touched, and what other libraries say is passed on. Threads decode at the same time; one that
heard something decodes again while no other does, and so knows whose words they were.
"""

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Final, TypeVar

Result = TypeVar("Result")

_UNBUFFERED: Final = 2
_MOST_BYTES: Final = 2**16
_WORDS: Final = (
    b"Corrupt JPEG data",
    b"Premature end of JPEG",
    b"Inconsistent progression sequence",
    b"Invalid SOS parameters",
    b"Invalid Adobe color",
    b"Warning: unknown JFIF",
    b"Application transferred too many scanlines",
    b"libpng warning:",
    b"libpng error:",
)
"""How the messages of libjpeg (jerror.h) and libpng begin."""


class StderrCapture:
    """Runs decoders and hears what they say; for one process, any number of threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._alone = False
        self._passed_on = 0
        self._descriptor = -1
        os.register_at_fork(after_in_child=self._forget)

    def run(self, decode: Callable[[], Result]) -> tuple[Result, str]:
        """Run a decoder.

        Returns:
            What it returns, and the first line that a decoder wrote meanwhile, empty where it wrote none.
        """
        result, said = self._listen(decode, alone=False)
        if said:
            result, said = self._listen(decode, alone=True)
        return result, said.decode("ascii", "replace")

    def _listen(self, decode: Callable[[], Result], *, alone: bool) -> tuple[Result, bytes]:
        start = self._enter(alone=alone)
        try:
            result = decode()
        finally:
            said = self._leave(start, alone=alone)
        return result, said

    def _enter(self, *, alone: bool) -> int:
        """Give where in the file the words start that are to be heard."""
        with self._changed:
            while self._alone:
                self._changed.wait()
            if alone:
                self._alone = True
                self._changed.wait_for(lambda: not self._running)
            self._running += 1
            if self._running == 1:
                self._redirect()
            return os.fstat(self._descriptor).st_size

    def _leave(self, start: int, *, alone: bool) -> bytes:
        with self._changed:
            end = os.fstat(self._descriptor).st_size
            said = self._read(start, end) if end > start else b""
            if end > self._passed_on:
                self._pass_on(end)
            self._running -= 1
            if not self._running:
                self._variable.value = self._usual
                if end:
                    os.ftruncate(self._descriptor, 0)
                    self._passed_on = 0
            if alone or self._alone:
                self._alone = self._alone and not alone
                self._changed.notify_all()
        return next((line for line in said.splitlines() if line.startswith(_WORDS)), b"")

    def _redirect(self) -> None:
        if self._descriptor < 0:
            self._open()
        self._usual = self._variable.value
        self._variable.value = self._file

    def _open(self) -> None:
        """Make the file in memory that stands in, appended to and never buffered."""
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p
        libc.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        self._descriptor = _unnamed_file()
        self._file = libc.fdopen(os.dup(self._descriptor), b"a")
        libc.setvbuf(self._file, None, _UNBUFFERED, 0)
        self._variable = ctypes.c_void_p.in_dll(libc, "stderr")

    def _pass_on(self, end: int) -> None:
        """Write other libraries' words where they belong."""
        lines = self._read(self._passed_on, end).splitlines(keepends=True)
        self._passed_on = end
        if others := b"".join(line for line in lines if line.strip() and not line.startswith(_WORDS)):
            os.write(2, others)

    def _read(self, start: int, end: int) -> bytes:
        return os.pread(self._descriptor, min(end - start, _MOST_BYTES), start)

    def _forget(self) -> None:
        """Start anew in a forked child, where another thread may have been decoding."""
        self._changed = threading.Condition()
        self._alone = False
        if self._running:
            self._running = 0
            self._variable.value = self._usual
        # The file is shared with the parent.
        self._descriptor = -1


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("medimg-stderr")
    # Python builds for a C library older than glibc 2.27.
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
