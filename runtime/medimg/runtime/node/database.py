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
from urllib.parse import quote

from medimg.runtime.errors import UsageError
from medimg.runtime.node.files import sync_folder
from medimg.runtime.node.schema import VERSION, bring_up_to_date

_LOG = logging.getLogger(__name__)

Stream: TypeAlias = Literal["results", "audit"]

_CACHE_KB = 2**16
_BUSY_S = 10.0
"""How long a transaction may wait for one of the command `queue`, which takes milliseconds."""
_LOG_BYTES = 2**24
"""Length of the log of changes from which on it is put in place."""
_CHECKED_AT_START_BYTES = 2**28
"""A larger file is checked while the node works, which then ends and begins anew if it is damaged."""
NO_HEAD = "0" * 64
"""What stands for the hash of the line before the first."""


class Database:
    """Transactions, and two streams of chained lines.

    Args:
        path: the file; a damaged one is set aside, and begun anew.
        is_owner: whether this process may do so; else the file must be there, and of this version.
    """

    def __init__(self, path: Path, *, is_owner: bool = True) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._database = _open(path) if is_owner else _visit(path)

    def put_in_place(self) -> None:
        """Write the log of changes into the file, nearly all of it while others go on.

        SQLite's own way does so within a transaction, for which everybody waits.
        """
        log = self.path.with_name(f"{self.path.name}-wal")
        if not log.exists() or log.stat().st_size < _LOG_BYTES:
            return
        beside = sqlite3.connect(self.path, isolation_level=None)
        try:
            beside.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            beside.close()
        with self._lock:
            self._database.execute("PRAGMA wal_checkpoint(RESTART)")

    def suspect(self) -> None:
        """Have the whole file checked at the next start, whatever its size."""
        _suspicion(self.path).touch()

    def check(self) -> None:
        """Check the file table by table, beside all other work.

        Raises:
            sqlite3.DatabaseError: it is damaged.
        """
        database = sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True)
        try:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in names:
                # One at a time, so that what is written meanwhile can be put in place between them.
                found = database.execute(f"PRAGMA quick_check({name})").fetchone()[0]
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
        finally:
            database.close()

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

    def note_removal(self, stream: Stream, sequence: int, head: str) -> None:
        """Have the stream itself say that its lines up to one are about to be removed."""
        with self._transaction() as database:
            kind = "event" if stream == "audit" else "kind"
            self._append(database, stream, {kind: "removed", "up_to": sequence, "head": head})

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
        database = _connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        aside = path.with_name(f"damaged-{time.time_ns()}")
        aside.mkdir()
        for part in path.parent.glob(f"{path.name}*"):
            part.replace(aside / part.name)
        sync_folder(path.parent)
        _LOG.error("%s was damaged (%s) and is now in %s; the queue is made anew", path, error, aside)
        database = _connect(path)
    _suspicion(path).unlink(missing_ok=True)
    return database


def _visit(path: Path) -> sqlite3.Connection:
    """Open a database that another process may be working on."""
    if not path.is_file():
        raise UsageError(f"{path.parent}: no node has worked there")
    database = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=30,
    )
    if database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        database.close()
        raise UsageError(f"{path}: is of another version of medimg: start the node once with this one")
    return database


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # Pages of 4 kB; `put_in_place` should come first.
        database.execute("PRAGMA wal_autocheckpoint = 40000")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        is_small = path.stat().st_size <= _CHECKED_AT_START_BYTES
        if is_small or _is_short(path, database) or _suspicion(path).exists():
            _require_whole(database)
        bring_up_to_date(database, path.parent / "images")
    except BaseException:
        database.close()
        raise
    return database


def _is_short(path: Path, database: sqlite3.Connection) -> bool:
    """Whether the file lacks pages that it says it has."""
    ((pages,), (page_bytes,)) = (
        database.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
    )
    return path.stat().st_size < pages * page_bytes and not path.with_name(f"{path.name}-wal").exists()


def _require_whole(database: sqlite3.Connection) -> None:
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _suspicion(path: Path) -> Path:
    return path.with_name("check-node.db")
