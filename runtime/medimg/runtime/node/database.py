"""The node's database: one SQLite file, its transactions, and the lines that they write.

Every method is one transaction under one lock, committed with `synchronous=FULL` in WAL mode: when it
returns, what it did outlives a loss of power. Methods may be called by any thread.
"""

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from medimg.runtime.node.files import sync_folder

_LOG = logging.getLogger(__name__)

Stream: TypeAlias = Literal["results", "audit"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS instances(
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    sop_uid TEXT NOT NULL UNIQUE, sop_class TEXT NOT NULL, series_uid TEXT NOT NULL, study_uid TEXT NOT NULL,
    modality TEXT NOT NULL, body_part TEXT NOT NULL, photometric TEXT NOT NULL,
    file TEXT UNIQUE, sha256 TEXT NOT NULL, sender TEXT NOT NULL, received_at REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'received' CHECK(state IN ('received', 'inferred', 'delivered')),
    tries INTEGER NOT NULL DEFAULT 0,
    outcome TEXT, reason TEXT, scores TEXT, model TEXT, inferred_at REAL, report_uid TEXT,
    frames INTEGER NOT NULL DEFAULT 0, retry_at REAL NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS waiting ON instances(arrival) WHERE state = 'received';
CREATE INDEX IF NOT EXISTS waiting_single ON instances(arrival) WHERE state = 'received' AND frames = 1;
CREATE INDEX IF NOT EXISTS waiting_long ON instances(arrival) WHERE state = 'received' AND frames != 1;
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

_LATER_COLUMNS = (
    ("instances", "frames", "INTEGER NOT NULL DEFAULT 0"),
    ("instances", "retry_at", "REAL NOT NULL DEFAULT 0"),
)
"""What the first version's tables lack: table, column, definition."""

NO_HEAD = "0" * 64
"""What stands for the hash of the line before the first."""


class Database:
    """Transactions, and two streams of chained lines.

    Args:
        path: the file; a damaged one is set aside, and begun anew.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._database = _open(path)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Commit what is done within, or none of it.

        Args:
            durable: whether it is on the disk at the end; else a loss of power, though no end of the
                process, may undo it.
        """
        with self._lock:
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
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
        with self._transaction(durable=False) as database:
            database.execute("DELETE FROM lines WHERE stream = ? AND sequence <= ?", (stream, up_to))


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
        # Pages of 4 kB; at SQLite's own 1000 all wait a few times as often while they are put in place.
        database.execute("PRAGMA wal_autocheckpoint = 4000")
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        _add_columns(database)
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def _add_columns(database: sqlite3.Connection) -> None:
    """Bring the tables of an older version up to the schema; new ones are made by it."""
    for table, column, definition in _LATER_COLUMNS:
        known = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
        if known and column not in known:
            database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {definition}")
