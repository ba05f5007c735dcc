"""The node as a process: its commands, signals, watchdog, status page, and what power loss leaves."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from medimg.runtime.errors import CheckFailedError, UsageError
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.node import service
from medimg.runtime.node.config import IMAGE_STORAGE, read_config
from medimg.runtime.node.service import Node
from medimg.runtime.node.systemd import short_address

from .conftest import (
    ROOT,
    Run,
    Start,
    free_port,
    make_config,
    make_image,
    make_series,
    storescu,
    uid_of,
    wait_for,
)
from .tiny_model import write_tiny_model

pytestmark = pytest.mark.long

CONFIG = """
folder = "state"
address = "127.0.0.1"
port = {port}
status_port = {status_port}
[receive]
reserve_mb = {reserve_mb}
[inference]
series_idle_s = 0.3
"""


class Running:
    """A node in a process of its own, with a socket where systemd's would be.

    Args:
        folder: for configuration and state.
        model: an artefact.
        prefix: a command that ends by becoming another.
    """

    def __init__(self, folder: Path, model: Path, prefix: Sequence[str | Path] = ()) -> None:
        self.folder, self.port, self.status_port = folder, free_port(), free_port()
        self._prefix = prefix
        config = folder / "node.toml"
        config.write_text(
            CONFIG.format(port=self.port, status_port=self.status_port, reserve_mb=0 if prefix else 1)
        )
        (folder / "notify").unlink(missing_ok=True)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with short_address(str(folder / "notify")) as address:
            self._notices.bind(address)
        self._notices.settimeout(90)
        self.log = folder / "node.log"
        program = str(Path(sys.executable).with_name("medimg-run"))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*prefix, program, "listen", str(model), "--config", str(config), "--threads", "1"],
                env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
                stderr=log,
            )
        self.expect("READY=1")

    @property
    def state(self) -> Path:
        """Its folder of state, as it sees it itself."""
        state = self.folder / "state"
        return Path(f"/proc/{self.process.pid}/root{state}") if self._prefix else state

    def expect(self, message: str) -> None:
        """Wait for a notice to systemd."""
        while not self._notices.recv(1024).decode().startswith(message):
            pass

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def lines(self, stream: str) -> list[dict[str, object]]:
        path = self.state / stream / "000000.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        self._notices.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def running(folder: Path, model: Path, prefix: Sequence[str | Path] = ()) -> Iterator[Running]:
    node = Running(folder, model, prefix)
    try:
        yield node
    finally:
        node.close()


def test_a_life(tiny_model: Path, tmp_path: Path) -> None:
    """Start, watchdog, images, a new model, a refused one, the way back, status, and SIGTERM under load."""
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model.read_bytes())
    with running(tmp_path, model) as node:
        node.expect("WATCHDOG=1")
        assert node.get("/health") == "ok\n"
        first = file_sha256(model)
        assert storescu(node.port, make_image(tmp_path / "a.dcm")).returncode == 0
        wait_for(lambda: len(node.lines("results")) == 2)

        write_tiny_model(model, seed=1)
        second = file_sha256(model)
        node.process.send_signal(signal.SIGHUP)
        node.expect("RELOADING=1")
        node.expect("READY=1")
        assert storescu(node.port, make_image(tmp_path / "b.dcm")).returncode == 0
        wait_for(lambda: len(node.lines("results")) == 4)

        model.write_bytes(model.read_bytes()[:-1])
        node.process.send_signal(signal.SIGHUP)
        node.expect("READY=1")
        node.process.send_signal(signal.SIGUSR2)
        wait_for(lambda: any(line["event"] == "rollback" for line in node.lines("audit")))
        assert storescu(node.port, make_image(tmp_path / "c.dcm")).returncode == 0
        wait_for(lambda: len(node.lines("results")) == 6)
        models = [line["model_sha256"] for line in node.lines("results") if line["kind"] == "instance"]
        assert models == [first, second, first]
        events = [line["event"] for line in node.lines("audit")]
        assert "model refused" in events

        assert 'medimg_answered_total{outcome="classified"} 3' in node.get("/metrics")
        images = make_series(tmp_path / "series", 16)
        sender = subprocess.Popen(["storescu", "-aec", "MEDIMG", "127.0.0.1", str(node.port), *images])
        wait_for(lambda: len(node.lines("results")) >= 10)
        node.process.terminate()
        node.expect("STOPPING=1")
        assert node.process.wait(timeout=90) == 0
        assert sender.wait() == 0
        answered = {line.get("sop_instance_uid") for line in node.lines("results")}
        assert {uid_of(image) for image in images} <= answered
        assert node.lines("audit")[-1]["event"] == "stopped"
        logged = [json.loads(line) for line in node.log.read_text().splitlines()]
        assert [line["message"] for line in logged if line["level"] == "INFO"][-1] == "stopped"
        assert any("the model stays" in line["message"] for line in logged if line["level"] == "ERROR")
        assert not any("traceback" in line for line in logged)


def test_the_status_page_in_a_browser(start: Start, tmp_path: Path) -> None:
    port = free_port()
    node = start(make_config(tmp_path, status_port=port))
    images = [
        make_image(tmp_path / "a.dcm"),
        make_image(tmp_path / "bad.dcm", tags={"PixelData": b"<script>"}),
    ]
    storescu(node.receiver.port, *images)
    wait_for(lambda: node.counters.total("answered") == 2)
    profile = tmp_path / "profile"
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    options += " --disable-background-networking --disable-component-update --dump-dom"
    command = ["chromium", *options.split(), f"--user-data-dir={profile}", f"http://127.0.0.1:{port}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    text = re.sub("<[^>]*>", " ", done.stdout)
    assert "MEDIMG: DICOM node" in text
    assert "Not for diagnostic use" in text
    assert uid_of(images[0]) in text
    assert "unreadable" in text
    assert "tiny.onnx" in text
    assert "&lt;b&gt;nothing else&lt;/b&gt;" in done.stdout


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [("/", None, 200), ("/health", None, 200), ("/else", None, 404), ("/", "rebound.example:80", 403)],
)
def test_status_paths(start: Start, tmp_path: Path, path: str, host: str | None, status: int) -> None:
    port = free_port()
    start(make_config(tmp_path, status_port=port))
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host} if host else {})
    if status == 200:
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == status
    else:
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=10)
        assert raised.value.code == status
        raised.value.close()


def test_a_hanging_thread_is_unhealthy(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = start()
    assert node.problem() is None
    monkeypatch.setattr("medimg.runtime.node.service.STALLED_S", 0.5)
    with node.models.in_use():
        storescu(node.receiver.port, make_image(tmp_path / "a.dcm"))
        assert wait_for(node.problem) == "no sign of life from: classify"
    wait_for(lambda: node.problem() is None)


def test_a_database_damaged_under_way_ends_the_node_with_a_message(tiny_model: Path, tmp_path: Path) -> None:
    with running(tmp_path, tiny_model) as node:
        assert storescu(node.port, make_image(tmp_path / "a.dcm")).returncode == 0
        wait_for(lambda: len(node.lines("results")) == 2)
        for path in (tmp_path / "state").glob("node.db*"):
            with path.open("r+b") as file:
                file.write(b"\xff" * path.stat().st_size)
        storescu(node.port, make_image(tmp_path / "b.dcm"))
        assert node.process.wait(timeout=90) == 1
        assert "Traceback" not in node.log.read_text()
        assert node.log.read_text().splitlines()[-1].startswith("error: ")
    with running(tmp_path, tiny_model) as node:
        assert node.get("/health") == "ok\n"
        assert list((tmp_path / "state").glob("damaged-*"))


def test_a_damaged_node_ends_whatever_its_threads_wait_for(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node, ended = start(), threading.Event()
    monkeypatch.setattr(service, "_LAST_RESORT_S", 0.05)
    monkeypatch.setattr(os, "_exit", lambda status: ended.set() if status == 1 else None)
    node._end_at_last(sqlite3.DatabaseError("torn"))
    assert ended.wait(20)
    assert "error: the node ended: torn: start it again" in capsys.readouterr().err


def test_two_nodes_do_not_share_a_folder(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    start()
    with pytest.raises(CheckFailedError, match="another node works there"):
        Node(tiny_model, make_config(tmp_path), 1)


SMALL_DISK = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=16m none "$0" && exec "$@"')
"""Ends with the folder and the command; both need no root."""


@pytest.mark.skipif(
    subprocess.run([*SMALL_DISK[:2], "true"], check=False, capture_output=True).returncode != 0,
    reason="no user namespaces here",
)
def test_a_file_system_that_is_full_refuses_and_recovers(tiny_model: Path, tmp_path: Path) -> None:
    """Without a reserve, so that file, database and lines really meet its end."""
    state = tmp_path / "state"
    state.mkdir()
    images = [make_image(tmp_path / f"{n}.dcm", number=n, size=512) for n in range(12)]
    uids = {uid_of(image) for image in images}
    with running(tmp_path, tiny_model, [*SMALL_DISK, state]) as node:
        ballast = node.state / "ballast"
        ballast.write_bytes(bytes(12_000_000))
        sent = storescu(node.port, "-nh", *images)
        acknowledged = sent.stderr.count("(Success)")
        assert 0 < acknowledged < len(images)
        assert sent.stderr.count("(Refused: OutOfResources)") == len(images) - acknowledged
        with pytest.raises(urllib.error.HTTPError, match="503") as refusing:
            node.get("/health")
        assert re.search("every image is refused|could not be stored", refusing.value.read().decode())
        refusing.value.close()
        ballast.unlink()
        again = storescu(node.port, *images)
        assert again.stderr.count("(Success)") == len(images), again.stderr
        assert node.get("/health") == "ok\n"
        answered = wait_for(lambda: len(lines := answers(node)) == len(images) and lines)
        assert sorted(answered) == sorted(uids)
        node.process.terminate()
        assert node.process.wait(timeout=90) == 0


def answers(node: Running) -> list[object]:
    """UIDs of the images that have a line."""
    return [line["sop_instance_uid"] for line in node.lines("results") if line["kind"] == "instance"]


def test_a_full_disk_loses_nothing(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing itself fails, although the reserve seemed to be there."""
    import errno

    node = start()
    image = make_image(tmp_path / "a.dcm")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as filled:
        filled.setattr("medimg.runtime.node.files.os.fsync", full)
        done = storescu(node.receiver.port, image)
        assert "Refused: OutOfResources" in done.stderr
        assert not list(node.store.images.iterdir())
    assert storescu(node.receiver.port, image).returncode == 0
    wait_for(lambda: node.counters.total("answered") == 1)
    wait_for(lambda: not node.store.unreported_series())


