"""A node in this process, its peers from Debian's packages, and small images."""

import contextlib
import json
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medimg.runtime.node.arrivals import read_file_arrival
from medimg.runtime.node.config import Inference, NodeConfig, Reception, Tls
from medimg.runtime.node.service import Node

from .tiny_model import write_tiny_model

ROOT = Path(__file__).parents[3]
Start = Callable[..., Node]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


def free_port() -> int:
    """Find a port that nobody listens on, below those that connections of other tests go out from."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait until something holds, and give it."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
    return found


def make_config(folder: Path, **changes: Any) -> NodeConfig:
    """A configuration for this machine alone, with short waits but for senders, who may be on a busy one."""
    config = NodeConfig(
        str(folder / "state"),
        address="127.0.0.1",
        port=0,
        status_port=0,
        drain_s=5.0,
        receive=Reception(reserve_mb=1.0, network_timeout_s=20.0),
        inference=Inference(series_idle_s=0.3, retry_s=0.1),
    )
    return replace(config, **changes)


def stop_once(node: Node) -> None:
    """Stop a node that its test has not stopped itself."""
    if not node.is_stopped:
        node.stop()


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Iterator[Start]:
    """Start nodes that end with the test."""
    with contextlib.ExitStack() as running:

        def begin(config: NodeConfig | None = None, model: Path = tiny_model) -> Node:
            node = Node(model, config or make_config(tmp_path), 1)
            node.start()
            running.callback(stop_once, node)
            return node

        yield begin


def make_image(
    path: Path,
    *,
    series: str | None = None,
    number: int = 1,
    size: int = 64,
    tags: Mapping[str, Any] | None = None,
) -> Path:
    """Write a CT image of noise; `tags` are set last."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID = series or generate_uid()
    image.StudyInstanceUID = generate_uid(entropy_srcs=[image.SeriesInstanceUID])
    image.PatientName, image.PatientID, image.PatientSex = "Doe^Jané", "P1", "F"
    image.SpecificCharacterSet, image.PatientBirthDate = "ISO_IR 192", "19700101"
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20260101", "101500", "1", "A1"
    image.ReferringPhysicianName = "Roe^Richard"
    image.Modality, image.BodyPartExamined, image.InstanceNumber = "CT", "HEAD", number
    image.Rows = image.Columns = size
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.SamplesPerPixel, image.PixelRepresentation = 1, 0
    image.PhotometricInterpretation = "MONOCHROME2"
    image.WindowCenter, image.WindowWidth = 2048, 4096
    noise = np.random.default_rng(number).integers(0, 4096, (size, size), dtype=np.uint16)
    image.PixelData = noise.tobytes()
    for name, value in (tags or {}).items():
        setattr(image, name, value)
    image.save_as(path, enforce_file_format=True)
    return path


def make_series(folder: Path, count: int) -> list[Path]:
    """Write the images of one new series."""
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid()
    return [make_image(folder / f"{n}.dcm", series=series, number=n) for n in range(count)]


PROPOSALS = {
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}
"""What makes storescu propose a transfer syntax that is not one of its usual ones."""


def storescu(port: int, *arguments: str | Path, called: str = "MEDIMG") -> "subprocess.CompletedProcess[str]":
    """Send files with dcmtk, each in its own transfer syntax."""
    return subprocess.run(
        ["storescu", "-v", "-aec", called, "127.0.0.1", str(port), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def real_images(folder: Path) -> list[tuple[str, Path]]:
    """Name the real DICOM images that storescu can send, each with its transfer syntax."""
    found = []
    for file in sorted((folder / "dicom").rglob("*.dcm")):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        syntax = str(header.file_meta.TransferSyntaxUID)
        # Structured reports are not images; storescu proposes no retired JPEG.
        if header.Modality != "SR" and syntax[-2:] not in ("53", "55", "57"):
            found.append((syntax, file))
    return found


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def series_of(path: Path) -> str:
    """Give the key of an image's series."""
    return read_file_arrival(path, 2**28).series_key


def kept_file(node: Node, image: Path) -> Path:
    """Name the file of an image that was sent."""
    return node.store.image_path(series_of(image), uid_of(image))


def certificate(folder: Path, name: str, signed_by: str | None = None, days: int = 2) -> Tls:
    """Make a key and a certificate with openssl."""
    key, request, pem = (folder / f"{name}.{part}" for part in ("key", "csr", "pem"))
    make = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-subj", f"/CN={name}"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1"]
    if signed_by is None:
        steps = [[*make, "-x509", "-out", pem, "-days", str(days)]]
    else:
        authority = ["-CA", folder / f"{signed_by}.pem", "-CAkey", folder / f"{signed_by}.key"]
        sign = ["openssl", "x509", "-req", "-in", request, *authority, "-CAcreateserial", "-out", pem]
        sign += ["-copy_extensions", "copy"]
        steps = [[*make, "-out", request], [*sign, "-days", str(days)]]
    for step in steps:
        subprocess.run([str(word) for word in step], check=True, capture_output=True)
    return Tls(str(pem), str(key), str(folder / f"{signed_by or name}.pem"))


class Orthanc:
    """An archive: C-STORE in, REST beside it; it knows a node at `node_port`."""

    def __init__(self, folder: Path, node_port: int) -> None:
        self.node_port, self.port, self._http = node_port, free_port(), free_port()
        self._folder = folder
        configuration = {
            "StorageDirectory": str(folder / "orthanc"),
            "IndexDirectory": str(folder / "orthanc"),
            "DicomAet": "ORTHANC",
            "DicomPort": self.port,
            "HttpPort": self._http,
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {"medimg": ["MEDIMG", "127.0.0.1", node_port]},
            "Plugins": [],
        }
        path = folder / "orthanc.json"
        path.write_text(json.dumps(configuration))
        program = shutil.which("Orthanc") or "Orthanc"
        with (folder / "orthanc.log").open("w") as log:
            self._process = subprocess.Popen([program, path], stdout=log, stderr=log)

    def raw(self, path: str, body: bytes | None = None) -> bytes:
        """Call the REST interface."""
        address = f"http://127.0.0.1:{self._http}{path}"
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=20) as answer:
            return bytes(answer.read())

    def get(self, path: str, body: bytes | None = None) -> Any:
        """Call it where the answer is JSON."""
        return json.loads(self.raw(path, body))

    def is_up(self) -> bool:
        try:
            return bool(self.get("/system"))
        except OSError:
            return False

    def find(self, modality: str) -> list[str]:
        """Name the instances of a modality."""
        query = {"Level": "Instance", "Query": {"Modality": modality}}
        return list(self.get("/tools/find", json.dumps(query).encode()))

    def lookup(self, uid: str) -> list[Any]:
        """Find an instance by its UID."""
        return list(self.get("/tools/lookup", uid.encode()))

    def file(self, instance: str) -> Path:
        """Fetch an instance."""
        path = self._folder / f"{instance}.dcm"
        path.write_bytes(self.raw(f"/instances/{instance}/file"))
        return path

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
