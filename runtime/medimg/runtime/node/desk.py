"""What a person may do to the queue, while the node works or not."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.errors import UsageError
from medimg.runtime.node.deliveries import Deliveries
from medimg.runtime.node.records import OpenDelivery

_FAILED = """
SELECT sop_uid, series_uid, outcome, reason, inferred_at FROM instances
    WHERE outcome IN ('unreadable', 'set aside') ORDER BY arrival
"""
_ASK_AGAIN = """
UPDATE instances SET state = 'received', tries = 0, retry_at = 0, outcome = NULL, reason = NULL,
    scores = NULL, model = NULL, inferred_at = NULL, report_uid = NULL
    WHERE arrival = ? AND state != 'received'
"""
_AT_ONCE = 100


@dataclass(frozen=True)
class FailedImage:
    """An image that has no answer but why it has none."""

    sop_instance_uid: str
    series_instance_uid: str
    outcome: str
    reason: str | None
    at: float
    """Seconds since 1970, when it was given up."""


@dataclass(frozen=True)
class Queue:
    """What is not done."""

    waiting: int
    """Images that have no answer yet."""
    deliveries: tuple[OpenDelivery, ...]
    images: tuple[FailedImage, ...]
    """Those that were unreadable or set aside, and whose series is still under way or less than `images_h`
    done."""


@dataclass(frozen=True)
class AskedAgain:
    """What became of a wish to have images classified again."""

    images: int
    without_file: int
    """Images whose files were removed, so that they keep their answers."""


class Desk(Deliveries):
    """The queue, for the command `queue`; each change has its line in the audit log.

    Args:
        folder: of the node's state.
        destinations: that are configured.

    Raises:
        UsageError: no node has worked there, or its files are another user's.
    """

    def __init__(self, folder: Path, destinations: Sequence[str]) -> None:
        if folder.is_dir() and folder.stat().st_uid != os.geteuid():
            raise UsageError(f"{folder}: belongs to user {folder.stat().st_uid}: run this as that user")
        super().__init__(folder, destinations, is_owner=False)

    def queue(self) -> Queue:
        """Give what is not done."""
        ((waiting,),) = self._rows("SELECT count(*) FROM instances WHERE state = 'received'")
        images = tuple(FailedImage(*row) for row in self._rows(_FAILED))
        return Queue(waiting, tuple(self.open_deliveries()), images)

    def chosen(self, reports: Sequence[str], destination: str | None) -> list[OpenDelivery]:
        """Give the open deliveries of some reports, or all of a destination, or both.

        Raises:
            UsageError: a report, or the destination, has none.
        """
        found = self.open_deliveries(destination)
        if not found:
            raise UsageError(f"nothing waits for {destination or 'any destination'}")
        if not reports:
            return found
        chosen = [one for one in found if one.report_uid in set(reports)]
        _require_found(reports, {one.report_uid for one in chosen}, "no such report is open")
        return chosen

    def reprocess(self, images: Sequence[str], series: Sequence[str]) -> AskedAgain:
        """Have images classified again: some, those of some series, or all that failed.

        Args:
            images: SOP instance UIDs.
            series: series instance UIDs; series that are done are opened again.

        Raises:
            UsageError: one is not there.
        """
        for uid in series:
            self._open_again(uid)
        rows = self._rows("SELECT arrival, file, sop_uid, series_uid, outcome FROM instances")
        if images or series:
            chosen = [row for row in rows if row[2] in images or row[3] in series]
        else:
            chosen = [row for row in rows if row[4] in ("unreadable", "set aside")]
        _require_found(images, {row[2] for row in chosen}, "no such image is under way; try --series")
        _require_found(series, {row[3] for row in chosen}, "no such series is known")
        present = [row for row in chosen if row[1] and (self.images / row[1]).exists()]
        for start in range(0, len(present), _AT_ONCE):
            with self._transaction() as database:
                for arrival, _, uid, *_ in present[start : start + _AT_ONCE]:
                    if database.execute(_ASK_AGAIN, (arrival,)).rowcount:
                        self._append(database, "audit", {"event": "reprocess", "sop_instance_uid": uid})
        return AskedAgain(len(present), len(chosen) - len(present))

    def _open_again(self, series_uid: str) -> None:
        for key in self.folded_series(series_uid):
            with self._transaction() as database:
                self._unfold(database, key)


def _require_found(asked: Sequence[str], found: set[str], complaint: str) -> None:
    for uid in asked:
        if uid not in found:
            raise UsageError(f"{uid}: {complaint}")


def as_rows(queue: Queue) -> list[str]:
    """Write what is not done as lines of text."""
    lines = [f"{queue.waiting} images wait for their answer"]
    lines += [
        f"{one.report_uid}  {one.destination}  {one.state}, {one.tries} tries{_because(one.error)}"
        for one in queue.deliveries
    ]
    return lines + [
        f"{image.sop_instance_uid}  {image.outcome}{_because(image.reason)}" for image in queue.images
    ]


def _because(reason: str | None) -> str:
    return f": {json.dumps(reason)[1:-1]}" if reason else ""
