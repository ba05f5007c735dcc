"""The images that wait for their answer: whose turn it is, and what is tried again later."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from medimg.runtime.node.database import Database
from medimg.runtime.node.records import Waiting

_LONGEST_WAIT_S = 3600.0
"""For a next try; what seems to wait longer has seen the clock set back."""
_COLUMNS = (
    "SELECT sop_uid, series_uid, study_uid, modality, body_part, photometric, file, tries + 1, received_at,"
    " frames FROM instances WHERE state = 'received' AND retry_at NOT BETWEEN ?1 AND ?1 + ?2"
)
_SINGLE = f"{_COLUMNS} AND frames = 1 ORDER BY arrival LIMIT ?3"
_LONG = f"{_COLUMNS} AND frames != 1 ORDER BY arrival LIMIT ?3"


class WaitingImages(Database):
    """The part of the store that hands out images, to one thread; those of several frames apart."""

    images: Path
    """The folder of their files."""

    def take(self, limit: int) -> list[Waiting]:
        """Give the images of one frame that waited longest, and count their tries.

        One that was tried before comes alone. What ends the process does not undo the count; that a loss of
        power may do so costs one more try.
        """
        found = self._ready(_SINGLE, limit)
        tried = next((number for number, item in enumerate(found) if item.tries > 1), len(found))
        taken = found[: max(tried, 1)]
        self._count_tries(taken)
        return taken

    def take_long(self, under_way: Collection[str]) -> Waiting | None:
        """Give the image of several frames that waited longest and is not under way, and count its try.

        One that was tried before is given only while no other is under way.
        """
        found = self._ready(_LONG, len(under_way) + 1)
        fresh = next((item for item in found if item.sop_uid not in under_way), None)
        if fresh is None or (under_way and fresh.tries > 1):
            return None
        self._count_tries([fresh])
        return fresh

    def postpone(self, sop_uid: str, wait_s: float) -> None:
        """Have an image's next try wait, up to an hour."""
        with self._transaction(durable=False) as database:
            database.execute(
                "UPDATE instances SET retry_at = ? WHERE sop_uid = ?", (time.time() + wait_s, sop_uid)
            )

    def ready_count(self, limit: int) -> int:
        """Count the images of one frame whose turn is now, up to a limit."""
        ((count,),) = self._rows(
            "SELECT count(*) FROM (SELECT 1 FROM instances WHERE state = 'received' AND frames = 1"
            " AND retry_at NOT BETWEEN ?1 AND ?1 + ?2 LIMIT ?3)",
            *(time.time(), _LONGEST_WAIT_S, limit),
        )
        return int(count)

    def oldest_waiting(self) -> float | None:
        """Give when the image that has waited longest was received; None if none waits."""
        rows = self._rows(
            "SELECT received_at FROM instances WHERE state = 'received' ORDER BY arrival LIMIT 1"
        )
        return float(rows[0][0]) if rows else None

    def _ready(self, query: str, limit: int) -> list[Waiting]:
        rows = self._rows(query, time.time(), _LONGEST_WAIT_S, limit)
        return [
            Waiting(
                uid, series, study, modality, body_part, photometric, self.images / file, tries, at, frames
            )
            for uid, series, study, modality, body_part, photometric, file, tries, at, frames in rows
        ]

    def _count_tries(self, taken: Sequence[Waiting]) -> None:
        if taken:
            with self._transaction(durable=False) as database:
                database.executemany(
                    "UPDATE instances SET tries = tries + 1 WHERE sop_uid = ?",
                    [(item.sop_uid,) for item in taken],
                )
