"""Keeps the state as small as retention says, and the disk free for what comes."""

import logging
import time

from medimg.runtime.node.audit import Checkpoints
from medimg.runtime.node.config import NodeConfig
from medimg.runtime.node.journal import Journal
from medimg.runtime.node.store import Store

_LOG = logging.getLogger(__name__)

_DONE_S = 600.0
"""A series to which nothing was added for so long after its delivery is folded."""
_DAY_S = 86400.0
_ROOM = 1.1
"""Images are removed before their time once this share of the reserve is free."""


class Upkeep:
    """Removes what is old, each time a little, so that nobody waits for it.

    Args:
        store: the queue.
        results: the results lines.
        audit: the audit log.
        checkpoints: of the audit log, if it is signed.
        config: what is kept, and how long.
    """

    def __init__(
        self,
        store: Store,
        results: Journal,
        audit: Journal,
        checkpoints: Checkpoints | None,
        config: NodeConfig,
    ) -> None:
        self._store, self._results, self._audit = store, results, audit
        self._checkpoints = checkpoints
        self.follow(config)
        self._next_check = 0.0

    def follow(self, config: NodeConfig) -> None:
        """Keep what a configuration says from now on, and tell what destinations are no longer in it."""
        self._keep, self._reserve_bytes = config.retention, 1e6 * config.receive.reserve_mb
        for name, count in self._store.note_absent().items():
            _LOG.warning(
                "destination %s is no longer configured: %d reports for it are closed after images_h, or by "
                "`medimg-run queue skip --destination`",
                *(name, count),
            )

    def tidy(self) -> None:
        """Fold series that are done, and remove images whose time is over, or for which there is no space."""
        self._store.put_in_place()
        now, images_s = time.time(), 3600 * self._keep.images_h
        self._store.close_absent(now - images_s)
        done_s = min(_DONE_S, images_s, _DAY_S * self._keep.results_days)
        self._store.fold(now - done_s, now - images_s)
        self._store.clean_files(now - images_s)
        self._store.make_room(_ROOM * self._reserve_bytes, now)

    def forget(self) -> None:
        """Remove rows and lines that are older than retention says."""
        now = time.time()
        self._store.clean_rows(now - _DAY_S * self._keep.results_days)
        if self._keep.lines_days:
            self._results.remove_before(now - _DAY_S * self._keep.lines_days)
        if self._keep.audit_days:
            removed = self._audit.remove_before(now - _DAY_S * self._keep.audit_days)
            if removed and self._checkpoints:
                self._checkpoints.forget(removed)

    def check(self) -> int:
        """Check the whole database once a day.

        Raises:
            sqlite3.DatabaseError: it is damaged; the next start begins a new one.
        """
        if time.monotonic() >= self._next_check:
            self._store.check()
            self._next_check = time.monotonic() + _DAY_S
        return 0
