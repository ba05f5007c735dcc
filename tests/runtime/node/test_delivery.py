"""Results on their way out: Orthanc, dcmtk and an HTTP service as destinations."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest

from medimg.runtime.node.config import Delivery, DicomDestination, HttpDestination, Reception

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

        def send(self, reports: list[Pending], done: object) -> None:
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
