"""The queue: states, tries, lines, and what is left of it after damage."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from medimg.runtime.node.files import write_temporary
from medimg.runtime.node.identity import Identity, digest
from medimg.runtime.node.journal import Journal, read_lines
from medimg.runtime.node.records import Arrival, Report, Result
from medimg.runtime.node.service import Node
from medimg.runtime.node.store import Store

from .conftest import (
    Start,
    kept_file,
    make_config,
    make_image,
    make_series,
    series_of,
    storescu,
    uid_of,
    wait_for,
)

IDENTITY = Identity({"PatientName": "Doe^Jane"}, (), "patient")
KEY = digest("patient", "1.3", "1.2")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state", ["pacs", "other"])
    yield opened
    opened.close()


def arrival(number: int, series: str = "1.2") -> Arrival:
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    uid = f"1.2.3.{number}"
    return Arrival(uid, "1.1", series, "1.3", "CT", "", "MONOCHROME2", "A@b", 1.5, sha256, IDENTITY)


def add(store: Store, one: Arrival) -> str:
    return store.add(one, write_temporary(store.images, b"content"), {})


def answer(uid: str) -> Result:
    return Result(uid, "classified", "m", (0.25, 0.75), line={"series_instance_uid": "1.2"})


def test_an_image_is_added_once(store: Store) -> None:
    assert add(store, arrival(1)) == "stored"
    assert add(store, arrival(1)) == "known"
    assert add(store, replace(arrival(1), sha256="other")) == "other content"
    assert [path.name for path in store.images.iterdir()] == [store.image_path(KEY, "1.2.3.1").name]


def test_images_that_come_together_share_one_flush(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same image twice among them is still added once, and a failure reaches every sender."""
    flushed: list[Path] = []
    monkeypatch.setattr("medimg.runtime.node.store.sync_folder", flushed.append)
    numbers = [1, 2, 3, 3]

    def add_all() -> list[str]:
        with ThreadPoolExecutor(len(numbers)) as senders:
            with store._lock:  # as another transaction would have it
                added = [senders.submit(add, store, arrival(number)) for number in numbers]
                wait_for(lambda: len(store._arriving) == len(numbers))
            return sorted(one.result() for one in added)

    with monkeypatch.context() as broken:
        broken.setattr(store, "_append", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
        with pytest.raises(sqlite3.OperationalError):
            add_all()
    assert store.counts()["received"] == 0
    assert add_all() == ["known", "stored", "stored", "stored"]
    assert flushed == [store.images]


def test_states(store: Store) -> None:
    add(store, arrival(1))
    (taken,) = store.take(10)
    assert (taken.sop_uid, taken.tries, taken.path) == ("1.2.3.1", 1, store.image_path(KEY, "1.2.3.1"))
    store.record([answer("1.2.3.1")])
    assert store.take(10) == []
    assert store.unreported_series() == [KEY]
    assert [member.scores for member in store.members(KEY)] == [(0.25, 0.75)]
    store.add_report(Report("9.9", KEY, None, ("1.2.3.1",), {}))
    assert store.unreported_series() == []
    for destination in ("pacs", "other"):
        ((state,),) = store._rows("SELECT state FROM instances")
        assert state == "inferred"
        (pending,) = store.pending(destination)
        store.delivered(pending, destination)
        assert store.pending(destination) == []
    assert store._rows("SELECT state FROM instances") == [("delivered",)]


def test_an_answer_is_never_replaced(store: Store) -> None:
    add(store, arrival(1))
    store.record([answer("1.2.3.1")])
    store.record([replace(answer("1.2.3.1"), scores=(1.0, 0.0))])
    assert [member.scores for member in store.members(KEY)] == [(0.25, 0.75)]
    assert len(store.lines_after("results", 0)) == 1


def test_what_was_tried_before_is_tried_alone(store: Store) -> None:
    for number in range(4):
        add(store, arrival(number))
    assert len(store.take(2)) == 2
    # Those two are taken again, for instance after the process has ended.
    for _ in range(2):
        assert [(item.sop_uid, item.tries > 1) for item in store.take(3)] == [("1.2.3.0", True)]
    store.record([answer("1.2.3.0"), answer("1.2.3.1")])
    assert [item.sop_uid for item in store.take(3)] == ["1.2.3.2", "1.2.3.3"]


def test_a_failed_transaction_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(store, "_append", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
        with pytest.raises(sqlite3.OperationalError):
            add(store, arrival(1))
    assert store.counts()["received"] == 0
    assert not list(store.images.glob(".*"))
    assert add(store, arrival(1)) == "stored"


def test_lines_are_chained_and_copied_once(store: Store, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "audit", "audit", store)
    for number in range(5):
        store.audit("event", number=number)
        journal.catch_up()
    assert len(store.lines_after("audit", 0)) == 5
    journal.tidy()
    assert store.lines_after("audit", 0) == []
    again = Journal(tmp_path / "audit", "audit", store)
    assert again.position == journal.position
    lines = list(read_lines(tmp_path / "audit"))
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2, 3, 4]
    heads = [hashlib.sha256(line.encode()).hexdigest() for line in lines]
    assert [json.loads(line)["previous"] for line in lines] == ["0" * 64, *heads[:-1]]


@pytest.mark.parametrize("cut", [1, 30, 10_000])
def test_a_line_cut_short_is_written_again(store: Store, tmp_path: Path, cut: int) -> None:
    """As power loss leaves a file whose end was not synced; the database still has the lines."""
    for number in range(3):
        store.audit("event", number=number)
    journal = Journal(tmp_path / "audit", "audit", store)
    whole = list(read_lines(tmp_path / "audit"))
    path = tmp_path / "audit" / "000000.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(tmp_path / "audit", "audit", store)
    assert list(read_lines(tmp_path / "audit")) == whole
    assert again.position == journal.position


def test_files_are_numbered_by_sequence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medimg.runtime.node.journal.LINES_A_FILE", 4)
    for number in range(10):
        store.audit("event", number=number)
    Journal(tmp_path / "audit", "audit", store)
    assert [path.name for path in sorted((tmp_path / "audit").iterdir())] == [
        "000000.jsonl",
        "000001.jsonl",
        "000002.jsonl",
    ]
    assert len(list(read_lines(tmp_path / "audit"))) == 10


@pytest.mark.long
@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten", "removed"])
def test_a_lost_database_is_made_anew_from_the_files(start: Start, tmp_path: Path, damage: str) -> None:
    config = make_config(tmp_path)
    images = make_series(tmp_path / "series", 3)
    first = start(config)
    assert storescu(first.receiver.port, *images).returncode == 0
    wait_for(lambda: first.store.counts()["series"] == 0)
    report = reported(first, images[0])
    assert report
    content = first.store.report_path(report).read_bytes()
    first.stop()
    database = Path(config.folder) / "node.db"
    whole = database.read_bytes()
    spoiled = {"truncated": whole[: len(whole) // 2], "emptied": b"", "overwritten": b"x" * len(whole)}
    database.unlink()
    if damage in spoiled:
        database.write_bytes(spoiled[damage])
    second = start(config)
    wait_for(lambda: reported(second, images[0]))
    uids = {uid_of(image) for image in images}
    assert {member.sop_uid for member in second.store.members(series_of(images[0]))} == uids
    assert reported(second, images[0]) == report
    assert second.store.report_path(report).read_bytes() == content


def reported(node: Node, image: Path) -> str | None:
    """Give the UID of the newest report on an image's series."""
    found = node.store.latest_report(series_of(image))
    return found[0] if found else None


def test_a_file_without_a_row_is_queued(start: Start, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    first = start(config)
    first.stop()
    image = make_image(tmp_path / "a.dcm")
    kept_file(first, image).write_bytes(image.read_bytes())
    second = start(config)
    wait_for(lambda: second.counters.total("answered") == 1)
