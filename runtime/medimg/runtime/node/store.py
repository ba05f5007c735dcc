"""The queue: images, their answers, reports and deliveries, with images and reports as files beside it."""

import hashlib
import json
import sqlite3
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.node.files import make_folder, remove_temporary, sync_folder
from medimg.runtime.node.records import Added, Arrival, Member, Pending, Report, Result
from medimg.runtime.node.waiting import WaitingImages


@dataclass
class _Entry:
    """An image on its way into the queue."""

    arrival: Arrival
    temporary: Path
    audited: Mapping[str, object]
    outcome: Added | Exception | None = None
    """What became of it; None until it has been dealt with."""


class Store(WaitingImages):
    """The node's durable state.

    Args:
        folder: made if it is not there.
        destinations: names of those that each report is delivered to.
    """

    def __init__(self, folder: Path, destinations: Sequence[str] = ()) -> None:
        self.folder = make_folder(folder)
        self.images = make_folder(folder / "images")
        self.reports = make_folder(folder / "reports")
        for part in (self.images, self.reports):
            remove_temporary(part)
        self._destinations = tuple(destinations)
        self._arriving: deque[_Entry] = deque()
        super().__init__(folder / "node.db")
        sync_folder(folder)

    def image_path(self, sop_uid: str) -> Path:
        """Name an image's file: by a hash, so that no text of a peer becomes a path."""
        return self.images / f"{hashlib.sha256(sop_uid.encode()).hexdigest()}.dcm"

    def report_path(self, report_uid: str) -> Path:
        """Name a report's file."""
        return self.reports / f"{report_uid}.dcm"

    def overlay_path(self, report_uid: str) -> Path:
        """Name the file of a report's overlay."""
        return self.reports / f"{report_uid}.overlay.dcm"

    # Receiving

    def add(self, arrival: Arrival, temporary: Path, audited: Mapping[str, object]) -> Added:
        """Queue an image whose content is durable under a temporary name; the name is used up.

        Images that several threads add meanwhile are committed together: one flush serves them all.

        Returns:
            `stored`; `known` if the same data set is here already; `other content` if its UID has another.
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
        outcomes: list[Added | Exception] = []
        try:
            with self._transaction() as database:
                outcomes = [self._place(database, entry) for entry in entries]
                if "stored" in outcomes:
                    sync_folder(self.images)
        except (OSError, sqlite3.Error) as error:
            outcomes = [error for _ in entries]
        for entry, outcome in zip(entries, outcomes, strict=True):
            entry.outcome = outcome

    def _place(self, database: sqlite3.Connection, entry: _Entry) -> Added:
        arrival = entry.arrival
        found = database.execute(
            "SELECT sha256 FROM instances WHERE sop_uid = ?", (arrival.sop_uid,)
        ).fetchone()
        if found:
            return "known" if found[0] == arrival.sha256 else "other content"
        path = self.image_path(arrival.sop_uid)
        entry.temporary.replace(path)
        self._insert(database, arrival, path)
        self._append(database, "audit", {"event": "received", **entry.audited})
        return "stored"

    def adopt(self, arrival: Arrival, path: Path) -> None:
        """Queue an image whose file is in place and whose row is not."""
        with self._transaction() as database:
            self._insert(database, arrival, path)
            self._append(database, "audit", {"event": "recovered", "sop_instance_uid": arrival.sop_uid})

    def _insert(self, database: sqlite3.Connection, arrival: Arrival, path: Path) -> None:
        database.execute(
            "INSERT INTO instances(sop_uid, sop_class, series_uid, study_uid, modality, body_part,"
            " photometric, file, sha256, sender, received_at, frames)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(arrival.sop_uid, arrival.sop_class, arrival.series_uid, arrival.study_uid),
                *(arrival.modality, arrival.body_part, arrival.photometric),
                *(path.name, arrival.sha256, arrival.sender, arrival.received_at, arrival.frames),
            ),
        )
        database.execute(
            "INSERT OR IGNORE INTO series VALUES (?, ?)", (arrival.series_uid, json.dumps(arrival.header))
        )

    def known_files(self) -> set[str]:
        """Name every image file that has a row."""
        return {name for (name,) in self._rows("SELECT file FROM instances WHERE file IS NOT NULL")}

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
        """Name the series with images that no report names yet."""
        return [
            uid for (uid,) in self._rows("SELECT DISTINCT series_uid FROM instances WHERE report_uid IS NULL")
        ]

    def is_answered(self, series_uid: str) -> bool:
        """Whether every image of a series has its answer."""
        return not self._rows(
            "SELECT 1 FROM instances WHERE series_uid = ? AND state = 'received' LIMIT 1", series_uid
        )

    def members(self, series_uid: str) -> list[Member]:
        """Give a series' answered images, sorted by UID."""
        rows = self._rows(
            "SELECT sop_uid, sop_class, study_uid, outcome, reason, scores, model, received_at"
            " FROM instances WHERE series_uid = ? AND state != 'received' ORDER BY sop_uid",
            series_uid,
        )
        return [
            Member(uid, kind, study, outcome, reason, _scores(scores), model, at)
            for uid, kind, study, outcome, reason, scores, model, at in rows
        ]

    def header(self, series_uid: str) -> dict[str, str]:
        """Give patient and study of a series."""
        ((text,),) = self._rows("SELECT header FROM series WHERE series_uid = ?", series_uid)
        return dict(json.loads(text))

    def latest_report(self, series_uid: str) -> str | None:
        """Give the UID of a series' newest report."""
        rows = self._rows(
            "SELECT report_uid FROM reports WHERE series_uid = ? ORDER BY number DESC LIMIT 1", series_uid
        )
        return str(rows[0][0]) if rows else None

    def add_report(self, report: Report) -> None:
        """Queue a report, whose file is durable, for every destination."""
        now = time.time()
        with self._transaction() as database:
            line = {"kind": "series", "report_uid": report.report_uid, "at": now, **report.line}
            self._append(database, "results", line)
            self._append(
                database,
                "audit",
                {"event": "reported", "report_uid": report.report_uid, "instances": len(report.members)},
            )
            database.execute(
                "INSERT OR IGNORE INTO reports(report_uid, series_uid, predecessor, lines, created_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (report.report_uid, report.series_uid, report.predecessor, json.dumps(line) + "\n", now),
            )
            # With nowhere to go, a report has arrived where it will ever be.
            database.executemany(
                "UPDATE instances SET report_uid = ?, state = ? WHERE sop_uid = ?",
                [
                    (report.report_uid, "inferred" if self._destinations else "delivered", uid)
                    for uid in report.members
                ],
            )
            database.executemany(
                "INSERT OR IGNORE INTO deliveries(report_uid, destination) VALUES (?, ?)",
                [(report.report_uid, name) for name in self._destinations],
            )

    # Delivering

    def pending(self, destination: str, limit: int = 100) -> list[Pending]:
        """Give the oldest reports that a destination does not have."""
        rows = self._rows(
            "SELECT report_uid, series_uid, tries, lines FROM deliveries JOIN reports USING (report_uid)"
            " WHERE destination = ? AND delivered_at IS NULL ORDER BY number LIMIT ?",
            destination,
            limit,
        )
        return [Pending(*row) for row in rows]

    def delivered(self, report_uid: str, destination: str) -> None:
        """Note that a destination has a report."""
        with self._transaction() as database:
            database.execute(
                "UPDATE deliveries SET delivered_at = ?, tries = tries + 1, error = NULL"
                " WHERE report_uid = ? AND destination = ?",
                (time.time(), report_uid, destination),
            )
            database.execute(
                "UPDATE instances SET state = 'delivered' WHERE report_uid = ?1 AND state = 'inferred'"
                " AND NOT EXISTS (SELECT 1 FROM deliveries WHERE report_uid = ?1 AND delivered_at IS NULL)",
                (report_uid,),
            )
            self._append(
                database,
                "audit",
                {"event": "delivered", "report_uid": report_uid, "destination": destination},
            )

    def delivery_failed(self, report_uid: str, destination: str, error: str) -> None:
        """Count a try and keep its reason; the log gets the first of a report."""
        with self._transaction() as database:
            (tries,) = database.execute(
                "UPDATE deliveries SET tries = tries + 1, error = ? WHERE report_uid = ? AND destination = ?"
                " RETURNING tries",
                (error, report_uid, destination),
            ).fetchone()
            if tries == 1:
                fields = {"report_uid": report_uid, "destination": destination, "reason": error}
                self._append(database, "audit", {"event": "delivery failed", **fields})

    # Housekeeping

    def counts(self) -> dict[str, int]:
        """Count what is under way."""
        queries = {
            "received": "SELECT count(*) FROM instances WHERE state = 'received'",
            "series": "SELECT count(DISTINCT series_uid) FROM instances WHERE report_uid IS NULL",
            "undelivered": "SELECT count(*) FROM deliveries WHERE delivered_at IS NULL",
        }
        return {name: int(self._rows(query)[0][0]) for name, query in queries.items()}

    def last_results(self, count: int) -> list[tuple[str, str, str | None, float]]:
        """Give the newest answers: SOP instance UID, outcome, reason, time."""
        return self._rows(
            "SELECT sop_uid, outcome, reason, inferred_at FROM instances WHERE state != 'received'"
            " ORDER BY arrival DESC LIMIT ?",
            count,
        )

    def clean_files(self, before: float, limit: int = 500) -> int:
        """Remove the files of images that were answered before a time, and delivered; give how many.

        The overlays of their reports go with them.
        """
        files = self._rows(
            "SELECT file, report_uid FROM instances WHERE state = 'delivered' AND file IS NOT NULL"
            " AND inferred_at < ? LIMIT ?",
            before,
            limit,
        )
        # Outside of the lock, which others wait for: many large files take their time.
        for name, report_uid in files:
            (self.images / name).unlink(missing_ok=True)
            self.overlay_path(report_uid).unlink(missing_ok=True)
        with self._transaction() as database:
            database.executemany(
                "UPDATE instances SET file = NULL WHERE file = ?", [(name,) for name, _ in files]
            )
        return len(files)

    def clean_rows(self, before: float) -> None:
        """Forget images that were answered before a time, and reports of series that are forgotten whole."""
        with self._transaction() as database:
            database.execute(
                "DELETE FROM instances WHERE state = 'delivered' AND file IS NULL AND inferred_at < ?",
                (before,),
            )
            gone = database.execute(
                "DELETE FROM reports WHERE created_at < ? AND series_uid NOT IN"
                " (SELECT series_uid FROM instances) RETURNING report_uid",
                (before,),
            ).fetchall()
            for (uid,) in gone:
                self.report_path(uid).unlink(missing_ok=True)
                self.overlay_path(uid).unlink(missing_ok=True)
            database.executemany("DELETE FROM deliveries WHERE report_uid = ?", gone)
            database.execute("DELETE FROM series WHERE series_uid NOT IN (SELECT series_uid FROM instances)")


def _scores(text: str) -> tuple[float, ...] | None:
    scores = json.loads(text)
    return None if scores is None else tuple(scores)
