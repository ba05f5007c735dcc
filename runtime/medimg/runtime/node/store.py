"""The queue: one SQLite database, with images and reports as files beside it.

Every method is one transaction under one lock, committed with `synchronous=FULL` in WAL mode: when it
returns, what it did outlives a loss of power. Methods may be called by any thread.
"""

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from medimg.runtime.node.files import make_folder, remove_temporary, sync_folder

_LOG = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["classified", "not applicable", "unreadable", "set aside"]
Added: TypeAlias = Literal["stored", "known", "other content"]
Stream: TypeAlias = Literal["results", "audit"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS instances(
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    sop_uid TEXT NOT NULL UNIQUE, sop_class TEXT NOT NULL, series_uid TEXT NOT NULL, study_uid TEXT NOT NULL,
    modality TEXT NOT NULL, body_part TEXT NOT NULL, photometric TEXT NOT NULL,
    file TEXT UNIQUE, sha256 TEXT NOT NULL, sender TEXT NOT NULL, received_at REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'received' CHECK(state IN ('received', 'inferred', 'delivered')),
    tries INTEGER NOT NULL DEFAULT 0,
    outcome TEXT, reason TEXT, scores TEXT, model TEXT, inferred_at REAL, report_uid TEXT);
CREATE INDEX IF NOT EXISTS waiting ON instances(arrival) WHERE state = 'received';
CREATE INDEX IF NOT EXISTS unreported ON instances(series_uid) WHERE report_uid IS NULL;
CREATE INDEX IF NOT EXISTS by_series ON instances(series_uid);
CREATE INDEX IF NOT EXISTS by_report ON instances(report_uid);
CREATE INDEX IF NOT EXISTS kept ON instances(inferred_at) WHERE state = 'delivered' AND file IS NOT NULL;
CREATE INDEX IF NOT EXISTS old ON instances(inferred_at) WHERE state = 'delivered' AND file IS NULL;
CREATE TABLE IF NOT EXISTS series(series_uid TEXT PRIMARY KEY, header TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS models(sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, spec TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS reports(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    report_uid TEXT NOT NULL UNIQUE, series_uid TEXT NOT NULL, predecessor TEXT, lines TEXT NOT NULL,
    created_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS reports_by_series ON reports(series_uid);
CREATE TABLE IF NOT EXISTS deliveries(
    report_uid TEXT NOT NULL, destination TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0, error TEXT,
    delivered_at REAL, PRIMARY KEY(report_uid, destination)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS undelivered ON deliveries(destination, report_uid) WHERE delivered_at IS NULL;
CREATE TABLE IF NOT EXISTS streams(stream TEXT PRIMARY KEY, sequence INTEGER NOT NULL, head TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lines(
    stream TEXT NOT NULL, sequence INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY(stream, sequence))
    WITHOUT ROWID;
"""

NO_HEAD = "0" * 64
"""What stands for the hash of the line before the first."""


@dataclass(frozen=True)
class Arrival:
    """An image that has just been received."""

    sop_uid: str
    sop_class: str
    series_uid: str
    study_uid: str
    modality: str
    body_part: str
    photometric: str
    sender: str
    """AE title and address."""
    received_at: float
    """Seconds since 1970, when its last byte had come."""
    sha256: str
    """Of the data set as it was sent."""
    header: Mapping[str, str]
    """Patient and study, for the series' report."""


@dataclass(frozen=True)
class Waiting:
    """An image to be classified."""

    sop_uid: str
    series_uid: str
    study_uid: str
    modality: str
    body_part: str
    photometric: str
    path: Path
    tries: int
    """With the one that begins now."""
    received_at: float


@dataclass(frozen=True)
class Result:
    """The one answer for an image."""

    sop_uid: str
    outcome: Outcome
    model: str
    """SHA-256 of the model's file."""
    scores: tuple[float, ...] | None = None
    """One a class; None unless classified."""
    reason: str | None = None
    """Why it was not classified."""
    line: Mapping[str, object] | None = None
    """Further fields of the results line."""


@dataclass(frozen=True)
class Member:
    """An image of a series, with its answer."""

    sop_uid: str
    sop_class: str
    study_uid: str
    outcome: Outcome
    reason: str | None
    scores: tuple[float, ...] | None
    model: str
    received_at: float


@dataclass(frozen=True)
class Report:
    """What a series' report is stored as."""

    report_uid: str
    series_uid: str
    predecessor: str | None
    members: tuple[str, ...]
    """SOP instance UIDs."""
    line: Mapping[str, object]
    """The series' results line."""


@dataclass(frozen=True)
class Pending:
    """A report that a destination does not have yet."""

    report_uid: str
    series_uid: str
    tries: int
    lines: str
    """The series' result as JSON lines."""


class Store:
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
        self._lock = threading.RLock()
        self._database = _open(folder / "node.db")
        sync_folder(folder)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def image_path(self, sop_uid: str) -> Path:
        """Name an image's file: by a hash, so that no text of a peer becomes a path."""
        return self.images / f"{hashlib.sha256(sop_uid.encode()).hexdigest()}.dcm"

    def report_path(self, report_uid: str) -> Path:
        """Name a report's file."""
        return self.reports / f"{report_uid}.dcm"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    # Receiving

    def add(self, arrival: Arrival, temporary: Path, audited: Mapping[str, object]) -> Added:
        """Queue an image whose content is durable under a temporary name; the name is used up.

        Returns:
            `stored`; `known` if the same data set is here already; `other content` if its UID has another.
        """
        try:
            with self._transaction() as database:
                found = database.execute(
                    "SELECT sha256 FROM instances WHERE sop_uid = ?", (arrival.sop_uid,)
                ).fetchone()
                if found:
                    return "known" if found[0] == arrival.sha256 else "other content"
                path = self.image_path(arrival.sop_uid)
                temporary.replace(path)
                sync_folder(self.images)
                self._insert(database, arrival, path)
                self._append(database, "audit", {"event": "received", **audited})
                return "stored"
        finally:
            temporary.unlink(missing_ok=True)

    def adopt(self, arrival: Arrival, path: Path) -> None:
        """Queue an image whose file is in place and whose row is not."""
        with self._transaction() as database:
            self._insert(database, arrival, path)
            self._append(database, "audit", {"event": "recovered", "sop_instance_uid": arrival.sop_uid})

    def _insert(self, database: sqlite3.Connection, arrival: Arrival, path: Path) -> None:
        database.execute(
            "INSERT INTO instances(sop_uid, sop_class, series_uid, study_uid, modality, body_part,"
            " photometric, file, sha256, sender, received_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(arrival.sop_uid, arrival.sop_class, arrival.series_uid, arrival.study_uid),
                *(arrival.modality, arrival.body_part, arrival.photometric),
                *(path.name, arrival.sha256, arrival.sender, arrival.received_at),
            ),
        )
        database.execute(
            "INSERT OR IGNORE INTO series VALUES (?, ?)", (arrival.series_uid, json.dumps(arrival.header))
        )

    def known_files(self) -> set[str]:
        """Name every image file that has a row."""
        return {name for (name,) in self._rows("SELECT file FROM instances WHERE file IS NOT NULL")}

    # Classifying

    def take(self, limit: int) -> list[Waiting]:
        """Give those that waited longest, and count their tries; one that was tried before comes alone."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT sop_uid, series_uid, study_uid, modality, body_part, photometric, file, tries + 1,"
                " received_at FROM instances WHERE state = 'received' ORDER BY arrival LIMIT ?",
                (limit,),
            ).fetchall()
            tried = next((number for number, row in enumerate(rows) if row[7] > 1), len(rows))
            taken = rows[: max(tried, 1)]
            database.executemany(
                "UPDATE instances SET tries = tries + 1 WHERE sop_uid = ?", [row[:1] for row in taken]
            )
        return [
            Waiting(sop_uid, series, study, modality, body_part, photometric, self.images / file, tries, at)
            for sop_uid, series, study, modality, body_part, photometric, file, tries, at in taken
        ]

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

    # Lines

    def audit(self, event: str, **fields: object) -> None:
        """Add an entry to the audit log that belongs to no other change."""
        with self._transaction() as database:
            self._append(database, "audit", {"event": event, **fields})

    def _append(self, database: sqlite3.Connection, stream: Stream, fields: Mapping[str, object]) -> None:
        sequence, head = _position(database, stream)
        record = {"sequence": sequence + 1, "previous": head, "at": time.time(), **fields}
        text = json.dumps(record, separators=(",", ":"))
        database.execute("INSERT INTO lines VALUES (?, ?, ?)", (stream, sequence + 1, text))
        database.execute(
            "INSERT OR REPLACE INTO streams VALUES (?, ?, ?)",
            (stream, sequence + 1, hashlib.sha256(text.encode()).hexdigest()),
        )

    def continue_stream(self, stream: Stream, sequence: int, head: str) -> None:
        """Continue a stream after a line of its file that the database does not know of."""
        with self._transaction() as database:
            if _position(database, stream)[0] < sequence:
                database.execute("INSERT OR REPLACE INTO streams VALUES (?, ?, ?)", (stream, sequence, head))

    def lines_after(self, stream: Stream, sequence: int) -> list[tuple[int, str]]:
        """Give a stream's lines that are not in its file yet."""
        return self._rows(
            "SELECT sequence, text FROM lines WHERE stream = ? AND sequence > ?"
            " ORDER BY sequence LIMIT 10000",
            stream,
            sequence,
        )

    def forget_lines(self, stream: Stream, up_to: int) -> None:
        """Remove lines that are durable in their file."""
        with self._transaction() as database:
            database.execute("DELETE FROM lines WHERE stream = ? AND sequence <= ?", (stream, up_to))

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
        """Remove the files of images that were answered before a time, and delivered; give how many."""
        with self._transaction() as database:
            files = database.execute(
                "SELECT file FROM instances WHERE state = 'delivered' AND file IS NOT NULL"
                " AND inferred_at < ? LIMIT ?",
                (before, limit),
            ).fetchall()
            for (name,) in files:
                (self.images / name).unlink(missing_ok=True)
            database.executemany("UPDATE instances SET file = NULL WHERE file = ?", files)
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
            database.executemany("DELETE FROM deliveries WHERE report_uid = ?", gone)
            database.execute("DELETE FROM series WHERE series_uid NOT IN (SELECT series_uid FROM instances)")


def _scores(text: str) -> tuple[float, ...] | None:
    scores = json.loads(text)
    return None if scores is None else tuple(scores)


def _position(database: sqlite3.Connection, stream: str) -> tuple[int, str]:
    row = database.execute("SELECT sequence, head FROM streams WHERE stream = ?", (stream,)).fetchone()
    return row or (0, NO_HEAD)


def _open(path: Path) -> sqlite3.Connection:
    """Open the database; a damaged one is set aside, and its images are queued again from their files."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        aside = path.with_name(f"damaged-{time.time_ns()}")
        aside.mkdir()
        for part in path.parent.glob(f"{path.name}*"):
            part.replace(aside / part.name)
        sync_folder(path.parent)
        _LOG.error("%s was damaged (%s) and is now in %s; the queue is made anew", path, error, aside)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database
