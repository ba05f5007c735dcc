"""What is done takes little space, can be opened again, and goes when its time is over."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from medimg.runtime.errors import CheckFailedError
from medimg.runtime.node.audit import verify_log
from medimg.runtime.node.config import Reception
from medimg.runtime.node.files import write_temporary
from medimg.runtime.node.identity import Identity
from medimg.runtime.node.journal import Journal, read_lines
from medimg.runtime.node.records import Arrival, Report, Result
from medimg.runtime.node.service import Node
from medimg.runtime.node.store import Store

from .conftest import Start, make_config, make_image, make_series, storescu, uid_of, wait_for

pytestmark = pytest.mark.long

LATER = 1e12


def arrival(number: int, series: str = "1.2", patient: str = "patient") -> Arrival:
    identity = Identity({"PatientName": "Doe^Jane"}, ("note",), patient)
    sha256 = f"{number:064x}"
    return Arrival(
        *(f"1.2.3.{number}", "1.1", series, "1.3", "CT", "", "MONOCHROME2", "A@b", 1.5 + number),
        *(sha256, identity),
    )


def add(store: Store, one: Arrival) -> str:
    return store.add(one, write_temporary(store.images, b"content"), {})


def finish(store: Store, *arrivals: Arrival, report: str = "9.9", outcome: str = "classified") -> None:
    """Answer images, report them, and have every destination take the report."""
    store.record([Result(one.sop_uid, outcome, "m", (0.1, 1 / 3)) for one in arrivals])  # type: ignore[arg-type]
    key = arrivals[0].series_key
    members = tuple(member.sop_uid for member in store.members(key))
    latest = store.latest_report(key)
    store.add_report(Report(report, key, latest[0] if latest else None, members, {}))
    store.report_path(report).write_bytes(b"report")
    store.overlay_path(report).write_bytes(b"overlay")
    for pending in store.pending("pacs"):
        store.delivered(pending, "pacs")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state", ["pacs"])


def test_a_series_that_is_done_becomes_one_row_and_opens_again(store: Store) -> None:
    images = [arrival(number) for number in range(3)]
    assert [add(store, one) for one in images] == ["stored"] * 3
    key = images[0].series_key
    finish(store, *images)
    members, series = store.members(key), store.series(key)
    assert store.fold(0, 0) == 0
    assert store.fold(LATER, LATER) == 1
    for table in ("instances", "series", "reports", "deliveries"):
        assert store._rows(f"SELECT * FROM {table}") == []
    assert store.unknown_files([*(path.name for path in store.images.iterdir()), "new.dcm"]) == ["new.dcm"]
    # The same again is known, another content is not taken, and a late one joins the others.
    assert add(store, images[1]) == "known"
    assert add(store, replace(images[1], sha256="f" * 64)) == "other content"
    assert store.latest_report(key) == ("9.9", None)
    late = arrival(7)
    assert add(store, late) == "stored"
    store.record([Result(late.sop_uid, "classified", "m", (0.5, 0.5))])
    again = store.members(key)
    assert [one.sop_uid for one in again] == sorted([*(one.sop_uid for one in images), late.sop_uid])
    for before, after in zip(members, again, strict=False):
        assert after.scores == pytest.approx(before.scores, rel=1e-8)
        assert replace(after, scores=before.scores) == before
    assert store.series(key) == series


def test_what_is_not_done_is_not_folded(store: Store) -> None:
    for series, part in (("1", arrival(1, "1")), ("2", arrival(2, "2")), ("3", arrival(3, "3"))):
        assert add(store, part) == "stored", series
    store.record([Result("1.2.3.2", "classified", "m", (1.0, 0.0))])
    finish(store, arrival(3, "3"), outcome="unreadable")
    # The last may be tried again by hand, as long as its image is kept.
    assert store.fold(LATER, 0) == 0
    assert store.fold(LATER, LATER) == 1


def test_contradictions_are_found_among_what_is_done(store: Store) -> None:
    add(store, arrival(1))
    finish(store, arrival(1))
    store.fold(LATER, LATER)
    other = arrival(2, patient="other")
    assert add(store, other) == "flagged"
    assert len(store.series(other.series_key).contradictions) == 2


def test_files_and_rows_go_when_their_time_is_over(store: Store) -> None:
    add(store, arrival(1))
    add(store, arrival(2, "1.4"))
    finish(store, arrival(1))
    store.fold(LATER, LATER)
    assert (store.clean_files(0), store.clean_rows(0)) == (0, 0)
    assert store.clean_files(LATER) == 1
    waiting = arrival(2, "1.4")
    assert [path.name for path in store.images.iterdir()] == [
        store.image_path(waiting.series_key, waiting.sop_uid).name
    ]
    assert [path.name for path in store.reports.iterdir()] == ["9.9.dcm"]
    assert store.clean_files(LATER) == 0
    assert store.clean_rows(LATER) == 1
    assert list(store.reports.iterdir()) == []
    assert store._rows("SELECT sop_uid FROM instances") == [("1.2.3.2",)]
    assert add(store, arrival(1)) == "stored"


def test_a_file_that_was_being_removed_is_not_queued_again(store: Store, tmp_path: Path) -> None:
    add(store, arrival(1))
    finish(store, arrival(1))
    store.fold(LATER, LATER)
    store._set_files("going", [(arrival(1).series_key,)])
    store.close()
    again = Store(tmp_path / "state", ["pacs"])
    assert again.unknown_files(path.name for path in again.images.iterdir()) == []
    assert again.clean_files(LATER) == 1
    assert list(again.images.iterdir()) == []


def test_room_is_made_from_what_is_done_oldest_first(store: Store) -> None:
    for number in range(40):
        add(store, arrival(number, f"1.2.{number}"))
        if number < 35:
            finish(store, arrival(number, f"1.2.{number}"), report=f"9.{number}")

    def free(_folder: Path) -> int:
        return 40 - len(list(store.images.iterdir()))

    assert store.make_room(0, LATER, free) == 0
    assert 12 <= store.make_room(12, LATER, free) < 30
    left = {path.name for path in store.images.iterdir()}
    assert store.image_path(arrival(0, "1.2.0").series_key, "1.2.3.0").name not in left
    # What is not delivered stays, however full the disk is.
    assert store.make_room(1000, LATER, free) == 35


def test_a_damaged_row_of_a_series_that_is_done_harms_no_other(store: Store) -> None:
    add(store, arrival(1))
    finish(store, arrival(1))
    store.fold(LATER, LATER)
    with store._transaction() as database:
        database.execute("UPDATE history SET content = substr(content, 1, 20)")
    assert add(store, arrival(1)) == "stored"


def test_a_large_database_is_checked_beside_the_work(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medimg.runtime.node.database._CHECKED_AT_START_BYTES", 0)
    for number in range(200):
        add(store, arrival(number))
    store.check()
    store.close()
    path = tmp_path / "state" / "node.db"
    content = bytearray(path.read_bytes())
    # In the middle of a page of the table of images, found by a UID that is in it.
    place = content.index(b"1.2.3.150")
    content[place - 2000 : place] = b"\xff" * 2000
    path.write_bytes(content)
    again = Store(tmp_path / "state", ["pacs"])
    with pytest.raises(sqlite3.DatabaseError):
        again.check()
    again.suspect()
    again.close()
    assert Store(tmp_path / "state", ["pacs"])._rows("SELECT * FROM instances") == []
    assert list((tmp_path / "state").glob("damaged-*"))
    assert not (tmp_path / "state" / "check-node.db").exists()


def test_files_of_lines_begin_each_day_and_go_in_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = 86400.0
    journal = Journal(tmp_path / "audit", "audit", store)
    for number in range(10):
        monkeypatch.setattr("medimg.runtime.node.database.time.time", lambda at=number: at * day / 2)
        store.audit("event", number=number)
        journal.catch_up()
        if number == 6:
            journal = Journal(tmp_path / "audit", "audit", store)
    assert [path.name for path in sorted((tmp_path / "audit").iterdir())] == [
        f"{number:06}.jsonl" for number in range(5)
    ]
    assert verify_log(tmp_path / "audit").entries == 10
    assert journal.remove_before(0) == 0
    assert journal.remove_before(2.6 * day) == 6
    assert len(list((tmp_path / "audit").iterdir())) == 2
    found = verify_log(tmp_path / "audit")
    assert (found.entries, found.removed_entries) == (11, 6)
    # The last file stays, whatever its age.
    journal.remove_before(1e9)
    assert verify_log(tmp_path / "audit").entries == 12
    journal.tidy()
    again = Journal(tmp_path / "audit", "audit", store)
    store.audit("after")
    again.catch_up()
    assert verify_log(tmp_path / "audit").entries == 13
    # Without the line that says so, a beginning that is missing is found.
    lines = [line for line in read_lines(tmp_path / "audit") if json.loads(line)["event"] != "removed"]
    for path in (tmp_path / "audit").iterdir():
        path.unlink()
    (tmp_path / "audit" / "000004.jsonl").write_text(f"{lines[0]}\n")
    with pytest.raises(CheckFailedError, match="no entry says that those before were removed"):
        verify_log(tmp_path / "audit")


def test_an_image_that_comes_again_after_its_time_gets_a_report_of_another_uid(
    start: Start, tmp_path: Path
) -> None:
    """Even where nothing is known of the first report any more, no UID has two contents."""
    image = make_image(tmp_path / "a.dcm")
    first, second = (reported_once(start(make_config(tmp_path)), image) for _ in range(2))
    assert len(first) == len(second) == 1
    assert not first & second


def reported_once(node: Node, image: Path) -> set[str]:
    """Send an image, and forget all about it once it is reported; give the reports' names."""
    assert storescu(node.receiver.port, image).returncode == 0
    wait_for(lambda: list(node.store.reports.iterdir()) and not node.store.unreported_series())
    names = {path.name for path in node.store.reports.iterdir()}
    assert (node.store.fold(LATER, LATER), node.store.clean_rows(LATER)) == (1, 1)
    assert [*node.store.reports.iterdir(), *node.store.images.iterdir()] == []
    node.stop()
    return names


def test_images_go_before_others_are_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(make_config(tmp_path, receive=Reception(reserve_mb=10, network_timeout_s=2.0)))
    done = make_series(tmp_path / "done", 3)
    storescu(node.receiver.port, *done)
    wait_for(lambda: not node.store.unreported_series() and node.store.counts()["received"] == 0)
    first = {path.name for path in node.store.images.iterdir()}

    class Usage:
        @property
        def free(self) -> float:
            kept = first & {path.name for path in node.store.images.iterdir()}
            return 1e6 if kept else 1e9

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    sent = storescu(node.receiver.port, make_image(tmp_path / "new.dcm"))
    assert sent.returncode == 0, sent.stderr
    assert not first & {path.name for path in node.store.images.iterdir()}
    assert uid_of(tmp_path / "new.dcm")
