"""Databases of earlier versions open, with everything that was under way."""

import json
import sqlite3
from pathlib import Path

import pytest

from medimg.runtime.errors import CheckFailedError, UsageError
from medimg.runtime.node.config import Delivery, DicomDestination
from medimg.runtime.node.desk import Desk
from medimg.runtime.node.schema import VERSION
from medimg.runtime.node.store import Store

from .conftest import Start, free_port, make_config, make_image, series_of, uid_of, wait_for

FIRST = """
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
"""The tables of the first version, as commit 6fd6c12 made them."""
HEADER = {"PatientName": "Doe^Jane", "PatientID": "P1", "PatientSex": "F", "AccessionNumber": ""}
_INSERT = """
INSERT INTO instances(sop_uid, sop_class, series_uid, study_uid, modality, body_part, photometric, file,
    sha256, sender, received_at, state, outcome, scores, model, inferred_at, report_uid)
VALUES (?, '1.2.840.10008.5.1.4.1.1.2', ?, ?, 'CT', 'HEAD', 'MONOCHROME2', ?,
    'sha', 'A@b', 1.5, ?, ?, ?, ?, ?, ?)
"""


def first_database(folder: Path) -> sqlite3.Connection:
    """Make a database of the first version: a delivered series, one with two studies, and one that waits."""
    folder.mkdir()
    database = sqlite3.connect(folder / "node.db")
    database.executescript(FIRST)
    done = ("classified", "[0.25, 0.75]", "m", 2.5)
    rows = [
        ("1.1", "1.2.1", "1.3.1", None, "delivered", *done, "9.1"),
        ("1.2", "1.2.1", "1.3.1", None, "delivered", *done, "9.1"),
        ("1.3", "1.2.2", "1.3.1", "c.dcm", "inferred", *done, "9.2"),
        ("1.4", "1.2.2", "1.3.9", "d.dcm", "inferred", *done, "9.2"),
    ]
    database.executemany(_INSERT, rows)
    database.executemany(
        "INSERT INTO series VALUES (?, ?)", [(uid, json.dumps(HEADER)) for uid in ("1.2.1", "1.2.2")]
    )
    database.executemany(
        "INSERT INTO reports(report_uid, series_uid, lines, created_at) VALUES (?, ?, 'line', 3.5)",
        [("9.1", "1.2.1"), ("9.2", "1.2.2")],
    )
    database.executemany(
        "INSERT INTO deliveries VALUES (?, 'pacs', 2, NULL, ?)", [("9.1", 4.5), ("9.2", None)]
    )
    database.execute("INSERT INTO streams VALUES ('audit', 7, 'head')")
    database.commit()
    return database


def test_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    first_database(tmp_path / "state").close()
    store = Store(tmp_path / "state", ["pacs"])
    try:
        (pending,) = store.pending("pacs")
        assert (pending.report_uid, pending.lines, pending.tries) == ("9.2", "line", 2)
        keys = dict(store._rows("SELECT sop_uid, series_key FROM instances"))
        assert keys["1.1"] == keys["1.2"] != keys["1.3"] != keys["1.4"]
        assert store.series(keys["1.1"]).header == {name: value for name, value in HEADER.items() if value}
        assert [member.scores for member in store.members(keys["1.1"])] == [(0.25, 0.75)] * 2
        assert store.latest_report(keys["1.1"]) == ("9.1", None)
        assert store._rows("SELECT sequence FROM streams") == [(7,)]
        assert store.fold(1e12, 1e12) == 1
        store.delivered(pending, "pacs")
        assert store.fold(1e12, 1e12) == 2
        # Their files have the names that the first version gave.
        assert store.unknown_files(["c.dcm", "d.dcm", "e.dcm"]) == ["e.dcm"]
        store.check()
    finally:
        store.close()
    Store(tmp_path / "state", ["pacs"]).close()


def test_images_that_waited_are_asked_for_their_patients(start: Start, tmp_path: Path) -> None:
    """The first version put two patients of one series UID together."""
    images = [
        make_image(tmp_path / "a.dcm", series="1.2.5", tags={"StudyInstanceUID": "1.3.5"}),
        make_image(tmp_path / "b.dcm", series="1.2.5", tags={"StudyInstanceUID": "1.3.5", "PatientID": "P2"}),
    ]
    database = first_database(tmp_path / "state")
    (tmp_path / "state" / "images").mkdir()
    for image in images:
        (tmp_path / "state" / "images" / image.name).write_bytes(image.read_bytes())
        row = (uid_of(image), "1.2.5", "1.3.5", image.name, "received", None, None, None, None, None)
        database.execute(_INSERT, row)
    database.execute("INSERT INTO series VALUES ('1.2.5', ?)", (json.dumps(HEADER),))
    database.commit()
    database.close()
    destination = DicomDestination("pacs", "PACS", "127.0.0.1", free_port())
    node = start(make_config(tmp_path, deliver=Delivery((destination,))))
    wait_for(lambda: not node.store.unreported_series())
    found = {series_of(image): node.store.members(series_of(image)) for image in images}
    assert [[member.sop_uid for member in members] for members in found.values()] == [
        [uid_of(image)] for image in images
    ]
    assert node.store.series(series_of(images[1])).header["PatientID"] == "P2"


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / "state").close()
    with sqlite3.connect(tmp_path / "state" / "node.db") as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(CheckFailedError, match="install the one that wrote it"):
        Store(tmp_path / "state")
    with pytest.raises(UsageError, match="another version"):
        Desk(tmp_path / "state", ())
