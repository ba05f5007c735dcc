"""Kill a node again and again under load, and look for what was lost, doubled or mixed.

    python benchmarks/node_kills.py --model model.onnx [--kills 10] [--json FILE]

Senders go on until each image is acknowledged; one series UID in three has two patients. An archive refuses
every fifth report that it is sent; an HTTP service redirects until the last kill. Afterwards every image must
be in exactly one chain of reports on one patient, and every report at both destinations, with one content.
"""

import argparse
import contextlib
import hashlib
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

CONFIG = """
folder = "state"
address = "127.0.0.1"
port = {port}
status_port = 0
drain_s = 30.0
[receive]
reserve_mb = 10.0
[inference]
series_idle_s = 0.5
[deliver]
first_retry_s = 0.2
max_retry_s = 1.0
timeout_s = 5.0
[[deliver.dicom]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive}
[[deliver.http]]
name = "service"
url = "http://127.0.0.1:{service}/results"
"""


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Archive:
    """Refuses every fifth report that it is sent, and keeps the others."""

    def __init__(self) -> None:
        from pydicom.uid import ComprehensiveSRStorage
        from pynetdicom import AE, evt

        self.kept: dict[str, set[str]] = defaultdict(set)
        self.reports: dict[str, bytes] = {}
        self.refused = self._count = 0
        entity = AE("ARCHIVE")
        entity.add_supported_context(ComprehensiveSRStorage)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def _store(self, event: Any) -> int:  # noqa: ANN401
        self._count += 1
        if self._count % 5 == 0:
            self.refused += 1
            return 0xA900
        uid, content = str(event.request.AffectedSOPInstanceUID), event.encoded_dataset()
        known = uid in self.kept
        self.kept[uid].add(hashlib.sha256(content).hexdigest())
        self.reports[uid] = content
        # As archives do that keep what they have.
        return 0x0111 if known else 0x0000

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()


class Service:
    """Redirects every post until it is told to take them."""

    def __init__(self) -> None:
        self.kept: dict[str, set[str]] = defaultdict(set)
        self.redirected, self.is_willing = 0, False
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if service.is_willing:
                    service.kept[self.headers["Idempotency-Key"]].add(hashlib.sha256(body).hexdigest())
                    self.send_response(204)
                else:
                    service.redirected += 1
                    self.send_response(302)
                    self.send_header("Location", "/login")
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Sender(threading.Thread):
    """Sends series after series, each image until it is acknowledged."""

    def __init__(self, number: int, port: int) -> None:
        super().__init__(daemon=True)
        self._number, self._port = number, port
        self.acknowledged: dict[str, tuple[str, str, str]] = {}
        self.is_ending = False

    def run(self) -> None:
        """Send until told to end."""
        from pydicom.uid import generate_uid

        count = 0
        while not self.is_ending:
            series, study = generate_uid(), generate_uid()
            patients = [f"P{self._number}-{count}", f"Q{self._number}-{count}"][: 2 if count % 3 == 0 else 1]
            images = [make_image(patient, study, series, n) for n in range(3) for patient in patients]
            waiting = {str(image.SOPInstanceUID): image for image in images}
            while waiting and not self.is_ending:
                for uid in self._send(list(waiting.values())):
                    image = waiting.pop(uid)
                    self.acknowledged[uid] = (image.PatientID, study, series)
            count += 1

    def _send(self, images: list[Any]) -> list[str]:
        from pynetdicom import AE

        entity = AE("SENDER")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 5
        entity.add_requested_context(images[0].SOPClassUID, ["1.2.840.10008.1.2.1"])
        done: list[str] = []
        association = entity.associate("127.0.0.1", self._port, ae_title="MEDIMG")
        if not association.is_established:
            time.sleep(0.2)
            return done
        # An association that has ended raises RuntimeError.
        with contextlib.suppress(RuntimeError):
            for image in images:
                answer = association.send_c_store(image)
                if answer and answer.get("Status") == 0:
                    done.append(str(image.SOPInstanceUID))
        if association.is_established:
            association.release()
        return done


def make_image(patient: str, study: str, series: str, number: int) -> Any:  # noqa: ANN401  pydicom has no types
    """Make a small image of noise."""
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import generate_uid

    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", generate_uid()
    image.PatientID = image.PatientName = patient
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.Modality, image.InstanceNumber, image.Rows, image.Columns = "MR", number, 32, 32
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.SamplesPerPixel, image.PixelRepresentation = 1, 0
    image.PhotometricInterpretation, image.WindowCenter, image.WindowWidth = "MONOCHROME2", 2048, 4096
    image.PixelData = np.random.default_rng(number).integers(0, 4096, (32, 32), dtype=np.uint16).tobytes()
    return image


class Node:
    """The node's process."""

    def __init__(self, folder: Path, model: Path, port: int) -> None:
        self._folder, self._model, self._port = folder, model, port
        self.process: Any = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        program = str(Path(sys.executable).with_name("medimg-run"))
        command = [program, "listen", str(self._model), "--config", str(self._folder / "node.toml")]
        with (self._folder / "node.log").open("a") as log:
            self.process = subprocess.Popen([*command, "--threads", "1"], stdout=log, stderr=log)
        end = time.monotonic() + 90
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.1)
        raise SystemExit(f"the node does not start: {(self._folder / 'node.log').read_text()[-2000:]}")

    def end(self, number: int) -> int:
        """Send it a signal, and give its exit status."""
        self.process.send_signal(number)
        return int(self.process.wait(timeout=120))


