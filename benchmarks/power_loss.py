"""Kill a node at random moments, drop what it had not synced, start it again; check that nothing was lost.

    python benchmarks/power_loss.py --kills 200 [--json FILE]

Senders keep what was acknowledged to them. Each kill is SIGKILL followed by a loss of power: the state folder
is replaced by what fsync had promised (lost_writes.c). At the end, with the node at rest, a checker that
shares no code with the node reads the database, the lines and the reports:

- every acknowledged SOP instance UID has exactly one row, with an answer, and exactly one line of results;
- the latest report of its series, on disk and at the destination, refers to it;
- no UID was ever seen at the destination with two contents;
- the audit log's chain holds.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIG = """
folder = "state"
address = "127.0.0.1"
port = {port}
status_port = 0
drain_s = 30.0
[receive]
reserve_mb = 1.0
network_timeout_s = 5.0
[inference]
series_idle_s = 0.5
max_tries = 100
[deliver]
overlay = true
first_retry_s = 0.1
max_retry_s = 0.5
[[deliver.dicom]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive}
"""


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Archive:
    """A destination that keeps a hash of every content it was sent under each UID."""

    def __init__(self) -> None:
        from pynetdicom import AE, evt

        self.contents: dict[str, set[str]] = defaultdict(set)
        self.references: dict[str, set[str]] = {}
        self.predecessors: dict[str, str] = {}
        entity = AE("ARCHIVE")
        for sop_class in ("1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"):
            entity.add_supported_context(sop_class)
        self.port = free_port()
        handlers = [(evt.EVT_C_STORE, self._on_store)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def _on_store(self, event: Any) -> int:  # noqa: ANN401  pynetdicom has no types here
        content = event.encoded_dataset(include_meta=False)
        report = event.dataset
        uid = str(report.SOPInstanceUID)
        self.contents[uid].add(hashlib.sha256(content).hexdigest())
        self.references[uid] = referenced(report)
        return 0

    def stop(self) -> None:
        """Stop to listen."""
        self._server.shutdown()


def referenced(report: Any) -> set[str]:  # noqa: ANN401
    """Find every image that a report's content refers to."""
    found: set[str] = set()
    for element in report.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            found.add(str(element.value))
    for item in report.get("PredecessorDocumentsSequence", ()):
        for element in item.iterall():
            if element.keyword == "ReferencedSOPInstanceUID":
                found.discard(str(element.value))
    return found


class Sender(threading.Thread):
    """Sends new series for ever; an image that was not acknowledged is sent again."""

    def __init__(self, port: int, template: Any, seed: int) -> None:  # noqa: ANN401
        super().__init__(daemon=True)
        self._port, self._template = port, template
        self._random = random.Random(seed)  # noqa: S311  moments, no secrets
        self.acknowledged: dict[str, str] = {}
        self.stopping = threading.Event()

    def run(self) -> None:
        """Send until told to stop, then finish the series."""
        from pydicom.uid import generate_uid

        while not self.stopping.is_set():
            series = str(generate_uid())
            for image in list(self._images(series)):
                while str(image.SOPInstanceUID) not in self.acknowledged:
                    self._send(image, series)
                    if self.stopping.is_set():
                        return

    def _images(self, series: str) -> Iterator[Any]:
        from copy import deepcopy

        from pydicom.uid import generate_uid

        for number in range(self._random.randrange(1, 12)):
            image = deepcopy(self._template)
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.SeriesInstanceUID, image.InstanceNumber = series, number
            yield image

    def _send(self, image: Any, series: str) -> None:  # noqa: ANN401
        from pynetdicom import AE

        entity = AE("SENDER")
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = 5
        entity.add_requested_context(image.SOPClassUID, [image.file_meta.TransferSyntaxUID])
        association = entity.associate("127.0.0.1", self._port, ae_title="MEDIMG")
        if not association.is_established:
            time.sleep(0.1)
            return
        try:
            answer = association.send_c_store(image)
            if answer and answer.get("Status") == 0:
                self.acknowledged[str(image.SOPInstanceUID)] = series
        except (RuntimeError, ValueError, OSError):
            pass
        finally:
            if association.is_established:
                association.release()


