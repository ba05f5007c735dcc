"""Results on their way out: Orthanc, dcmtk and an HTTP service as destinations."""

import contextlib
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pydicom
import pytest
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from medimg.runtime.errors import ModelError, UsageError
from medimg.runtime.node.config import Delivery, DicomDestination, HttpDestination, Reception, Retention
from medimg.runtime.node.delivery import DeliveryError, HttpSender
from medimg.runtime.node.journal import read_lines
from medimg.runtime.node.records import Pending
from medimg.runtime.node.service import Node

from .conftest import (
    PROPOSALS,
    Orthanc,
    Start,
    certificate,
    free_port,
    make_config,
    make_series,
    real_images,
    storescu,
    uid_of,
    wait_for,
)

pytestmark = pytest.mark.long

QUICK = Delivery(first_retry_s=0.2, max_retry_s=0.4, timeout_s=5.0)


def archive(port: int) -> DicomDestination:
    return DicomDestination("archive", "ORTHANC", "127.0.0.1", port)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    running = Orthanc(tmp_path, free_port())
    yield running
    running.stop()


def test_orthanc_forwards_studies_and_gets_reports_that_resolve(
    start: Start, tmp_path: Path, orthanc: Orthanc
) -> None:
    deliver = replace(QUICK, dicom=(archive(orthanc.port),))
    start(make_config(tmp_path, port=orthanc.node_port, deliver=deliver))
    images = make_series(tmp_path / "series", 4)
    wait_for(orthanc.is_up)
    for image in images:
        orthanc.get("/instances", image.read_bytes())
    (study,) = orthanc.get("/studies")
    orthanc.get("/modalities/medimg/store", study.encode())
    reports = wait_for(lambda: orthanc.find("SR"))
    report = pydicom.dcmread(orthanc.file(reports[0]))
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    uids = {item.ReferencedSOPInstanceUID for item in evidence.ReferencedSOPSequence}
    assert uids == {uid_of(image) for image in images}
    for uid in uids:
        assert len(orthanc.lookup(uid)) == 1
    # It stands in the study of its images.
    assert orthanc.get("/studies") == [study]


@pytest.mark.real
def test_real_studies_go_through_orthanc_in_every_transfer_syntax(
    start: Start, tmp_path: Path, real_data: Path, orthanc: Orthanc
) -> None:
    """Under new instance UIDs, since several files are one image in other transfer syntaxes."""
    deliver = replace(QUICK, dicom=(archive(orthanc.port),))
    node = start(make_config(tmp_path, port=orthanc.node_port, deliver=deliver))
    wait_for(orthanc.is_up)
    sent = real_images(real_data)
    for syntax, file in sent:
        done = storescu(orthanc.port, "+II", PROPOSALS.get(syntax, "-xe"), file, called="ORTHANC")
        assert done.returncode == 0, done.stderr
    images = {
        orthanc.get(f"/instances/{one}")["MainDicomTags"]["SOPInstanceUID"]
        for one in orthanc.get("/instances")
    }
    assert len(images) == len(sent)
    for study in orthanc.get("/studies"):
        orthanc.get("/modalities/medimg/store", study.encode())
    wait_for(lambda: node.counters.total("answered") == len(images))
    wait_for(lambda: not node.store.unreported_series() and not node.store.counts()["undelivered"])
    reports = [pydicom.dcmread(orthanc.file(one)) for one in orthanc.find("SR")]
    ours = [report for report in reports if report.Manufacturer == "medimg"]
    referred = {
        image.ReferencedSOPInstanceUID
        for report in ours
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for image in series.ReferencedSOPSequence
    }
    assert referred >= images
    assert all(len(orthanc.lookup(uid)) == 1 for uid in referred)


def test_a_destination_that_is_down_gets_everything_later(start: Start, tmp_path: Path) -> None:
    port = free_port()
    node = start(make_config(tmp_path, deliver=replace(QUICK, dicom=(archive(port),))))
    for number in range(3):
        storescu(node.receiver.port, *make_series(tmp_path / str(number), 2))
    wait_for(lambda: node.counters.total("delivery_failed") >= 2)
    wait_for(lambda: node.store.counts()["undelivered"] == 3)
    assert node.store._rows("SELECT DISTINCT state FROM instances") == [("inferred",)]
    kept = tmp_path / "kept"
    kept.mkdir()
    with subprocess.Popen(["storescp", "-aet", "ORTHANC", "-od", kept, str(port)]) as storescp:
        wait_for(lambda: node.store.counts()["undelivered"] == 0)
        storescp.terminate()
    assert node.store._rows("SELECT DISTINCT state FROM instances") == [("delivered",)]
    assert len(list(kept.iterdir())) == 3