@pytest.mark.parametrize("kills", [1, pytest.param(200, marks=pytest.mark.soak)])
def test_power_loss_at_random_moments(tiny_model: Path, tmp_path: Path, kills: int) -> None:
    script, report = ROOT / "benchmarks" / "power_loss.py", tmp_path / "report.json"
    image = make_image(tmp_path / "image.dcm")
    done = subprocess.run(
        [
            *(sys.executable, script, "--kills", str(kills), "--model", tiny_model, "--image", image),
            *("--json", report, "--senders", "2"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert (result["problems"], result["exit_status"]) == ([], 0)
    assert result["acknowledged"] > 5


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_kills_under_load_with_destinations_that_misbehave(
    tiny_model: Path, tmp_path: Path, kills: int
) -> None:
    script, report = ROOT / "benchmarks" / "node_kills.py", tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, script, "--kills", str(kills), "--model", tiny_model, "--json", report],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert (result["problems"], result["exit_status"]) == ([], 0)
    assert min(result["images_acknowledged"], result["refused_by_the_archive"], result["redirected"]) > 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("folder =", "not a readable TOML file"),
        ("", "folder"),
        ('folder = "x"\nport = "11112"', "expected int"),
        ('folder = "x"\nport = 9112', "both 9112"),
        ('folder = "x"\ncolour = 1', "unknown field 'colour'"),
        ('folder = "x"\nae_title = "SEVENTEEN LETTERS"', "AE title"),
        ('folder = "x"\n[[peers]]\nae_title = "A"\naddresses = ["10.0.0.0/99"]', "no IP address"),
        ('folder = "x"\n[receive]\nsop_classes = ["../x"]', "is no UID"),
        ('folder = "x"\n[inference]\ncombine = "median"', "not one of mean, max"),
        ('folder = "x"\n[[deliver.http]]\nname = "a"\nurl = "file:///etc/passwd"', "no http"),
    ],
)
def test_a_wrong_configuration_is_one_message(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint) as raised:
        read_config(path)
    assert str(path) in str(raised.value)


