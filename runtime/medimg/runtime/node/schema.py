"""The tables of the node's database, and what brings those of earlier versions up to date."""

import json
import logging
import sqlite3
from pathlib import Path

from medimg.runtime.errors import CheckFailedError
from medimg.runtime.node import arrivals
from medimg.runtime.node.identity import digest, patient_digest
from medimg.runtime.node.records import Arrival

_LOG = logging.getLogger(__name__)

VERSION = 2
"""In `PRAGMA user_version`; 0 is a new database, or one of the first version."""

TABLES = """
CREATE TABLE IF NOT EXISTS instances(
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    sop_uid TEXT NOT NULL, sop_class TEXT NOT NULL,
    series_key TEXT NOT NULL, series_uid TEXT NOT NULL, study_uid TEXT NOT NULL,
    modality TEXT NOT NULL, body_part TEXT NOT NULL, photometric TEXT NOT NULL,
    file TEXT UNIQUE, sha256 TEXT NOT NULL, sender TEXT NOT NULL, received_at REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'received' CHECK(state IN ('received', 'inferred', 'delivered')),
    tries INTEGER NOT NULL DEFAULT 0,
    outcome TEXT, reason TEXT, scores TEXT, model TEXT, inferred_at REAL, report_uid TEXT,
    frames INTEGER NOT NULL DEFAULT 0, retry_at REAL NOT NULL DEFAULT 0,
    UNIQUE(sop_uid, series_key));
CREATE INDEX IF NOT EXISTS waiting ON instances(arrival) WHERE state = 'received';
CREATE INDEX IF NOT EXISTS waiting_single ON instances(arrival) WHERE state = 'received' AND frames = 1;
CREATE INDEX IF NOT EXISTS waiting_long ON instances(arrival) WHERE state = 'received' AND frames != 1;
CREATE INDEX IF NOT EXISTS unreported ON instances(series_key) WHERE report_uid IS NULL;
CREATE INDEX IF NOT EXISTS by_series ON instances(series_key, inferred_at);
CREATE INDEX IF NOT EXISTS not_done ON instances(series_key) WHERE state != 'delivered';
CREATE INDEX IF NOT EXISTS by_report ON instances(report_uid);
CREATE INDEX IF NOT EXISTS failed ON instances(series_key, inferred_at)
    WHERE outcome IN ('unreadable', 'set aside');
CREATE TABLE IF NOT EXISTS series(
    series_key TEXT PRIMARY KEY, series_uid TEXT NOT NULL, study_uid TEXT NOT NULL, patient TEXT NOT NULL,
    header TEXT NOT NULL, notes TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS series_by_uid ON series(series_uid);
CREATE INDEX IF NOT EXISTS series_by_study ON series(study_uid);
CREATE TABLE IF NOT EXISTS models(sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, spec TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS reports(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    report_uid TEXT NOT NULL UNIQUE, series_key TEXT NOT NULL, predecessor TEXT, lines TEXT NOT NULL,
    created_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS reports_by_series ON reports(series_key);
CREATE TABLE IF NOT EXISTS deliveries(
    number INTEGER NOT NULL, destination TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK(state IN ('pending', 'refused', 'delivered', 'closed')),
    tries INTEGER NOT NULL DEFAULT 0, error TEXT, next_at REAL NOT NULL DEFAULT 0, changed_at REAL,
    PRIMARY KEY(number, destination)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending ON deliveries(destination, tries, number) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS refused ON deliveries(destination, next_at) WHERE state = 'refused';
CREATE TABLE IF NOT EXISTS absent(destination TEXT PRIMARY KEY, since REAL NOT NULL);
CREATE TABLE IF NOT EXISTS history(
    series_key TEXT PRIMARY KEY, series INTEGER NOT NULL, study INTEGER NOT NULL, patient INTEGER NOT NULL,
    closed_at REAL NOT NULL, files TEXT NOT NULL CHECK(files IN ('kept', 'old', 'going', 'gone')),
    content BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS history_series ON history(series);
CREATE INDEX IF NOT EXISTS history_study ON history(study);
CREATE INDEX IF NOT EXISTS history_old ON history(closed_at);
CREATE INDEX IF NOT EXISTS history_files ON history(closed_at, files, series_key)
    WHERE files != 'gone';
CREATE TABLE IF NOT EXISTS streams(stream TEXT PRIMARY KEY, sequence INTEGER NOT NULL, head TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lines(
    stream TEXT NOT NULL, sequence INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY(stream, sequence))
    WITHOUT ROWID;
"""
"""What is under way is in tables of one row a thing; what is done is one row a series in `history`."""

