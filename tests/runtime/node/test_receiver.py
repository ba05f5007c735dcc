"""What is received, what is refused and how, with dcmtk's storescu as the peer."""

import random
import re
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from medimg.runtime.node.config import Peer, Reception
from medimg.runtime.node.memory import machine_bytes, reception_bytes

from .conftest import (
    PROPOSALS,
    Start,
    certificate,
    kept_file,
    make_config,
    make_image,
    make_series,
    real_images,
    storescu,
    uid_of,
    wait_for,
)

pytestmark = pytest.mark.long


def answers(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """Give the node's answers as storescu shows them."""
    return re.findall(r"Received Store Response \((.*)\)", done.stderr)


def stored(node: object) -> set[str]:
    """UIDs of all images in a node's queue."""
    return {row[0] for row in node.store._rows("SELECT sop_uid FROM instances")}  # type: ignore[attr-defined]


def refusals(node: object) -> list[str]:
    return [
        text
        for (text,) in node.store._rows(  # type: ignore[attr-defined]
            "SELECT text FROM lines WHERE stream = 'audit' AND text LIKE '%refused%'"
        )
    ]


def test_an_acknowledged_image_is_queued_with_its_file(start: Start, tmp_path: Path) -> None:
    node = start()
    image = make_image(tmp_path / "a.dcm")
    done = storescu(node.receiver.port, image)
    assert done.returncode == 0, done.stderr
    uid = uid_of(image)
    assert stored(node) == {uid}
    kept = pydicom.dcmread(kept_file(node, image))
    assert kept.PixelData == pydicom.dcmread(image).PixelData
    assert kept.file_meta.SourceApplicationEntityTitle == "STORESCU"


def test_echo(start: Start) -> None:
    node = start()
    done = subprocess.run(["echoscu", "-aec", "MEDIMG", "127.0.0.1", str(node.receiver.port)], check=False)
    assert done.returncode == 0


def test_the_same_image_again_is_a_success_without_work(start: Start, tmp_path: Path) -> None:
    node = start()
    image = make_image(tmp_path / "a.dcm")
    for _ in range(2):
        assert storescu(node.receiver.port, image).returncode == 0
    assert node.counters.total("received") == 1
    assert node.counters.total("received_again") == 1


def test_a_uid_never_has_two_contents(start: Start, tmp_path: Path) -> None:
    node = start()
    image = make_image(tmp_path / "a.dcm")
    other = make_image(tmp_path / "b.dcm", number=2, tags={"SOPInstanceUID": uid_of(image)})
    assert storescu(node.receiver.port, image).returncode == 0
    done = storescu(node.receiver.port, other)
    assert answers(done) == ["Unknown Status: 0x111"]
    kept = pydicom.dcmread(kept_file(node, image))
    assert kept.PixelData == pydicom.dcmread(image).PixelData


@pytest.mark.real
def test_every_real_image_is_queued_and_answered(start: Start, real_data: Path) -> None:
    """Under new instance UIDs, in each transfer syntax that storescu can propose."""
    node = start()
    for syntax, file in (images := real_images(real_data)):
        done = storescu(node.receiver.port, "+II", PROPOSALS.get(syntax, "-xe"), file)
        assert answers(done) == ["Success"], done.stderr
    assert len({syntax for syntax, _ in images}) >= 12
    wait_for(lambda: node.counters.total("answered") == len(images))


@pytest.mark.parametrize(
    ("calling", "called", "succeeds"),
    [("CT1", "MEDIMG", True), ("CT2", "MEDIMG", False), ("CT1", "OTHER", False)],
)
def test_unknown_titles_are_rejected(
    start: Start, tmp_path: Path, calling: str, called: str, succeeds: bool
) -> None:
    node = start(make_config(tmp_path, peers=(Peer("CT1"),)))
    image = make_image(tmp_path / "a.dcm")
    done = storescu(node.receiver.port, "-aet", calling, image, called=called)
    assert (done.returncode == 0) == succeeds
    if not succeeds:
        assert "Rejected" in done.stderr + done.stdout
        wait_for(lambda: refusals(node))
    assert len(stored(node)) == succeeds


def test_an_unknown_address_gets_no_association(start: Start, tmp_path: Path) -> None:
    node = start(make_config(tmp_path, peers=(Peer("STORESCU", ("192.0.2.0/24",)),)))
    assert storescu(node.receiver.port, make_image(tmp_path / "a.dcm")).returncode != 0
    assert stored(node) == set()


def test_a_title_is_bound_to_its_address(start: Start, tmp_path: Path) -> None:
    peers = (Peer("STORESCU", ("192.0.2.1",)), Peer("OTHER"))
    node = start(make_config(tmp_path, peers=peers))
    storescu(node.receiver.port, make_image(tmp_path / "a.dcm"))
    assert stored(node) == set()
    assert '"status":"0124"' in refusals(node)[0]


def test_oversized_images_are_refused_and_not_kept_in_memory(start: Start, tmp_path: Path) -> None:
    receive = Reception(max_instance_mb=0.5, reserve_mb=1)
    node = start(make_config(tmp_path, receive=receive))
    large, small = make_image(tmp_path / "a.dcm", size=1024), make_image(tmp_path / "b.dcm")
    done = storescu(node.receiver.port, large, small)
    assert answers(done)[0] == "Refused: OutOfResources"
    assert storescu(node.receiver.port, small).returncode == 0
    assert stored(node) == {uid_of(small)}


def test_what_comes_at_the_same_time_has_a_bound(start: Start, tmp_path: Path) -> None:
    """A large image is refused where memory for it is used up; a small one beside it is not."""
    receive = Reception(reserve_mb=1, memory_mb=3, network_timeout_s=5.0)
    node = start(make_config(tmp_path, receive=receive))
    large = make_image(tmp_path / "large.dcm", size=1500)
    assert answers(storescu(node.receiver.port, large)) == ["Refused: OutOfResources"]
    assert any("no memory" in text for text in refusals(node))
    assert storescu(node.receiver.port, make_image(tmp_path / "small.dcm")).returncode == 0


def test_memory_is_that_of_the_machine_or_its_cgroups(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       16000000 kB\nMemFree: 1 kB\n")
    assert machine_bytes(proc, cgroups) == 16_384_000_000
    (proc / "self" / "cgroup").write_text("0::/system.slice/medimg.service\n")
    service = cgroups / "system.slice" / "medimg.service"
    service.mkdir(parents=True)
    (service / "memory.max").write_text("max\n")
    assert machine_bytes(proc, cgroups) == 16_384_000_000
    (service.parent / "memory.max").write_text("4000000000\n")
    assert machine_bytes(proc, cgroups) == 4_000_000_000
    assert 2**26 < machine_bytes() < 2**50
    assert (reception_bytes(5), reception_bytes(0)) == (5_000_000, machine_bytes() // 4)


def test_a_disk_down_to_its_reserve_refuses_and_recovers(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    image = make_image(tmp_path / "a.dcm")
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: usage)
        done = storescu(node.receiver.port, image)
        assert answers(done) == ["Refused: OutOfResources"]
    assert storescu(node.receiver.port, image).returncode == 0


@pytest.mark.parametrize("tag", ["SeriesInstanceUID", "StudyInstanceUID"])
@pytest.mark.parametrize("value", ["../../etc/passwd", "1.2/../3", "", "1.2\x1b[31m"])
def test_uids_that_are_none_are_refused(start: Start, tmp_path: Path, tag: str, value: str) -> None:
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    node = start()
    with pydicom.config.disable_value_validation():
        image = make_image(tmp_path / "a.dcm", tags={tag: value})
    done = storescu(node.receiver.port, image)
    assert answers(done) == ["Error: CannotUnderstand"]
    assert stored(node) == set()


def test_names_of_files_are_hashes(start: Start, tmp_path: Path) -> None:
    node = start()
    for path in make_series(tmp_path / "series", 2):
        storescu(node.receiver.port, path)
    names = [path.name for path in node.store.images.iterdir()]
    assert len(names) == 2
    assert all(len(name) == 64 + 4 and set(name[:64]) <= set("0123456789abcdef") for name in names)


def test_tls_takes_only_certificates_of_its_authority(start: Start, tmp_path: Path) -> None:
    for authority in ("ca", "rogue"):
        certificate(tmp_path, authority)
    ours, theirs = certificate(tmp_path, "node", "ca"), certificate(tmp_path, "client", "ca")
    wrong = certificate(tmp_path, "thief", "rogue")
    node = start(make_config(tmp_path, receive=Reception(reserve_mb=1, tls=ours, network_timeout_s=3)))
    port, image = node.receiver.port, make_image(tmp_path / "a.dcm")
    assert storescu(port, image).returncode != 0
    with_wrong = storescu(port, "+tls", wrong.key, wrong.certificate, "+cf", theirs.authorities, image)
    assert with_wrong.returncode != 0
    assert stored(node) == set()
    good = storescu(port, "+tls", theirs.key, theirs.certificate, "+cf", theirs.authorities, image)
    assert good.returncode == 0, good.stderr
    assert stored(node) == {uid_of(image)}


def test_a_silent_client_holds_up_nobody(start: Start, tmp_path: Path) -> None:
    certificate(tmp_path, "ca")
    ours = certificate(tmp_path, "node", "ca")
    node = start(make_config(tmp_path, receive=Reception(reserve_mb=1, tls=ours, network_timeout_s=2)))
    address = ("127.0.0.1", node.receiver.port)
    context = ssl.create_default_context(cafile=ours.authorities)
    context.check_hostname = False
    context.load_cert_chain(ours.certificate, ours.key)
    # The first never begins its handshake; the second's goes through.
    with (
        socket.create_connection(address),
        socket.create_connection(address, timeout=5) as second,
        context.wrap_socket(second) as connection,
    ):
        assert connection.version()


def test_a_silent_client_does_not_keep_the_node_from_ending(start: Start, tmp_path: Path) -> None:
    patient = Reception(reserve_mb=1, network_timeout_s=300)
    node = start(make_config(tmp_path, drain_s=300.0, receive=patient))
    with socket.create_connection(("127.0.0.1", node.receiver.port)):
        wait_for(lambda: node.receiver.associations == 1)
        ending = threading.Thread(target=node.stop, daemon=True)
        ending.start()
        ending.join(60)
        assert not ending.is_alive()


def test_the_end_waits_for_the_answer_to_a_release(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.runtime.node.transport import _LastingStateMachine

    released = threading.Event()
    act = _LastingStateMachine.do_action

    def act_late(machine: _LastingStateMachine, event: str) -> None:
        if event == "Evt14":  # the answer to a release (PS3.8 9.2.2)
            released.set()
            time.sleep(0.5)
        act(machine, event)

    monkeypatch.setattr(_LastingStateMachine, "do_action", act_late)
    node = start()
    command = ["storescu", "-aec", "MEDIMG", "127.0.0.1", str(node.receiver.port)]
    with subprocess.Popen([*command, make_image(tmp_path / "a.dcm")]) as sender:
        assert released.wait(60)
        node.stop()
        assert sender.wait(60) == 0


def test_eight_senders_at_once(start: Start, tmp_path: Path) -> None:
    node = start(make_config(tmp_path, receive=Reception(reserve_mb=1)))
    series = [make_series(tmp_path / str(number), 3) for number in range(8)]
    command = ["storescu", "-aec", "MEDIMG", "127.0.0.1", str(node.receiver.port)]
    sending = [subprocess.Popen([*command, *map(str, images)]) for images in series]
    assert [sender.wait() for sender in sending] == [0] * 8
    assert stored(node) == {uid_of(image) for images in series for image in images}
    wait_for(lambda: node.counters.total("answered") == 24)


def test_an_association_is_slowed_to_its_rate(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(make_config(tmp_path, receive=Reception(reserve_mb=1, images_per_s=0.01)))
    waits: list[float] = []
    with monkeypatch.context() as patched:
        patched.setattr("medimg.runtime.node.receiver.time.sleep", waits.append)
        assert storescu(node.receiver.port, make_image(tmp_path / "a.dcm")).returncode == 0
    assert 90 < max(waits) <= 100


def test_senders_wait_while_more_images_are_queued_than_are_soon_answered(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medimg.runtime.node.service._LONGEST_HOLD_S", 60.0)
    node = start()
    node._worker._image_s = 10.0
    images = make_series(tmp_path / "series", 2)
    command = ["storescu", "-aec", "MEDIMG", "127.0.0.1", str(node.receiver.port)]
    with node.models.in_use():  # so that nothing is answered
        assert storescu(node.receiver.port, images[0]).returncode == 0
        sender = subprocess.Popen([*command, images[1]])
        wait_for(lambda: len(stored(node)) == 2)
        with pytest.raises(subprocess.TimeoutExpired):
            sender.wait(timeout=0.5)
    assert sender.wait(timeout=20) == 0
    wait_for(lambda: node.counters.total("answered") == 2)


def test_more_associations_than_allowed_are_rejected(start: Start, tmp_path: Path) -> None:
    from pynetdicom import AE

    node = start(make_config(tmp_path, receive=replace(Reception(reserve_mb=1), max_associations=2)))
    entity = AE("MANY")
    entity.add_requested_context("1.2.840.10008.1.1")
    held = [entity.associate("127.0.0.1", node.receiver.port, ae_title="MEDIMG") for _ in range(3)]
    assert [association.is_established for association in held] == [True, True, False]
    assert held[2].is_rejected
    for association in held[:2]:
        association.release()


def recorded_association(port: int, image: Path) -> bytes:
    """Give the bytes that storescu sends for one image, taken on their way to the node."""
    with socket.create_server(("127.0.0.1", 0)) as relay:
        sent = bytearray()

        def pass_on() -> None:
            client, _ = relay.accept()
            with client, socket.create_connection(("127.0.0.1", port)) as node:
                answers = threading.Thread(target=pump, args=(node, client, None))
                answers.start()
                pump(client, node, sent)
                answers.join()

        thread = threading.Thread(target=pass_on)
        thread.start()
        storescu(relay.getsockname()[1], image)
        thread.join()
    return bytes(sent)


def pump(source: socket.socket, target: socket.socket, record: bytearray | None) -> None:
    try:
        while piece := source.recv(65536):
            if record is not None:
                record += piece
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def send_raw(port: int, content: bytes) -> None:
    """Send bytes and end the connection in the middle of whatever comes."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.05)
            connection.recv(4096)
    except OSError:
        pass


def fuzz(start: Start, folder: Path, count: int) -> None:
    node = start(
        make_config(folder, receive=Reception(reserve_mb=1, network_timeout_s=1, max_associations=64))
    )
    first = make_image(folder / "a.dcm", size=16)
    stream = recorded_association(node.receiver.port, first)
    assert stored(node) == {uid_of(first)}
    generator = random.Random(0)
    for _ in range(count):
        mutated = bytearray(stream)
        for _ in range(generator.choice((1, 1, 4, 32))):
            mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        if generator.random() < 0.3:
            del mutated[generator.randrange(len(mutated)) :]
        send_raw(node.receiver.port, bytes(mutated))
    wait_for(lambda: node.receiver.associations == 0, 60)
    last = make_image(folder / "b.dcm")
    assert storescu(node.receiver.port, last).returncode == 0
    assert node.problem() is None


def test_damaged_associations_harm_nobody_else(start: Start, tmp_path: Path) -> None:
    fuzz(start, tmp_path, 100)


@pytest.mark.soak
def test_many_damaged_associations(start: Start, tmp_path: Path) -> None:
    fuzz(start, tmp_path, 5000)


def test_an_association_without_transfer_syntaxes_ends(start: Start) -> None:
    """Negotiation itself fails within pynetdicom; no thread and no connection may be left."""
    node = start()

    def item(kind: int, content: bytes) -> bytes:
        return bytes([kind, 0]) + len(content).to_bytes(2, "big") + content

    context = item(0x20, bytes([1, 0, 0, 0]) + item(0x30, b"1.2.840.10008.1.1"))
    user = item(0x50, item(0x51, (16384).to_bytes(4, "big")) + item(0x52, b"1.2.3"))
    titles = b"MEDIMG".ljust(16) + b"STORESCU".ljust(16)
    body = bytes([0, 1, 0, 0]) + titles + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1") + context + user
    before = threading.active_count()
    with socket.create_connection(("127.0.0.1", node.receiver.port), timeout=5) as connection:
        connection.sendall(bytes([1, 0]) + len(body).to_bytes(4, "big") + body)
        assert connection.recv(4096) == b""
    wait_for(lambda: threading.active_count() <= before)


@pytest.mark.parametrize("kind", [1, 4])
def test_a_pdu_of_absurd_length_is_not_read(start: Start, kind: int) -> None:
    node = start()
    with socket.create_connection(("127.0.0.1", node.receiver.port), timeout=2) as connection:
        connection.sendall(bytes([kind, 0]) + (2**32 - 1).to_bytes(4, "big") + bytes(4096))
        try:
            answer = connection.recv(4096)
        except ConnectionResetError:
            answer = b""
    assert answer == b""