def test_paths_in_a_configuration_begin_at_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('folder = "state"\n[audit]\nkey = "/etc/audit.key"')
    config = read_config(path)
    assert config.folder == str(tmp_path / "state")
    assert config.audit.key == "/etc/audit.key"
    assert config.receive.sop_classes == IMAGE_STORAGE


def test_commands(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    from .test_audit import make_keys

    private, public = make_keys(tmp_path)
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "tiny.onnx").write_bytes(tiny_model.read_bytes())
    assert run("medimg-run", "bundle", "sign", folder, "--key", private).returncode == 0
    verified = run("medimg-run", "bundle", "verify", folder, "--key", public)
    assert verified.stdout.startswith("1 files are as they were signed; tiny.onnx is run, version ")
    (folder / "more").touch()
    changed = run("medimg-run", "bundle", "verify", folder, "--key", public)
    assert (changed.returncode, changed.stderr.count("\n")) == (1, 1)
    assert run("medimg-run", "audit", "verify", tmp_path / "absent").returncode == 2
    listed = run("medimg-run", "sbom", tiny_model)
    assert json.loads(listed.stdout)["bomFormat"] == "CycloneDX"
    (tmp_path / "node.toml").write_text('folder = "state"\npublic_key = "audit.pub"')
    refused = run("medimg-run", "listen", folder, "--config", tmp_path / "node.toml")
    assert refused.returncode == 2
    assert "more was added or removed after signing" in refused.stderr
