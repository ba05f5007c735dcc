"""Send series to a node at a given rate from several senders, and measure when each image's result is there.

    python benchmarks/node_load.py --model model.int8.onnx --minutes 15 [--series-per-hour 1200] [--json FILE]

Each series has 40 slices of 512×512 pixels of 16 bits, sent over one association; three series are a study.
The time of an image runs from just before its last bytes are written to the socket to the moment at which
another process sees its line in the results file. A rate of 0 sends as fast as the node acknowledges: the
highest rate. Senders and node share the machine's processors.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SLICES, SIZE, SERIES_A_STUDY = 40, 512, 3
CONFIG = """
folder = "state"
address = "127.0.0.1"
port = {port}
status_port = 0
drain_s = 60.0
[receive]
reserve_mb = 100.0
max_associations = 64
[inference]
series_idle_s = 10.0
"""


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_slices() -> list[Any]:
    """Make the slices of one series, which are sent again and again under new UIDs."""
    import cv2
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset

    generator = np.random.default_rng(0)
    slices = []
    for number in range(SLICES):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        image.PatientName, image.PatientID, image.Modality = "Load^Test", "L1", "MR"
        image.StudyDate, image.StudyTime, image.InstanceNumber = "20260101", "000000", number
        image.Rows = image.Columns = SIZE
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.SamplesPerPixel, image.PixelRepresentation = 1, 0
        image.PhotometricInterpretation = "MONOCHROME2"
        image.WindowCenter, image.WindowWidth = 20000, 40000
        noise = generator.integers(0, 40000, (SIZE, SIZE)).astype(np.uint16)
        image.PixelData = cv2.GaussianBlur(noise, (0, 0), 3).astype(np.uint16).tobytes()
        slices.append(image)
    return slices


def send(
    number: int,
    senders: int,
    port: int,
    interval_s: float,
    minutes: float,
    ready: Any,  # noqa: ANN401  a barrier
    sent: Any,  # noqa: ANN401  a queue
) -> None:
    """Send series until the end, every so many seconds or without pause; runs in a process of its own."""
    from pydicom.uid import generate_uid
    from pynetdicom import AE

    slices = make_slices()
    entity = AE(f"SENDER{number}")
    entity.add_requested_context(slices[0].SOPClassUID, ["1.2.840.10008.1.2.1"])
    ready.wait()
    end = time.time() + 60 * minutes
    due, count, study = time.time() + number * interval_s / senders, 0, ""
    while (now := time.time()) < end:
        if interval_s and now < due:
            time.sleep(min(due - now, 0.5))
            continue
        due += interval_s
        series, study = generate_uid(), generate_uid() if count % SERIES_A_STUDY == 0 else study
        count += 1
        association = entity.associate("127.0.0.1", port, ae_title="MEDIMG")
        if not association.is_established:
            sent.put(("", 0.0, False))
            continue
        for image in slices:
            image.SeriesInstanceUID, image.StudyInstanceUID = series, study
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            last_byte_at, ok = last_write(association), False
            # An association that has ended raises RuntimeError.
            with contextlib.suppress(RuntimeError):
                answer = association.send_c_store(image)
                ok = bool(answer) and answer.get("Status") == 0
            sent.put((str(image.SOPInstanceUID), last_byte_at[0], ok))
            if not association.is_established:
                break
        else:
            association.release()


def last_write(association: Any) -> list[float]:  # noqa: ANN401
    """Note when the association's socket last began to send; the list's only item changes as it does."""
    noted = [0.0]
    own = association.dul.socket
    plain = type(own).send

    def noting(content: bytes) -> None:
        noted[0] = time.time()
        plain(own, content)

    own.send = noting
    return noted


class Watcher(threading.Thread):
    """Sees lines appear in the results files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self.seen: dict[str, float] = {}
        self.reports = 0
        self.stopping = False

    def run(self) -> None:
        """Look every two milliseconds."""
        path, position = self._folder / "000000.jsonl", 0
        rest = b""
        while not self.stopping:
            if path.exists() and path.stat().st_size > position:
                with path.open("rb") as file:
                    file.seek(position)
                    new = file.read()
                now = time.time()
                position += len(new)
                *lines, rest = (rest + new).split(b"\n")
                for line in map(json.loads, lines):
                    if line["kind"] == "instance":
                        self.seen[line["sop_instance_uid"]] = now
                    else:
                        self.reports += 1
            time.sleep(0.002)