def test_reports_travel_by_tls_with_both_certificates(start: Start, tmp_path: Path) -> None:
    certificate(tmp_path, "ca")
    ours, theirs = certificate(tmp_path, "node", "ca"), certificate(tmp_path, "archive", "ca")
    port, kept = free_port(), tmp_path / "kept"
    kept.mkdir()
    tls = ["+tls", theirs.key, theirs.certificate, "+cf", theirs.authorities]
    with subprocess.Popen(["storescp", "-aet", "ORTHANC", *tls, "-od", kept, str(port)]) as storescp:
        deliver = replace(QUICK, dicom=(replace(archive(port), tls=True),))
        receive = Reception(reserve_mb=1, tls=ours)
        node = start(make_config(tmp_path, deliver=deliver, receive=receive))
        client = ["+tls", theirs.key, theirs.certificate, "+cf", theirs.authorities]
        sent = storescu(node.receiver.port, *client, *make_series(tmp_path / "series", 1))
        assert sent.returncode == 0, sent.stderr
        wait_for(lambda: node.counters.total("delivered") == 1)
        storescp.terminate()
    assert len(list(kept.iterdir())) == 1


class Service:
    """An HTTP service that fails at first."""

    def __init__(self, failures: int) -> None:
        self.requests: list[tuple[str, bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append((self.headers["Idempotency-Key"], body))
                self.send_response(503 if len(service.requests) <= failures else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_http_gets_json_lines_until_it_takes_them(start: Start, tmp_path: Path) -> None:
    service = Service(failures=2)
    url = f"http://127.0.0.1:{service.server.server_address[1]}/results"
    deliver = replace(QUICK, http=(HttpDestination("service", url),))
    node = start(make_config(tmp_path, deliver=deliver))
    images = make_series(tmp_path / "series", 2)
    storescu(node.receiver.port, *images)
    wait_for(lambda: node.counters.total("delivered") == 1)
    service.server.shutdown()
    service.server.server_close()
    assert len(service.requests) == 3
    assert len(set(service.requests)) == 1
    key, body = service.requests[0]
    line = json.loads(body)
    assert key == line["report_uid"]
    assert set(line["answers"][0]["instances"]) == {uid_of(image) for image in images}


def test_waits_double_up_to_the_limit(start: Start, tmp_path: Path) -> None:
    from medimg.runtime.node.counters import Counters
    from medimg.runtime.node.delivery import Deliverer, DeliveryError, Sender
    from medimg.runtime.node.records import Pending

    class Down(Sender):
        name = "archive"

        def send(self, reports: Iterable[Pending], note: object) -> None:
            tries.append(clock)
            raise DeliveryError("down")

    node = start(make_config(tmp_path, deliver=Delivery((archive(1),), first_retry_s=1e6, max_retry_s=1e6)))
    storescu(node.receiver.port, *make_series(tmp_path / "series", 1))
    wait_for(lambda: node.store.counts()["undelivered"] == 1)
    tries: list[float] = []
    clock = 0.0
    rules = Delivery((), (), first_retry_s=1.0, max_retry_s=8.0)
    deliverer = Deliverer(Down(), node.store, rules, Counters(), lambda: clock)
    while clock < 30:
        deliverer.work()
        clock += 0.5
    assert tries == [0.0, 1.0, 3.0, 7.0, 15.0, 23.0]


def test_retries_cost_no_time_elsewhere(start: Start, tmp_path: Path) -> None:
    """A destination that swallows connections holds up neither the others nor inference."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        service = Service(failures=0)
        url = f"http://127.0.0.1:{service.server.server_address[1]}/"
        port = silent.getsockname()[1]
        deliver = Delivery(
            (archive(port),),
            (HttpDestination("service", url),),
            first_retry_s=0.2,
            max_retry_s=1,
            timeout_s=3,
        )
        node = start(make_config(tmp_path, deliver=deliver))
        started = time.monotonic()
        storescu(node.receiver.port, *make_series(tmp_path / "series", 1))
        wait_for(lambda: len(service.requests) == 1, 2.5)
        assert time.monotonic() - started < 3
        service.server.shutdown()
        service.server.server_close()


class Archive:
    """An archive that answers each report as it is told.

    Args:
        answer: gives a status for a report's UID and how often it came; None ends the association.
        syntaxes: what it accepts.
    """

    def __init__(
        self, answer: Callable[[str, int], int | None], syntaxes: Sequence[str] = (ExplicitVRLittleEndian,)
    ) -> None:
        self.came: list[str] = []
        self.kept: dict[str, list[bytes]] = {}
        self._answer = answer
        entity = AE("ORTHANC")
        entity.add_supported_context(ComprehensiveSRStorage, list(syntaxes))
        self.server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.port = int(self.server.server_address[1])

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.came.append(uid)
        status = self._answer(uid, self.came.count(uid))
        if status is None:
            event.assoc.abort()
            return 0xC000
        if status == 0:
            self.kept.setdefault(uid, []).append(event.encoded_dataset())
        return status


def test_a_report_that_is_refused_holds_up_no_other(start: Start, tmp_path: Path) -> None:
    """It is set aside, told of, tried again by itself, and delivered when the archive takes it."""
    poison: list[str] = []
    is_healed: list[bool] = []

    def answer(uid: str, _times: int) -> int:
        poison.append(uid)
        return 0xA900 if uid == poison[0] and not is_healed else 0

    archive_ = Archive(answer)
    node = start(make_config(tmp_path, deliver=replace(QUICK, dicom=(archive(archive_.port),))))
    for number in range(5):
        storescu(node.receiver.port, *make_series(tmp_path / str(number), 1))
    wait_for(lambda: node.counters.total("delivered") == 4)
    wait_for(lambda: archive_.came.count(poison[0]) >= 3)
    assert node.store.counts() | {"undelivered": 1, "deliveries_set_aside": 1} == node.store.counts()
    (event,) = [event for event in audited(node) if event["event"] == "delivery set aside"]
    assert (event["report_uid"], event["destination"]) == (poison[0], "archive")
    assert "A900" in event["reason"]
    is_healed.append(True)
    wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert all(len(kept) == 1 for kept in archive_.kept.values())
    assert len(archive_.kept) == 5


@pytest.mark.parametrize("status", [None, 0xA700, 0x0110])
def test_whatever_a_report_does_to_an_archive_others_are_delivered(
    start: Start, tmp_path: Path, status: int | None
) -> None:
    poison: list[str] = []

    def answer(uid: str, _times: int) -> int | None:
        poison.append(uid)
        return status if uid == poison[0] else 0

    archive_ = Archive(answer)
    node = start(make_config(tmp_path, deliver=replace(QUICK, dicom=(archive(archive_.port),))))
    for number in range(4):
        storescu(node.receiver.port, *make_series(tmp_path / str(number), 1))
    wait_for(lambda: node.counters.total("delivered") == 3)
    assert node.store.counts()["undelivered"] == 1


def test_a_duplicate_of_the_nodes_own_report_is_delivered(start: Start, tmp_path: Path) -> None:
    """As after an answer that was lost: the archive has it, and says so."""
    archive_ = Archive(lambda _, times: None if times == 1 else 0x0111)
    node = start(make_config(tmp_path, deliver=replace(QUICK, dicom=(archive(archive_.port),))))
    storescu(node.receiver.port, *make_series(tmp_path / "series", 1))
    wait_for(lambda: node.counters.total("delivered") == 1)
    (event,) = [event for event in audited(node) if event["event"] == "delivered"]
    assert event["remark"] == "status 0111"


def test_an_archive_that_knows_implicit_vr_alone_gets_reports(start: Start, tmp_path: Path) -> None:
    archive_ = Archive(lambda *_: 0, [ImplicitVRLittleEndian])
    node = start(make_config(tmp_path, deliver=replace(QUICK, dicom=(archive(archive_.port),))))
    storescu(node.receiver.port, *make_series(tmp_path / "series", 1))
    wait_for(lambda: node.counters.total("delivered") == 1)
    ((uid, (content,)),) = archive_.kept.items()
    sent = pydicom.dcmread(BytesIO(content), force=True)
    assert sent.SOPInstanceUID == uid
    assert sent == pydicom.dcmread(node.store.report_path(uid))


def test_a_lost_report_file_is_set_aside(start: Start, tmp_path: Path) -> None:
    port = free_port()
    node = start(make_config(tmp_path, deliver=replace(QUICK, dicom=(archive(port),))))
    storescu(node.receiver.port, *make_series(tmp_path / "series", 1))
    wait_for(lambda: node.counters.total("delivery_failed"))
    (report,) = node.store.reports.iterdir()
    report.write_bytes(b"damaged")
    entity = AE("ORTHANC")
    entity.add_supported_context(ComprehensiveSRStorage)
    server = entity.start_server(("127.0.0.1", port), block=False)
    wait_for(lambda: node.store.counts()["deliveries_set_aside"] == 1)
    server.shutdown()


def audited(node: Node) -> list[dict[str, Any]]:
    node._audit.catch_up()
    return [json.loads(line) for line in read_lines(node.store.folder / "audit")]


def test_what_a_removed_destination_should_get_is_closed_after_a_while(start: Start, tmp_path: Path) -> None:
    config = make_config(tmp_path, deliver=replace(QUICK, dicom=(archive(free_port()),)))
    first = start(config)
    storescu(first.receiver.port, *make_series(tmp_path / "series", 2))
    wait_for(lambda: first.store.counts()["undelivered"] == 1)
    first.stop()
    second = start(replace(config, deliver=QUICK))
    (event,) = [event for event in audited(second) if event["event"] == "destination removed"]
    assert (event["destination"], event["reports"]) == ("archive", 1)
    assert second.store.counts()["undelivered"] == 1
    second.stop()
    third = start(replace(config, deliver=QUICK, retention=Retention(images_h=1e-9)))
    wait_for(lambda: third.store.counts()["undelivered"] == 0)
    (event,) = [event for event in audited(third) if event["event"] == "delivery closed"]
    assert event["reason"] == "destination removed"
    wait_for(lambda: not list(third.store.images.iterdir()))


def test_a_destination_that_comes_back_gets_what_waited(start: Start, tmp_path: Path) -> None:
    port = free_port()
    config = make_config(tmp_path, deliver=replace(QUICK, dicom=(archive(port),)))
    first = start(config)
    storescu(first.receiver.port, *make_series(tmp_path / "series", 1))
    wait_for(lambda: first.store.counts()["undelivered"] == 1)
    first.stop()
    start(replace(config, deliver=QUICK)).stop()
    kept = tmp_path / "kept"
    kept.mkdir()
    with subprocess.Popen(["storescp", "-aet", "ORTHANC", "-od", kept, str(port)]) as storescp:
        third = start(config)
        wait_for(lambda: third.store.counts()["undelivered"] == 0)
        storescp.terminate()
    assert third.store._rows("SELECT * FROM absent") == []
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300, 304, 404, 401])
def test_only_success_of_the_post_itself_is_a_delivery(tmp_path: Path, status: int) -> None:
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append("POST")
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Location", "/login")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            came.append("GET")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url, pytest.raises(DeliveryError, match=f"answered with {status}"):
        post(HttpDestination("service", url))
    assert came == ["POST"]


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/results"
    finally:
        server.shutdown()
        server.server_close()


def post(destination: HttpDestination) -> list[tuple[str | None, str | None]]:
    answers: list[tuple[str | None, str | None]] = []
    sender = HttpSender(destination, 5.0)
    sender.send([Pending(1, "1.2.3", 0, "{}\n")], lambda _, *answer: answers.append(answer))
    return answers


class Asking(BaseHTTPRequestHandler):
    """Notes who asks."""

    came: ClassVar[list[str | None]] = []
    status = 204

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.came.append(self.headers["Authorization"])
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"token_file": "secret"}, "Bearer t0p s3cret"),
        ({"user": "nöde", "password_file": "secret"}, "Basic bsO2ZGU6dDBwIHMzY3JldA=="),
    ],
)
def test_credentials_come_from_files(tmp_path: Path, fields: dict[str, str], wanted: str | None) -> None:
    (tmp_path / "secret").write_text("t0p s3cret\n")
    fields = {name: str(tmp_path / text) if name.endswith("file") else text for name, text in fields.items()}
    Asking.came.clear()
    with serving(Asking) as url:
        assert post(HttpDestination("service", url, **fields)) == [(None, None)]
    assert Asking.came == [wanted]


def test_https_by_own_authority_and_client_certificate(tmp_path: Path) -> None:
    certificate(tmp_path, "ca")
    ours, theirs = certificate(tmp_path, "node", "ca"), certificate(tmp_path, "service", "ca")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=theirs.authorities)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(theirs.certificate, theirs.key)
    with serving(Asking, context) as url:
        known = HttpDestination("service", url, authorities=ours.authorities)
        assert post(replace(known, certificate=ours.certificate, key=ours.key)) == [(None, None)]
        with pytest.raises(DeliveryError):
            post(known)
        with pytest.raises(DeliveryError, match="certificate verify failed"):
            post(HttpDestination("service", url))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"url": "https://u:p@host/"}, "credentials belong into a file"),
        ({"url": "http://host/", "token_file": "t"}, "need https"),
        ({"url": "https://host/", "token_file": "t", "user": "u", "password_file": "p"}, "either token_file"),
        ({"url": "https://host/", "user": "u"}, "either token_file"),
        ({"url": "https://host/", "key": "k"}, "go together"),
        ({"url": "https:///results"}, "names no host"),
    ],
)
def test_credentials_that_would_be_seen_or_mean_two_things_are_refused(
    fields: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint):
        HttpDestination("service", **fields)


@pytest.mark.parametrize("content", [None, b"", b"two\nlines\n", b"\xff"])
def test_a_secret_that_cannot_be_read_is_told_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="secret"):
        HttpSender(HttpDestination("service", "https://host/", token_file=str(path)), 1.0)
