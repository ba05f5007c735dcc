"""What was refused or broke off on the network: in journal, audit log and metrics; repetitions together."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from medimg.runtime.files.text import printable
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.database import Database

_LOG = logging.getLogger(__name__)

TOLD_AGAIN_S = 60.0
"""The same of the same sender is told so often at most, with how many times it was seen."""
_MAX_KINDS = 1000
"""What else is seen meanwhile is told of `others` together."""

Event: TypeAlias = Literal[
    "connection refused", "association rejected", "association aborted", "transfer aborted"
]
_COUNTERS: dict[Event, str] = {
    "connection refused": "connections_refused",
    "association rejected": "associations_rejected",
    "association aborted": "associations_aborted",
    "transfer aborted": "transfers_aborted",
}
"""Names of the metrics."""


@dataclass
class _Seen:
    reason: str
    told_at: float
    untold: int = 0


class Sightings:
    """Any thread may tell it what it saw.

    Args:
        store: has the audit log.
        counters: count each sighting.
        clock: seconds that never jump.
    """

    def __init__(
        self, store: Database, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._counters, self._clock = store, counters, clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[Event, str, str], _Seen] = {}

    def note(self, event: Event, sender: str, cause: str, reason: str) -> None:
        """Take note.

        Args:
            event: what happened.
            sender: AE title and address, or the address.
            cause: one of few words, for the metric.
            reason: the whole story.
        """
        self._counters.add(_COUNTERS[event], reason=cause)
        now = self._clock()
        with self._lock:
            if len(self._seen) >= _MAX_KINDS and (event, sender, cause) not in self._seen:
                sender = "others"
            known = self._seen.get((event, sender, cause))
            if known:
                known.reason, known.untold = reason, known.untold + 1
                return
            self._seen[event, sender, cause] = _Seen(reason, now)
        self._tell(event, sender, reason, 1)

    def work(self) -> None:
        """Tell what was seen again in the meantime, and forget what was not."""
        now = self._clock()
        with self._lock:
            due = {key: seen for key, seen in self._seen.items() if now - seen.told_at >= TOLD_AGAIN_S}
            again = [(key, seen.reason, seen.untold) for key, seen in due.items() if seen.untold]
            for key, seen in due.items():
                if seen.untold:
                    self._seen[key] = _Seen(seen.reason, now)
                else:
                    del self._seen[key]
        for (event, sender, _), reason, times in again:
            self._tell(event, sender, reason, times)

    def _tell(self, event: Event, sender: str, reason: str, times: int) -> None:
        _LOG.warning("%s: %s: %s%s", printable(sender), event, printable(reason), _times(times))
        try:
            self._store.audit("refused", sender=sender, reason=f"{event}: {reason}", times=times)
        except sqlite3.Error as error:
            _LOG.error("the audit log cannot be written: %s", error)


def _times(times: int) -> str:
    return f" ({times} times)" if times > 1 else ""
