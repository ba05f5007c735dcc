"""The queue of images and their answers."""

import json
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.node.deliveries import Deliveries
from medimg.runtime.node.files import remove_temporary, sync_folder
from medimg.runtime.node.history import SHA256_KEPT
from medimg.runtime.node.identity import merged
from medimg.runtime.node.records import Added, Arrival, Member, Result, Series
from medimg.runtime.node.schema import add_series
from medimg.runtime.node.waiting import WaitingImages

_LOG = logging.getLogger(__name__)


@dataclass
class _Entry:
    """An image on its way into the queue."""

    arrival: Arrival
    temporary: Path
    audited: Mapping[str, object]
    outcome: Added | Exception | None = None
    """What became of it; None until it has been dealt with."""


class Store(Deliveries, WaitingImages):
    """The node's durable state.

    Args:
        folder: made if it is not there.
        destinations: names of those that each report is delivered to.
    """

    def __init__(self, folder: Path, destinations: Sequence[str] = ()) -> None:
        self._arriving: deque[_Entry] = deque()
        super().__init__(folder, destinations)
        # Images and reports begin here too, since their own folders take seconds to look through.
        remove_temporary(self.folder)

    # Receiving

    def add(self, arrival: Arrival, temporary: Path, audited: Mapping[str, object]) -> Added:
        """Queue an image whose content is durable under a temporary name; the name is used up.

        Images that several threads add meanwhile are committed together: one flush serves them all.

        Returns:
            `stored`, or `flagged` if it was stored and contradicts others; `known` if the same data set is
            here already; `other content` if its UID has another.
        """
        entry = _Entry(arrival, temporary, audited)
        self._arriving.append(entry)
        try:
            with self._lock:
                if entry.outcome is None:
                    self._add_together([self._arriving.popleft() for _ in range(len(self._arriving))])
        finally:
            temporary.unlink(missing_ok=True)
        if isinstance(entry.outcome, Exception):
            raise entry.outcome
        assert entry.outcome is not None, "whoever had the lock has dealt with it"
        return entry.outcome

    def _add_together(self, entries: Sequence[_Entry]) -> None:
        outcomes: Sequence[Added | Exception] = []
        try:
            with self._transaction() as database:
                outcomes = [self._place(database, entry) for entry in entries]
                if not {"stored", "flagged"}.isdisjoint(outcomes):
                    sync_folder(self.images)
        except (OSError, sqlite3.Error) as error:
            outcomes = [error for _ in entries]
        for entry, outcome in zip(entries, outcomes, strict=True):
            entry.outcome = outcome

    def _place(self, database: sqlite3.Connection, entry: _Entry) -> Added:
        arrival = entry.arrival
        self._unfold(database, arrival.series_key)
        found = database.execute(
            "SELECT sha256, series_key FROM instances WHERE sop_uid = ?", (arrival.sop_uid,)
        ).fetchall()
        if found:
            same = arrival.sha256[:SHA256_KEPT], arrival.series_key
            is_known = any((sha256[:SHA256_KEPT], key) == same for sha256, key in found)
            return "known" if is_known else "other content"
        path = self.image_path(arrival.series_key, arrival.sop_uid)
        # What the database forgets is read from the file, where its time would be another.
        os.utime(entry.temporary, ns=(round(1e6 * arrival.received_at) * 1000,) * 2)
        entry.temporary.replace(path)
        contradictions = self._insert(database, arrival, path)
        self._append(database, "audit", {"event": "received", **entry.audited})
        return self._flag(database, arrival, contradictions)

    def _flag(self, database: sqlite3.Connection, arrival: Arrival, contradictions: Sequence[str]) -> Added:
        if not contradictions:
            return "stored"
        uids = {"sop_instance_uid": arrival.sop_uid, "series_instance_uid": arrival.series_uid}
        for reason in contradictions:
            self._append(database, "audit", {"event": "contradiction", **uids, "reason": reason})
            _LOG.warning("series %s: %s", arrival.series_uid, reason)
        return "flagged"

    def adopt(self, arrival: Arrival, path: Path) -> None:
        """Queue an image whose file is in place and whose row is not."""
        with self._transaction() as database:
            self._unfold(database, arrival.series_key)
            contradictions = self._insert(database, arrival, path)
            self._append(database, "audit", {"event": "recovered", "sop_instance_uid": arrival.sop_uid})
            self._flag(database, arrival, contradictions)

    def _insert(self, database: sqlite3.Connection, arrival: Arrival, path: Path) -> list[str]:
        """Add an image's row; give what it contradicts."""
        database.execute(
            "INSERT INTO instances(sop_uid, sop_class, series_key, series_uid, study_uid, modality,"
            " body_part, photometric, file, sha256, sender, received_at, frames)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(arrival.sop_uid, arrival.sop_class, arrival.series_key, arrival.series_uid),
                *(arrival.study_uid, arrival.modality, arrival.body_part, arrival.photometric),
                *(path.name, arrival.sha256, arrival.sender, round(1e6 * arrival.received_at) / 1e6),
                arrival.frames,
            ),
        )
        row = database.execute(
            "SELECT header, notes FROM series WHERE series_key = ?", (arrival.series_key,)
        ).fetchone()
        if row is None:
            add_series(database, arrival)
            return self.contradictions(
                arrival.series_key, arrival.series_uid, arrival.study_uid, arrival.identity.patient
            )
        known = json.loads(row[0]), json.loads(row[1])
        header, notes, differing = merged(*known, arrival.identity)
        if (header, notes) != known:
            database.execute(
                "UPDATE series SET header = ?, notes = ? WHERE series_key = ?",
                (json.dumps(header), json.dumps(notes), arrival.series_key),
            )
        return [f"the images of the series differ in {name}" for name in differing]

    # Classifying

    def record(self, results: Sequence[Result]) -> None:
        """Commit answers; an image that has one keeps it."""
        now = time.time()
        with self._transaction() as database:
            for result in results:
                changed = database.execute(
                    "UPDATE instances SET state = 'inferred', outcome = ?, reason = ?, scores = ?, model = ?,"
                    " inferred_at = ? WHERE sop_uid = ? AND state = 'received'",
                    (
                        *(result.outcome, result.reason),
                        *(json.dumps(result.scores), result.model, now, result.sop_uid),
                    ),
                ).rowcount
                if changed:
                    answer = {"sop_instance_uid": result.sop_uid, "outcome": result.outcome}
                    self._append(
                        database, "results", {"kind": "instance", **answer, "at": now, **(result.line or {})}
                    )
                    self._append(
                        database, "audit", {"event": "answered", **answer, "model_sha256": result.model}
                    )

    def add_model(self, sha256: str, name: str, spec: str) -> None:
        """Keep what a model says about itself, for reports that name it."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", (sha256, name, spec))
            self._append(database, "audit", {"event": "model", "model_sha256": sha256, "name": name})

    def model(self, sha256: str) -> tuple[str, str]:
        """Give a model's name and the JSON of its spec."""
        ((name, spec),) = self._rows("SELECT name, spec FROM models WHERE sha256 = ?", sha256)
        return name, spec

    # Series and reports

    def unreported_series(self) -> list[str]:
        """Give the keys of series with images that no report names yet."""
        return [
            key for (key,) in self._rows("SELECT DISTINCT series_key FROM instances WHERE report_uid IS NULL")
        ]

    def is_answered(self, series_key: str) -> bool:
        """Whether every image of a series has its answer."""
        return not self._rows(
            "SELECT 1 FROM instances WHERE series_key = ? AND state = 'received' LIMIT 1", series_key
        )

    def members(self, series_key: str) -> list[Member]:
        """Give a series' answered images, sorted by UID."""
        rows = self._rows(
            "SELECT sop_uid, sop_class, outcome, reason, scores, model, received_at, file"
            " FROM instances WHERE series_key = ? AND state != 'received' ORDER BY sop_uid",
            series_key,
        )
        return [
            Member(
                uid, kind, outcome, reason, _scores(scores), model, at, self.images / file if file else None
            )
            for uid, kind, outcome, reason, scores, model, at, file in rows
        ]

    def series(self, series_key: str) -> Series:
        """Give patient and study of a series."""
        ((series_uid, study_uid, patient, header, notes),) = self._rows(
            "SELECT series_uid, study_uid, patient, header, notes FROM series WHERE series_key = ?",
            series_key,
        )
        contradictions = self.contradictions(series_key, series_uid, study_uid, patient)
        return Series(
            *(series_key, series_uid, study_uid, json.loads(header)),
            *(tuple(json.loads(notes)), tuple(contradictions)),
        )

    def latest_report(self, series_key: str) -> tuple[str, str | None] | None:
        """Give the UIDs of a series' newest report and of its predecessor."""
        rows = self._rows(
            "SELECT report_uid, predecessor FROM reports WHERE series_key = ? ORDER BY number DESC LIMIT 1",
            series_key,
        )
        return rows[0] if rows else None

    # Housekeeping

    def counts(self) -> dict[str, int]:
        """Count what is under way."""
        queries = {
            "received": "SELECT count(*) FROM instances WHERE state = 'received'",
            "series": "SELECT count(DISTINCT series_key) FROM instances WHERE report_uid IS NULL",
            "undelivered": "SELECT (SELECT count(*) FROM deliveries WHERE state = 'pending') +"
            " (SELECT count(*) FROM deliveries WHERE state = 'refused')",
            "deliveries_set_aside": "SELECT count(*) FROM deliveries WHERE state = 'refused'",
            "images_set_aside": "SELECT count(*) FROM instances WHERE outcome IN ('unreadable', 'set aside')",
        }
        return {name: int(self._rows(query)[0][0]) for name, query in queries.items()}

    def last_results(self, count: int) -> list[tuple[str, str, str | None, float]]:
        """Give the newest answers: SOP instance UID, outcome, reason, time."""
        return self._rows(
            "SELECT sop_uid, outcome, reason, inferred_at FROM instances WHERE state != 'received'"
            " ORDER BY arrival DESC LIMIT ?",
            count,
        )


def _scores(text: str) -> tuple[float, ...] | None:
    scores = json.loads(text)
    return None if scores is None else tuple(scores)
