"""Senders that are slow, many, unknown or broken off: nobody else waits for them, and each is seen."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medimg.runtime.node.config import Peer, Reception
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.files import write_temporary
from medimg.runtime.node.sightings import TOLD_AGAIN_S, Sightings
from medimg.runtime.node.store import Store

from .conftest import Start, certificate, make_config, make_image, make_series, storescu, uid_of, wait_for
from .test_receiver import recorded_association, stored

pytestmark = pytest.mark.long


def told(node: Any) -> list[dict[str, Any]]:
    """What the audit log says of refusals."""
    rows = node.store._rows("SELECT text FROM lines WHERE stream = 'audit' ORDER BY sequence")
    return [line for (text,) in rows if (line := json.loads(text))["event"] == "refused"]


def item(kind: int, content: bytes) -> bytes:
    return bytes([kind, 0]) + len(content).to_bytes(2, "big") + content


def association_request(called: str = "MEDIMG") -> bytes:
    """Write an A-ASSOCIATE-RQ for verification (PS3.8 9.3.2)."""
    syntaxes = item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2")
    context = item(0x20, bytes([1, 0, 0, 0]) + syntaxes)
    user = item(0x50, item(0x51, (16384).to_bytes(4, "big")) + item(0x52, b"1.2.3"))
    titles = called.encode().ljust(16) + b"DRIP".ljust(16)
    body = bytes([0, 1, 0, 0]) + titles + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1") + context + user
    return bytes([1, 0]) + len(body).to_bytes(4, "big") + body


@contextmanager
def associations(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open associations without any library."""
    with ExitStack() as opened:
        found = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            opened.enter_context(connection)
            connection.sendall(association_request())
            assert connection.recv(1) == b"\x02"
            found.append(connection)
        yield found


def data_fragment(content: bytes, *, is_last: bool = False) -> bytes:
    """Write a P-DATA-TF with a fragment of a command (PS3.8 9.3.5)."""
    value = bytes([1, 1 | 2 * is_last]) + content
    body = len(value).to_bytes(4, "big") + value
    return bytes([4, 0]) + len(body).to_bytes(4, "big") + body


def drip(connections: list[socket.socket], content: bytes) -> None:
    """Send a little over each that is still open."""
    for connection in connections:
        try:
            connection.sendall(content)
        except OSError:
            continue


@pytest.mark.parametrize("style", ["a byte of a PDU", "small PDUs", "nothing"])
def test_slow_senders_do_not_keep_others_out(start: Start, tmp_path: Path, style: str) -> None:
    """Every association is theirs, and each sends something more often than the time limit."""
    receive = Reception(reserve_mb=1, network_timeout_s=4.0, max_associations=4)
    node = start(make_config(tmp_path, receive=receive))
    image, port = make_image(tmp_path / "a.dcm"), node.receiver.port
    with associations(port, 4) as held:
        drip(held, b"\x04\x00" + (20_000).to_bytes(4, "big") if style == "a byte of a PDU" else b"")
        assert storescu(port, image).returncode != 0
        end = time.monotonic() + 60
        while storescu(port, image).returncode != 0:
            assert time.monotonic() < end, "still kept out"
            drip(held, {"a byte of a PDU": b"\0", "small PDUs": data_fragment(b"\0")}.get(style, b""))
            time.sleep(0.2)
    assert stored(node) == {uid_of(image)}
    wait_for(lambda: [line for line in told(node) if "aborted" in line["reason"]])
    cause = "silent" if style == "nothing" else "slow"
    wait_for(lambda: f'reason="{cause}"' in node.counters.text({}))
    wait_for(lambda: any("4 associations are open" in line["reason"] for line in told(node)))


def pdus(stream: bytes) -> list[bytes]:
    """Cut what a sender sent into its PDUs."""
    found, position = [], 0
    while position < len(stream):
        end = position + 6 + int.from_bytes(stream[position + 2 : position + 6], "big")
        found.append(stream[position:end])
        position = end
    return found


@pytest.fixture
def sent(start: Start, tmp_path: Path) -> tuple[Path, list[bytes]]:
    """An image, and the PDUs in which it is sent: request, its data, release."""
    (tmp_path / "twin").mkdir()
    image = make_image(tmp_path / "a.dcm", size=200)
    twin = start(make_config(tmp_path / "twin"))
    return image, pdus(recorded_association(twin.receiver.port, image))


