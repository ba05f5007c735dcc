"""Destinations that a reload adds, changes and removes."""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medimg.runtime.node.config import Delivery, HttpDestination, NodeConfig, Retention
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.delivery import Deliverer, Note, Sender
from medimg.runtime.node.journal import read_lines
from medimg.runtime.node.records import Pending
from medimg.runtime.node.service import Node

from .conftest import Start, free_port, make_config, make_series, storescu, wait_for

QUICK = Delivery(first_retry_s=0.2, max_retry_s=0.4, timeout_s=5.0)


class Service:
    """Takes what is posted, and remembers the reports' UIDs."""

    def __init__(self) -> None:
        self.came: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                service.came.append(self.headers["Idempotency-Key"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def destination(self, name: str) -> HttpDestination:
        return HttpDestination(name, f"http://127.0.0.1:{self.server.server_address[1]}/results")


@pytest.fixture
def services() -> Iterator[tuple[Service, Service]]:
    both = Service(), Service()
    with contextlib.ExitStack() as running:
        for service in both:
            running.callback(service.server.server_close)
            running.callback(service.server.shutdown)
        yield both


def unreachable(name: str) -> HttpDestination:
    return HttpDestination(name, f"http://127.0.0.1:{free_port()}/results")


def to(config: NodeConfig, *destinations: HttpDestination, overlay: bool = False) -> NodeConfig:
    return replace(config, deliver=replace(QUICK, http=destinations, overlay=overlay))


def events(node: Node) -> list[str]:
    node._audit.catch_up()
    return [json.loads(line)["event"] for line in read_lines(node.store.folder / "audit")]


def send(node: Node, folder: Path, name: str) -> None:
    """Send a series, and wait for its report."""
    reports = len(list(node.store.reports.glob("*.dcm")))
    assert storescu(node.receiver.port, *make_series(folder / name, 1)).returncode == 0
    wait_for(lambda: len(list(node.store.reports.glob("*.dcm"))) > reports)
    wait_for(lambda: node.store.counts()["series"] == 0)


def test_a_reload_changes_adds_and_removes_destinations(
    start: Start, tmp_path: Path, services: tuple[Service, Service]
) -> None:
    a, b = services
    config = to(make_config(tmp_path), unreachable("a"))
    node = start(config)
    send(node, tmp_path, "first")
    assert node.store.counts()["undelivered"] == 1
    # Changed: what waited comes.
    node._reconfigure(lambda: to(config, a.destination("a")))
    wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert len(a.came) == 1
    # Added: it gets what is reported from then on.
    node._reconfigure(lambda: to(config, a.destination("a"), b.destination("b")))
    send(node, tmp_path, "second")
    wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert b.came == a.came[1:]
    # Removed: it gets nothing more; overlays are drawn from now on.
    node._reconfigure(lambda: to(config, b.destination("b"), overlay=True))
    send(node, tmp_path, "third")
    wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert (len(a.came), len(b.came)) == (2, 2)
    assert len(list(node.store.reports.glob("*.overlay.dcm"))) == 1
    # Back again, by the one thread that it ever had.
    node._reconfigure(lambda: to(config, a.destination("a")))
    send(node, tmp_path, "fourth")
    wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert (len(a.came), len(b.came)) == (3, 2)
    names = [thread.name for thread in node._threads]
    assert [names.count(f"medimg-deliver to {name}") for name in "ab"] == [1, 1]
    assert events(node).count("configuration read") == 4


def test_what_a_removed_destination_should_get_is_closed_by_the_rule(
    start: Start, tmp_path: Path, services: tuple[Service, Service]
) -> None:
    config = to(make_config(tmp_path), unreachable("a"), services[0].destination("b"))
    node = start(config)
    send(node, tmp_path, "first")
    wait_for(lambda: node.store.counts()["undelivered"] == 1)
    node._reconfigure(lambda: to(config, services[0].destination("b")))
    assert events(node).count("destination removed") == 1
    assert node.store.counts()["undelivered"] == 1
    without = replace(to(config, services[0].destination("b")), retention=Retention(images_h=1e-9))
    node._reconfigure(lambda: without)
    node._next_tidy = 0.0
    wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert events(node).count("delivery closed") == 1


def test_a_destination_that_a_reload_brings_back_gets_what_waited(
    start: Start, tmp_path: Path, services: tuple[Service, Service]
) -> None:
    config = to(make_config(tmp_path), unreachable("a"))
    node = start(config)
    send(node, tmp_path, "first")
    node._reconfigure(lambda: to(config))
    node._reconfigure(lambda: to(config, services[0].destination("a")))
    wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert len(services[0].came) == 1
    assert node.store._rows("SELECT * FROM absent") == []


def test_a_destination_that_cannot_be_used_leaves_all_as_it_was(
    start: Start, tmp_path: Path, services: tuple[Service, Service]
) -> None:
    a, b = services
    config = to(make_config(tmp_path), a.destination("a"))
    node = start(config)
    wrong = replace(a.destination("a"), token_file=str(tmp_path / "missing"))
    node._reconfigure(lambda: to(config, wrong, b.destination("b")))
    assert events(node).count("configuration refused") == 1
    send(node, tmp_path, "first")
    wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert (len(a.came), len(b.came)) == (1, 0)


def test_a_destination_that_is_removed_amid_a_batch_gets_no_more_of_it(start: Start, tmp_path: Path) -> None:
    node = start(to(make_config(tmp_path), unreachable("a")))
    for name in ("first", "second", "third"):
        send(node, tmp_path, name)
    node.stop()
    sent: list[str] = []

    class Removing(Sender):
        name = "a"

        def send(self, reports: Iterable[Pending], note: Note) -> None:
            for report in reports:
                sent.append(report.report_uid)
                note(report, None, None)
                deliverer.use(None, QUICK)

    store = type(node.store)(node.store.folder, ["a"])
    deliverer = Deliverer(Removing(), store, QUICK, Counters())
    assert (deliverer.work(), deliverer.work()) == (1, 0)
    assert len(sent) == 1
    assert store.counts()["undelivered"] == 2
    store.close()