class NodeProcess:
    """The node under a shim that remembers what was synced."""

    def __init__(self, folder: Path, model: Path, archive_port: int) -> None:
        self.folder, self._model = folder, model
        self.state, self._shadow = folder / "state", folder / "shadow"
        self.port = free_port()
        (folder / "node.toml").write_text(CONFIG.format(port=self.port, archive=archive_port))
        self._library = build_library(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start over what is in the state folder; the shadow begins with all of it."""
        self.state.mkdir(exist_ok=True)
        seed_shadow(self.state, self._shadow)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "LOST_WRITES_ROOT": str(self.state.resolve()),
            "LOST_WRITES_SHADOW": str(self._shadow),
        }
        program = str(Path(sys.executable).with_name("medimg-run"))
        options = ("--config", str(self.folder / "node.toml"), "--threads", "1")
        with (self.folder / "node.log").open("a") as log:
            self._process = subprocess.Popen(
                [program, "listen", str(self._model), *options], env=environment, stdout=log, stderr=log
            )
        self._wait_until_listening()

    def lose_power(self) -> None:
        """Kill it, and put what was synced in place of its state."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        rebuild(self.state, self._shadow)

    def stop(self) -> int:
        """End it by SIGTERM; give its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=300)

    def _wait_until_listening(self) -> None:
        assert self._process is not None
        end = time.monotonic() + 300
        while self._process.poll() is None and time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "node.log").read_text()[-3000:])


def build_library(folder: Path) -> Path:
    """Compile the shim."""
    library = folder / "lost_writes.so"
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "lost_writes.c", "-ldl"], check=True
    )
    return library


def seed_shadow(state: Path, shadow: Path) -> None:
    """Begin a shadow with all that is on disk now, which is durable."""
    remove(shadow)
    for kind in ("inodes", "folders"):
        (shadow / kind).mkdir(parents=True)
    for folder in (state, *(path for path in state.rglob("*") if path.is_dir())):
        entries = list(folder.iterdir())
        listing = "".join(
            f"{entry.stat().st_ino} {'d' if entry.is_dir() else 'f'} {entry.name}\n" for entry in entries
        )
        (shadow / "folders" / str(folder.stat().st_ino)).write_text(listing)
        for entry in entries:
            if entry.is_file():
                (shadow / "inodes" / str(entry.stat().st_ino)).write_bytes(entry.read_bytes())


def rebuild(state: Path, shadow: Path) -> None:
    """Replace a folder by what was synced of it; a file whose name alone was synced is empty."""
    rebuilt = state.with_name("rebuilt")
    remove(rebuilt)
    restore(state.stat().st_ino, rebuilt, shadow)
    remove(state)
    rebuilt.rename(state)


def restore(number: int, target: Path, shadow: Path) -> None:
    """Write one folder of the shadow."""
    target.mkdir()
    listing = shadow / "folders" / str(number)
    for line in listing.read_text().splitlines() if listing.exists() else ():
        inode, kind, name = line.split(" ", 2)
        if kind == "d":
            restore(int(inode), target / name, shadow)
        elif not name.endswith("-shm"):
            content = shadow / "inodes" / inode
            (target / name).write_bytes(content.read_bytes() if content.exists() else b"")


def remove(folder: Path) -> None:
    """Remove a folder with all in it."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def check(state: Path, acknowledged: dict[str, str], archive: Archive) -> list[str]:
    """Say what is wrong; nothing if nothing is. Shares no code with the node."""
    problems = []
    database = sqlite3.connect(f"file:{state / 'node.db'}?mode=ro", uri=True)
    rows = Counter(
        uid for (uid,) in database.execute("SELECT sop_uid FROM instances WHERE outcome IS NOT NULL")
    )
    for (packed,) in database.execute("SELECT content FROM history"):
        rows.update(json.loads(zlib.decompress(packed))["instances"][0])
    lines: Counter[str] = Counter()
    latest: dict[str, str] = {}
    for path in sorted((state / "results").glob("*.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            if line["kind"] == "instance":
                lines[line["sop_instance_uid"]] += 1
            else:
                latest[line["series_instance_uid"]] = line["report_uid"]
    for uid, series in acknowledged.items():
        if rows[uid] != 1:
            problems.append(f"{uid}: {rows[uid]} rows with an answer")
        if lines[uid] != 1:
            problems.append(f"{uid}: {lines[uid]} lines")
        report = latest.get(series)
        if report is None or uid not in archive.references.get(report, ()):
            problems.append(f"{uid}: the latest report of its series at the archive does not name it")
    problems += [f"{uid}: {len(found)} contents" for uid, found in archive.contents.items() if len(found) > 1]
    return problems + check_chain(state / "audit")


def check_chain(log: Path) -> list[str]:
    """Say whether a log's lines follow one another."""
    previous = "0" * 64
    for path in sorted(log.glob("*.jsonl")):
        for text in path.read_text().splitlines():
            if json.loads(text)["previous"] != previous:
                return ["the audit log's chain is broken"]
            previous = hashlib.sha256(text.encode()).hexdigest()
    return []


def play(kills: int, senders: int, seed: int, model: Path, image: Path) -> dict[str, Any]:
    """Kill a node so often, and check what is left."""
    import pydicom

    generator = random.Random(seed)  # noqa: S311  moments, no secrets
    archive = Archive()
    with tempfile.TemporaryDirectory() as folder:
        node = NodeProcess(Path(folder), model, archive.port)
        node.start()
        template = pydicom.dcmread(image)
        sending = [Sender(node.port, template, number) for number in range(senders)]
        for sender in sending:
            sender.start()
        for _ in range(kills):
            time.sleep(generator.uniform(0.05, 2.0))
            node.lose_power()
            node.start()
        end = time.monotonic() + 120
        before = sum(len(sender.acknowledged) for sender in sending)
        while sum(len(sender.acknowledged) for sender in sending) < before + 10 and time.monotonic() < end:
            time.sleep(0.1)
        for sender in sending:
            sender.stopping.set()
        for sender in sending:
            sender.join()
        acknowledged = {uid: series for sender in sending for uid, series in sender.acknowledged.items()}
        wait_until_delivered(node.state)
        status = node.stop()
        problems = check(node.state, acknowledged, archive)
        archive.stop()
    return {
        "kills": kills,
        "senders": senders,
        "acknowledged": len(acknowledged),
        "reports_and_overlays": len(archive.contents),
        "exit_status": status,
        "problems": problems,
    }


def wait_until_delivered(state: Path) -> None:
    """Wait until the queue is empty and every series is reported and delivered."""
    end = time.monotonic() + 300
    query = "SELECT count(*) FROM instances WHERE state != 'delivered'"
    while time.monotonic() < end:
        with sqlite3.connect(f"file:{state / 'node.db'}?mode=ro", uri=True) as database:
            if database.execute(query).fetchone()[0] == 0:
                return
        time.sleep(0.2)
    raise RuntimeError("the node did not come to rest")


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = play(arguments.kills, arguments.senders, arguments.seed, arguments.model, arguments.image)
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