def test_a_large_image_may_take_longer_than_the_time_limit(
    start: Start, tmp_path: Path, sent: tuple[Path, list[bytes]]
) -> None:
    """As long as it comes at the least rate."""
    receive = Reception(reserve_mb=1, network_timeout_s=3, min_kb_per_s=2)
    node = start(make_config(tmp_path, receive=receive))
    image, (request, *data, _) = sent
    with socket.create_connection(("127.0.0.1", node.receiver.port), timeout=20) as connection:
        connection.sendall(request)
        assert connection.recv(4096)[0] == 2
        content = b"".join(data)
        part = -(-len(content) // 40)
        for position in range(0, len(content), part):
            connection.sendall(content[position : position + part])
            time.sleep(0.1)
        wait_for(lambda: stored(node) == {uid_of(image)})


def test_a_slow_disk_is_not_the_senders_silence(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender has nothing to say while its image is made durable, however long that takes."""
    node = start(make_config(tmp_path, receive=Reception(reserve_mb=1, network_timeout_s=1.0)))
    images = make_series(tmp_path / "series", 2)

    def slow(*arguments: Any) -> Path:
        time.sleep(1.5)
        return write_temporary(*arguments)

    monkeypatch.setattr("medimg.runtime.node.receiver.write_temporary", slow)
    done = storescu(node.receiver.port, *images)
    assert done.stderr.count("(Success)") == len(images), done.stderr
    assert not node.counters.total("associations_aborted")
    assert told(node) == []


def test_a_request_that_comes_just_too_late_is_not_left_without_an_answer(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read after the node has given up waiting for it, and before its connection is closed for that."""
    node = start(make_config(tmp_path, receive=Reception(reserve_mb=1, network_timeout_s=5.0)))
    gave_up = threading.Event()

    def give_up(provider: Any, **_: object) -> None:
        wait_for(lambda: provider.state_machine.current_state == "Sta2")
        gave_up.set()

    monkeypatch.setattr("pynetdicom.dul.DULServiceProvider.receive_pdu", give_up)
    with socket.create_connection(("127.0.0.1", node.receiver.port), timeout=20) as connection:
        assert gave_up.wait(20)
        connection.sendall(association_request())
        assert connection.recv(1) == b""
    wait_for(lambda: 'medimg_connections_refused_total{reason="slow"} 1' in node.counters.text({}))


def test_idle_connections_keep_nobody_out(start: Start, tmp_path: Path) -> None:
    receive = Reception(reserve_mb=1, network_timeout_s=60, max_associations=2, max_pending=8)
    node = start(make_config(tmp_path, drain_s=1.0, receive=receive))
    image, address = make_image(tmp_path / "a.dcm"), ("127.0.0.1", node.receiver.port)
    with ExitStack() as opened:
        for _ in range(30):
            opened.enter_context(socket.create_connection(address, timeout=20))
        wait_for(lambda: node.counters.total("connections_refused") >= 22)
        assert node.receiver.associations <= 10
        assert storescu(node.receiver.port, image).returncode == 0
    assert 'medimg_connections_refused_total{reason="too many"}' in node.counters.text({})
    assert len(told(node)) == 1


@pytest.mark.parametrize(
    ("calling", "called", "cause", "reason"),
    [
        ("CT2", "MEDIMG", "calling title", "no peer has the AE title CT2"),
        ("CT1", "OTHER", "called title", "it asked for OTHER, and this is MEDIMG"),
    ],
)
def test_a_rejected_association_is_seen_with_its_reason(
    start: Start, tmp_path: Path, calling: str, called: str, cause: str, reason: str
) -> None:
    node = start(make_config(tmp_path, peers=(Peer("CT1"),)))
    storescu(node.receiver.port, "-aet", calling, make_image(tmp_path / "a.dcm"), called=called)
    (line,) = wait_for(lambda: told(node))
    assert (line["sender"], line["reason"]) == (f"{calling}@127.0.0.1", f"association rejected: {reason}")
    assert f'medimg_associations_rejected_total{{reason="{cause}"}} 1' in node.counters.text({})


def test_an_unknown_address_is_seen(start: Start, tmp_path: Path) -> None:
    node = start(make_config(tmp_path, peers=(Peer("STORESCU", ("192.0.2.0/24",)),)))
    for _ in range(3):
        storescu(node.receiver.port, make_image(tmp_path / "a.dcm"))
    (line,) = wait_for(lambda: told(node))
    assert (line["sender"], line["reason"]) == (
        "127.0.0.1",
        "connection refused: no peer has this address",
    )
    wait_for(
        lambda: 'connections_refused_total{reason="unknown address"} 3' in node.counters.text({}),
    )


@pytest.mark.parametrize("kind", ["plain to TLS", "no certificate", "another authority", "TLS to plain"])
def test_a_failed_handshake_is_seen(start: Start, tmp_path: Path, kind: str) -> None:
    for authority in ("ca", "rogue"):
        certificate(tmp_path, authority)
    ours, thief = certificate(tmp_path, "node", "ca"), certificate(tmp_path, "thief", "rogue")
    tls = None if kind == "TLS to plain" else ours
    node = start(make_config(tmp_path, receive=Reception(reserve_mb=1, tls=tls)))
    image = make_image(tmp_path / "a.dcm")
    if kind == "plain to TLS":
        assert storescu(node.receiver.port, image).returncode != 0
    elif kind == "another authority":
        files = ("+tls", thief.key, thief.certificate, "+cf", ours.authorities)
        assert storescu(node.receiver.port, *files, image).returncode != 0
    else:
        context = ssl.create_default_context(cafile=ours.authorities)
        context.check_hostname = False
        address = ("127.0.0.1", node.receiver.port)
        with (
            suppress(OSError),
            socket.create_connection(address, timeout=20) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(association_request())
            assert connection.recv(1) == b""
    (line,) = wait_for(lambda: told(node))
    assert line["reason"].startswith("connection refused: ")
    assert "TLS" in line["reason"]
    assert 'medimg_connections_refused_total{reason="tls"} 1' in node.counters.text({})


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (0, "association aborted: the peer broke off"),
        (20_000, "transfer aborted: the peer broke off, after "),
    ],
)
def test_a_transfer_that_breaks_off_is_seen(
    start: Start, sent: tuple[Path, list[bytes]], kept: int, reason: str
) -> None:
    node = start()
    _, (request, *data, _) = sent
    with socket.create_connection(("127.0.0.1", node.receiver.port), timeout=20) as connection:
        connection.sendall(request)
        assert connection.recv(4096)[0] == 2
        connection.sendall(b"".join(data)[:kept])
        time.sleep(0.3)
    (line,) = wait_for(lambda: told(node))
    assert line["reason"].startswith(reason)
    assert line["sender"] == "STORESCU@127.0.0.1"
    name = "transfers" if kept else "associations"
    assert f'medimg_{name}_aborted_total{{reason="peer"}} 1' in node.counters.text({})


def test_a_transfer_that_ends_well_is_no_news(start: Start, tmp_path: Path) -> None:
    node = start()
    assert storescu(node.receiver.port, make_image(tmp_path / "a.dcm")).returncode == 0
    with socket.create_connection(("127.0.0.1", node.receiver.port), timeout=20):
        pass  # as a load balancer looks whether somebody listens
    wait_for(lambda: node.receiver.associations == 0, 10)
    assert told(node) == []


def test_what_is_seen_again_and_again_is_told_once_a_minute(tmp_path: Path) -> None:
    """In a store without a node, which would take the lines away as they come."""
    now, counters = 0.0, Counters()
    with closing(Store(tmp_path / "state")) as store:
        node = SimpleNamespace(store=store)
        sightings = Sightings(store, counters, lambda: now)
        for _ in range(5):
            sightings.note("connection refused", "192.0.2.1", "tls", "TLS: no certificate")
        sightings.work()
        assert [line["times"] for line in told(node)] == [1]
        now = TOLD_AGAIN_S
        sightings.work()
        sightings.work()
        assert [line["times"] for line in told(node)] == [1, 4]
        now = 2 * TOLD_AGAIN_S
        sightings.work()
        for number in range(3000):
            sightings.note("connection refused", f"192.0.2.{number}", "tls", "TLS: no certificate")
        assert len(told(node)) == 2 + 1001
        assert counters.total("connections_refused") == 3005