def resident_mb(pid: int) -> float:
    """Read a process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    return 0.0


def processor_s(pid: int) -> float:
    """Read how much processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(model: Path, minutes: float, series_per_hour: float, senders: int) -> dict[str, Any]:
    """Run node and senders, and put together what was seen."""
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "node.toml").write_text(CONFIG.format(port=port))
        program = str(Path(sys.executable).with_name("medimg-run"))
        with (folder / "node.log").open("w") as log:
            node = subprocess.Popen(
                [program, "listen", str(model), "--config", str(folder / "node.toml")], stdout=log, stderr=log
            )
        wait_for_port(port)
        watcher = Watcher(folder / "state" / "results")
        watcher.start()
        sent: Any = multiprocessing.Queue()
        ready = multiprocessing.Barrier(senders + 1)
        interval_s = 3600 * senders / series_per_hour if series_per_hour else 0.0
        processes = [
            multiprocessing.Process(
                target=send, args=(number, senders, port, interval_s, minutes, ready, sent)
            )
            for number in range(senders)
        ]
        for process in processes:
            process.start()
        ready.wait()
        begin, used_before_s = time.time(), processor_s(node.pid)
        images, memory_mb = collect(sent, processes, node.pid)
        wait_for_results(images, watcher)
        took_s, used_s = time.time() - begin, processor_s(node.pid) - used_before_s
        senders_s = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        node.terminate()
        status = node.wait(timeout=120)
        watcher.stopping = True
    accepted = {uid: at for uid, at, ok in images if ok}
    latencies_ms = np.array(
        [1e3 * (watcher.seen[uid] - at) for uid, at in accepted.items() if uid in watcher.seen]
    )
    return {
        "minutes": minutes,
        "series_per_hour_asked": series_per_hour,
        "senders": senders,
        "images_sent": len(images),
        "images_refused": len(images) - len(accepted),
        "images_without_result": len(accepted) - len(latencies_ms),
        "images_per_s": len(accepted) / took_s,
        "series_per_hour": len(accepted) / SLICES / took_s * 3600,
        "latency_ms": {
            name: float(np.percentile(latencies_ms, share))
            for name, share in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        },
        "memory_mb": {
            "after a tenth": memory_mb[len(memory_mb) // 10],
            "end": memory_mb[-1],
            "max": max(memory_mb),
        },
        "processors": len(os.sched_getaffinity(0)),
        "processors_used": {"node": used_s / took_s, "senders": senders_s / took_s},
        "node_processor_ms_per_image": 1e3 * used_s / max(len(accepted), 1),
        "exit_status": status,
    }


def collect(
    sent: Any,  # noqa: ANN401  a queue
    processes: list[multiprocessing.Process],
    pid: int,
) -> tuple[list[tuple[str, float, bool]], list[float]]:
    """Take what senders report while they run, and look at the node's memory every second."""
    images: list[tuple[str, float, bool]] = []
    memory_mb = [resident_mb(pid)]
    looked = time.monotonic()
    while any(process.is_alive() for process in processes) or not sent.empty():
        with contextlib.suppress(queue.Empty):
            images.append(sent.get(timeout=0.2))
        if time.monotonic() - looked > 1:
            memory_mb.append(resident_mb(pid))
            looked = time.monotonic()
    return images, memory_mb


def wait_for_port(port: int) -> None:
    """Wait until somebody listens."""
    for _ in range(3000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the node did not start")


def wait_for_results(images: list[tuple[str, float, bool]], watcher: Watcher) -> None:
    """Wait until every acknowledged image has its result, or a minute has passed."""
    end = time.monotonic() + 60
    while time.monotonic() < end and any(uid not in watcher.seen for uid, _, ok in images if ok):
        time.sleep(0.1)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--series-per-hour", type=float, default=1200.0)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.minutes, arguments.series_per_hour, arguments.senders)
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