def torment(folder: Path, model: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run, kill and examine."""
    archive, service, port = Archive(), Service(), free_port()
    address = service.server.server_address[1]
    (folder / "node.toml").write_text(CONFIG.format(port=port, archive=archive.port, service=address))
    moments = random.Random(seed)  # noqa: S311  moments, no secrets
    node = Node(folder, model, port)
    senders = [Sender(number, port) for number in range(2)]
    for sender in senders:
        sender.start()
    for _ in range(kills):
        node.start()
        time.sleep(moments.uniform(0.5, 5.0))
        node.end(signal.SIGKILL)
    node.start()
    wait_until_all_was_seen(senders, archive, service)
    for sender in senders:
        sender.is_ending = True
    for sender in senders:
        sender.join()
    service.is_willing = True
    is_empty = wait_until_done(folder)
    status = node.end(signal.SIGTERM)
    archive.stop()
    service.server.shutdown()
    sent = {uid: of for sender in senders for uid, of in sender.acknowledged.items()}
    problems = [*examine(folder, sent, archive, service)]
    if not is_empty:
        problems.append("something is stuck")
    return {
        "kills": kills,
        "images_acknowledged": len(sent),
        "reports": len(archive.kept),
        "refused_by_the_archive": archive.refused,
        "redirected": service.redirected,
        "exit_status": status,
        "problems": problems,
    }


def wait_until_all_was_seen(senders: list[Sender], archive: Archive, service: Service) -> None:
    """Go on until images were taken, a report was refused and a post redirected, on a slow machine too."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if archive.refused and service.redirected and any(sender.acknowledged for sender in senders):
            return
        time.sleep(0.1)


def wait_until_done(folder: Path) -> bool:
    """Wait until the queue holds nothing; give whether it came to that."""
    from medimg.runtime.node.desk import Desk

    desk, end = Desk(folder / "state", ()), time.monotonic() + 120
    try:
        while time.monotonic() < end:
            ((unreported,),) = desk._rows("SELECT count(*) FROM instances WHERE state != 'delivered'")
            if not unreported and not desk.open_deliveries():
                return True
            time.sleep(0.2)
        return False
    finally:
        desk.close()


Key = tuple[str, str, str]
"""PatientID, study and series UID."""


def examine(folder: Path, sent: dict[str, Key], archive: Archive, service: Service) -> Iterator[str]:
    """Name all that was lost, doubled or mixed."""
    from medimg.runtime.node.audit import verify_log
    from medimg.runtime.node.journal import read_lines

    lines = [json.loads(line) for line in read_lines(folder / "state" / "results")]
    answered = [line["sop_instance_uid"] for line in lines if line["kind"] == "instance"]
    series = {line["report_uid"]: line for line in lines if line["kind"] == "series"}
    if len(set(answered)) != len(answered):
        yield "an image has two answers"
    if missing := set(sent) - set(answered):
        yield f"{len(missing)} images have no answer"
    for name, kept in (("archive", archive.kept), ("service", service.kept)):
        lost, unknown = len(set(series) - set(kept)), len(set(kept) - set(series))
        if lost or unknown:
            yield f"{name}: {lost} reports missing, {unknown} unknown"
        if any(len(contents) > 1 for contents in kept.values()):
            yield f"{name}: a report UID has two contents"
    yield from examine_chains(series, sent, archive)
    verify_log(folder / "state" / "audit")


def examine_chains(series: dict[str, Any], sent: dict[str, Key], archive: Archive) -> Iterator[str]:
    """Name reports with two patients, and series without exactly one last report of all their images."""
    import pydicom

    chains: dict[Key, dict[str, set[str]]] = defaultdict(dict)
    for uid, content in archive.reports.items():
        report = pydicom.dcmread(BytesIO(content), force=True)
        images = {image for answer in series[uid]["answers"] for image in answer["instances"]}
        if {sent[image][0] for image in images if image in sent} - {report.PatientID}:
            yield f"report {uid} has two patients"
        key = (report.PatientID, report.StudyInstanceUID, series[uid]["series_instance_uid"])
        chains[key][uid] = images
    for key, reports in chains.items():
        heads = set(reports) - {series[uid]["predecessor"] for uid in reports}
        roots = [uid for uid in reports if series[uid]["predecessor"] is None]
        if len(heads) != 1 or len(roots) != 1:
            yield f"a series has {len(roots)} first and {len(heads)} last reports"
        last = {image for uid in heads for image in reports[uid]}
        if missing := {uid for uid, of in sent.items() if of == key} - last:
            yield f"{len(missing)} images are not in their series' last report"
    if lost := set(sent.values()) - set(chains):
        yield f"{len(lost)} series have no report"


def main() -> None:
    """Torment and print; exit status 1 if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import pynetdicom

    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    with tempfile.TemporaryDirectory() as name:
        found = torment(Path(name), options.model.absolute(), options.kills, options.seed)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if found["problems"] or found["exit_status"] else 0)


if __name__ == "__main__":
    main()
