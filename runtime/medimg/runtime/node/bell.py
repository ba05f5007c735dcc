"""Wakes a thread that waits for work."""

import threading


class Bell:
    """Any thread rings it; one waits for it. Rings while nobody waits are kept, as one."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        """Tell that there is work."""
        self._rung.set()

    def wait(self, timeout_s: float) -> None:
        """Wait until there is work."""
        self._rung.wait(timeout_s)
        self._rung.clear()
