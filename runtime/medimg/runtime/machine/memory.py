"""A bound on the memory that a step may take, whatever its input says."""

import contextlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

BASE_BYTES = 4 * 2**30
"""What work on a model may take in any case."""
PER_BYTE, PER_PIXEL = 16, 4096
"""What it may take beyond that for a byte of the model's file, and for a pixel of its image."""
_STATUS = Path("/proc/self/status")
_ONE_AT_A_TIME = threading.RLock()


def allowance(file_bytes: int, pixels: int = 0) -> int:
    """Return how many bytes work on a model may take: as many times the file as no honest model needs.

    Args:
        file_bytes: size of the model's file.
        pixels: rows times columns of its image, where it is run.
    """
    return BASE_BYTES + PER_BYTE * file_bytes + PER_PIXEL * pixels


@contextlib.contextmanager
def limited(more_bytes: int) -> Iterator[None]:
    """Let the process's private memory grow by so much at most while the block runs.

    What asks for more gets none: `MemoryError` in Python, an exception of their own in native libraries.
    The bound is the process's (RLIMIT_DATA of setrlimit(2)), so blocks of several threads run one after the
    other, and `more_bytes` leaves room for what other threads do meanwhile.
    """
    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([_private_bytes() + more_bytes, *known]), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_bytes() -> int:
    """Return what counts against the limit now: `VmData` of proc(5)."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024