_FIRST_TABLES = ("instances", "series", "reports", "deliveries")
_FIRST_TO_SECOND = """
CREATE TEMP TABLE keys AS
    SELECT series_uid, study_uid, min(arrival) AS arrival, '' AS series_key, coalesce(header, '{}') AS header
    FROM first_instances LEFT JOIN first_series USING (series_uid) GROUP BY series_uid, study_uid;
UPDATE keys SET series_key = first_key(header, study_uid, series_uid);
CREATE INDEX temp.by_uids ON keys(series_uid, study_uid);
INSERT INTO series
    SELECT series_key, series_uid, study_uid, first_patient(header), first_header(header), '[]' FROM keys;
INSERT INTO instances
    SELECT arrival, sop_uid, sop_class, series_key, series_uid, study_uid, modality, body_part, photometric,
        file, sha256, sender, received_at, state, tries, outcome, reason, scores, model, inferred_at,
        report_uid, 0, 0
    FROM (SELECT i.*, k.series_key FROM first_instances i
        JOIN keys k ON k.series_uid = i.series_uid AND k.study_uid = i.study_uid);
INSERT INTO reports
    SELECT number, report_uid, coalesce(
        (SELECT series_key FROM instances i WHERE i.report_uid = r.report_uid LIMIT 1),
        (SELECT series_key FROM keys k WHERE k.series_uid = r.series_uid ORDER BY k.arrival LIMIT 1), ''),
        predecessor, lines, created_at
    FROM first_reports r;
INSERT INTO deliveries
    SELECT number, destination, iif(delivered_at IS NULL, 'pending', 'delivered'), tries, error, 0,
        delivered_at
    FROM first_deliveries JOIN first_reports USING (report_uid);
"""


def bring_up_to_date(database: sqlite3.Connection, images: Path) -> None:
    """Make the tables, or change those of an earlier version, in one transaction.

    Raises:
        CheckFailedError: a newer medimg made them.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise CheckFailedError(
            f"{images.parent}: its database is of version {version}, and this medimg knows {VERSION}: "
            "install the one that wrote it, or a later one"
        )
    names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version == VERSION and "instances" in names:
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        if "instances" in names:
            _change_first(database, images)
        else:
            _run(database, TABLES)
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _run(database: sqlite3.Connection, script: str) -> None:
    # Not executescript, which commits first.
    for statement in script.split(";\n"):
        if statement.strip():
            database.execute(statement)


def _change_first(database: sqlite3.Connection, images: Path) -> None:
    """Change a database in which a series had one patient, whatever its images said."""
    _LOG.warning("the database is brought up to date; this may take minutes")
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    for (name,) in rows.fetchall():
        database.execute(f"DROP INDEX {name}")
    for name in _FIRST_TABLES:
        database.execute(f"ALTER TABLE {name} RENAME TO first_{name}")
    _run(database, TABLES)
    database.create_function("first_patient", 1, _first_patient)
    database.create_function("first_key", 3, lambda header, *uids: digest(_first_patient(header), *uids))
    database.create_function("first_header", 1, _first_header)
    _run(database, _FIRST_TO_SECOND)
    for name in _FIRST_TABLES:
        database.execute(f"DROP TABLE first_{name}")
    database.execute("DROP TABLE temp.keys")
    _read_patients_again(database, images)


def _first_patient(header: str) -> str:
    return patient_digest(json.loads(header))


def _first_header(header: str) -> str:
    return json.dumps({name: value for name, value in json.loads(header).items() if value})


def _read_patients_again(database: sqlite3.Connection, images: Path) -> None:
    """Ask the files of images without a report for their patients."""
    rows = database.execute("SELECT sop_uid, file FROM instances WHERE report_uid IS NULL AND file NOTNULL")
    for sop_uid, file in rows.fetchall():
        try:
            arrival = arrivals.read_file_arrival(images / file, 2**40)
        except (OSError, arrivals.UnusableError) as error:
            _LOG.error("%s: its patient cannot be read again (%s)", file, error)
            continue
        database.execute(
            "UPDATE instances SET series_key = ?, frames = ? WHERE sop_uid = ?",
            (arrival.series_key, arrival.frames, sop_uid),
        )
        add_series(database, arrival, "REPLACE")
    database.execute("DELETE FROM series WHERE series_key NOT IN (SELECT series_key FROM instances)")


def add_series(database: sqlite3.Connection, arrival: Arrival, verb: str = "INSERT OR IGNORE") -> None:
    """Keep patient and study of a series."""
    identity = arrival.identity
    database.execute(
        f"{verb} INTO series VALUES (?, ?, ?, ?, ?, ?)",
        (
            *(arrival.series_key, arrival.series_uid, arrival.study_uid, identity.patient),
            *(json.dumps(dict(identity.header)), json.dumps(identity.notes)),
        ),
    )
