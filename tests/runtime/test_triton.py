"""The client of Triton against MLServer, a server of the same protocol that others wrote."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from medimg.runtime.backends.with_triton import IDENTITY, TritonBackend, served_name
from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import BackendError, ModelError, UsageError

HERE = Path(__file__).parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]
TENSORS = {
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
}


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The node's tests are no package that this could import from.
    node = runpy.run_path(str(HERE / "node" / "tiny_model.py"))
    made: Path = node["write_tiny_model"](tmp_path_factory.mktemp("served") / "tiny.int8.onnx")
    return made


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """MLServer with the model, and with one that says it takes other images; its addresses by protocol."""
    folder = tmp_path_factory.mktemp("server")
    http, grpc, metrics = free_ports(3)
    settings = {"debug": False, "host": "127.0.0.1", "parallel_workers": 0, "http_port": http}
    settings |= {"grpc_port": grpc, "metrics_port": metrics, "metrics_endpoint": None}
    (folder / "settings.json").write_text(json.dumps(settings))
    other = json.loads(json.dumps(TENSORS).replace("32, 32", "64, 64"))
    for name, tensors in ((served_name(model), TENSORS), ("other", other), ("silent", {})):
        place = folder / name
        place.mkdir()
        described = {"name": name, "implementation": "kserve_model.OnnxModel", **tensors}
        described["parameters"] = {"uri": str(model)}
        (place / "model-settings.json").write_text(json.dumps(described))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    with (
        (folder / "log.txt").open("w") as log,
        subprocess.Popen(
            [Path(sys.executable).with_name("mlserver"), "start", str(folder)],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=folder,
        ) as running,
    ):
        try:
            wait_until_ready(f"http://127.0.0.1:{http}/v2/models/silent/ready", running, folder / "log.txt")
            yield {"http": f"http://127.0.0.1:{http}", "grpc": f"grpc://127.0.0.1:{grpc}"}
        finally:
            running.terminate()


def wait_until_ready(url: str, running: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        assert running.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = generator.integers(0, 12 * (number + 1), (40, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.png"), pixels)
    (folder / "bad.png").write_text("no picture")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_answers_as_this_machine_does(
    protocol: str, server: dict[str, str], model: Path, pictures: Path, run: Run
) -> None:
    command = ("medimg-run", "predict", model, pictures, "--format", "jsonl")
    here = [json.loads(line) for line in run(*command).stdout.splitlines()]
    done = run(*command, "--triton", server[protocol])
    assert done.returncode == 1, done.stderr
    assert f"triton on {server[protocol]}, fp32" in done.stderr
    assert "does not tell which file it runs" in done.stderr
    there = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in there] == [line["path"] for line in here]
    assert [line.get("error") for line in there] == [line.get("error") for line in here]
    assert sum("top_k" in line for line in there) == 20
    for one, other in zip(here, there, strict=True):
        best = zip(one.get("top_k", ()), other.get("top_k", ()), strict=True)
        assert all(a["index"] == b["index"] and abs(a["score"] - b["score"]) < 1e-6 for a, b in best)


@pytest.mark.parametrize(
    ("suffix", "error", "reason"),
    [
        ("/gone", BackendError, "gone"),
        ("/other", ModelError, r"image is UINT8 \[64, 64, 3\] there, and UINT8 \[32, 32, 3\] in the file"),
    ],
)
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_another_model_is_refused(
    protocol: str, suffix: str, error: type[Exception], reason: str, server: dict[str, str], model: Path
) -> None:
    with pytest.raises(error, match=reason):
        Classifier(model, server=server[protocol] + suffix)


def test_a_server_may_keep_its_tensors_to_itself(server: dict[str, str], model: Path, pictures: Path) -> None:
    with Classifier(model, server=server["grpc"] + "/silent") as classifier:
        assert next(classifier.predict([pictures / "00.png"])).error is None


@pytest.mark.parametrize("url", ["host:8000", "ftp://host/x", "http://", "/v2"])
def test_a_url_needs_a_protocol_and_a_host(url: str, model: Path) -> None:
    with pytest.raises(UsageError, match=r"a URL such as http://host:8000"):
        Classifier(model, server=url)


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_is_not_there_is_one_message(
    protocol: str, model: Path, pictures: Path, run: Run
) -> None:
    (port,) = free_ports(1)
    done = run("medimg-run", "predict", model, pictures, "--triton", f"{protocol}://127.0.0.1:{port}")
    assert done.returncode == 2
    assert f"error: {protocol}://127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_back_end_here_and_a_server_do_not_go_together(model: Path) -> None:
    with pytest.raises(UsageError, match="a server chooses its own back end"):
        Classifier(model, server="http://127.0.0.1:1", backend="openvino")


@pytest.mark.parametrize(("there", "accepted"), [("own", True), ("0" * 64, False)])
def test_a_server_that_tells_its_file_must_run_this_one(
    there: str, accepted: bool, server: dict[str, str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLServer has no configurations; this is Triton's answer, as its extension of the protocol has it.
    with Classifier(model) as classifier:
        sha256 = classifier.spec.artefact_sha256
    asked = TritonBackend._fetch
    config = {"max_batch_size": 4, "parameters": {IDENTITY: {"string_value": sha256 if accepted else there}}}

    def fetch(self: TritonBackend, method: str, *arguments: str) -> dict[str, Any]:
        if method == "get_model_config":
            return {"config": config}
        found = asked(self, method, *arguments)
        return {**found, "extensions": ["model_configuration"]} if method == "get_server_metadata" else found

    monkeypatch.setattr(TritonBackend, "_fetch", fetch)
    if not accepted:
        with pytest.raises(ModelError, match="runs another file than this one"):
            Classifier(model, server=server["grpc"])
        return
    with Classifier(model, server=server["grpc"]) as classifier:
        assert classifier.backend.batch_size == 4
        assert classifier.notes == ()
