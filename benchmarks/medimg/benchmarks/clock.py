"""The clock that a measurement reads and waits on; a test puts its own in place."""

import time
from typing import Protocol


class Clock(Protocol):
    """Time in nanoseconds from any fixed moment."""

    def now_ns(self) -> int:
        """Read it."""

    def sleep_until_ns(self, when_ns: int) -> None:
        """Return at that time, or at once if it has passed."""


class RealClock:
    """The machine's steady clock."""

    def now_ns(self) -> int:
        """Read it."""
        return time.perf_counter_ns()

    def sleep_until_ns(self, when_ns: int) -> None:
        """Return at that time, or at once if it has passed."""
        if (left_ns := when_ns - time.perf_counter_ns()) > 0:
            time.sleep(left_ns / 1e9)
