"""What an operator meets: expired certificates, `--check`, SIGHUP, health and who may read the status."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from medimg.runtime.errors import ModelError, UsageError
from medimg.runtime.node.bundle import sign_bundle
from medimg.runtime.node.certificates import require_valid
from medimg.runtime.node.config import (
    AuditRule,
    Delivery,
    DicomDestination,
    HttpDestination,
    Inference,
    LabelCode,
    NodeConfig,
    Peer,
    Reception,
    Retention,
    Tls,
    merge_reloaded,
    read_config,
)
from medimg.runtime.node.models import Models
from medimg.runtime.node.precheck import precheck
from medimg.runtime.node.store import Store
from medimg.runtime.node.systemd import notify

from .conftest import Run, Start, certificate, free_port, make_config, make_image, storescu, wait_for
from .test_audit import make_keys
from .test_service import running
from .tiny_model import write_tiny_model

pytestmark = pytest.mark.long


def make_certificate(path: Path, begins_in: timedelta, ends_in: timedelta) -> None:
    """Write a self-signed certificate, and its key beside it, with any validity."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, path.stem)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    lasting = builder.not_valid_before(now + begins_in).not_valid_after(now + ends_in)
    path.write_bytes(lasting.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    kind = serialization.PrivateFormat.PKCS8
    path.with_suffix(".key").write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, plain))


def days(number: float) -> timedelta:
    return timedelta(days=number)


@pytest.mark.parametrize(
    ("begins", "ends", "complaint"),
    [(-9, -2, "expired on"), (2, 9, "does not hold before"), (-9, 2, None)],
)
def test_a_certificate_that_does_not_hold_is_refused_at_start(
    start: Start, tmp_path: Path, begins: int, ends: int, complaint: str | None
) -> None:
    make_certificate(tmp_path / "node.pem", days(begins), days(ends))
    tls = Tls(*(str(tmp_path / name) for name in ("node.pem", "node.key", "node.pem")))
    config = make_config(tmp_path, receive=Reception(reserve_mb=1, tls=tls))
    if complaint is None:
        assert start(config).snapshot().gauges["certificate_days_left"] == pytest.approx(2, abs=0.01)
        return
    with pytest.raises(UsageError, match=complaint) as raised:
        start(config)
    assert "node.pem" in str(raised.value)


def test_one_authority_of_several_may_have_expired(tmp_path: Path) -> None:
    make_certificate(tmp_path / "old.pem", days(-9), days(-2))
    make_certificate(tmp_path / "new.pem", days(-2), days(99))
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "old.pem").read_bytes() + (tmp_path / "new.pem").read_bytes())
    require_valid(both, any_is_enough=True)
    with pytest.raises(UsageError, match="expired"):
        require_valid(tmp_path / "old.pem", any_is_enough=True)
    with pytest.raises(UsageError, match="expired"):
        require_valid(both)


def test_a_certificate_that_expires_under_way_is_unhealthy(start: Start, tmp_path: Path) -> None:
    node = start()
    make_certificate(tmp_path / "node.pem", days(-9), days(-2))
    from medimg.runtime.node.certificates import read_validities

    node._certificate = read_validities(tmp_path / "node.pem")[0]
    assert "expired on" in str(node.snapshot().problem)
    # systemd would end a node that is not well; this one can only wait for its new certificate.
    assert node.problem() is None


def test_health_says_why_everything_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    assert node.snapshot().problem is None
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as full:
        full.setattr("medimg.runtime.node.service.shutil.disk_usage", lambda _: usage)
        said = node.snapshot().problem
        assert said == "every image is refused: 0 MB are free on the disk, and receive.reserve_mb is 1"
        assert node.problem() is None
        assert node.snapshot().gauges["disk_free_bytes"] == 1000
    assert node.snapshot().problem is None


def test_the_age_of_what_waits_is_a_metric(start: Start, tmp_path: Path) -> None:
    node = start()
    assert node.snapshot().gauges["oldest_waiting_seconds"] == 0
    with node.models.in_use():
        storescu(node.receiver.port, make_image(tmp_path / "a.dcm"))
        wait_for(lambda: node.snapshot().gauges["oldest_waiting_seconds"] > 0.2)
    wait_for(lambda: node.snapshot().gauges["oldest_waiting_seconds"] == 0)


def test_beyond_this_machine_the_status_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="status_token"):
        NodeConfig("state", status_address="0.0.0.0")
    with pytest.raises(ModelError, match="no IP address"):
        NodeConfig("state", status_address="status.example")
    (tmp_path / "node.toml").write_text(
        'folder = "s"\nstatus_address = "0.0.0.0"\nstatus_token = "status.token"'
    )
    assert read_config(tmp_path / "node.toml").status_token == str(tmp_path / "status.token")


@pytest.mark.parametrize("token", ["", "short", "with a space in the middle", "ünïcode-ünïcode-ünïcode"])
def test_a_token_that_is_none_is_refused(start: Start, tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(UsageError, match="token"):
        start(make_config(tmp_path, status_port=free_port(), status_token=str(tmp_path / "token")))


def ask(port: int, token: str | None, path: str = "/metrics", host: str | None = None) -> int:
    """Ask for the status; give the answer's code."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if host:
        headers["Host"] = host
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize("path", ["/", "/health", "/metrics"])
def test_only_who_has_the_token_reads_the_status(start: Start, tmp_path: Path, path: str) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    port = free_port()
    changes = {"status_address": "0.0.0.0", "status_token": str(tmp_path / "token")}
    start(make_config(tmp_path, status_port=port, **changes))
    assert ask(port, "0123456789abcdef", path, "node.example:9112") == 200
    for wrong in (None, "0123456789abcde", "0123456789abcdef0", "\xff" * 16):
        assert ask(port, wrong, path) == 401


def test_a_crowd_of_readers_is_bounded(start: Start, tmp_path: Path) -> None:
    port = free_port()
    start(make_config(tmp_path, status_port=port))
    held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(40)]
    wait_for(lambda: [is_kept(connection) for connection in held].count(False) >= 20)
    for connection in held:
        connection.close()
    wait_for(lambda: ask(port, None) == 200)


def is_kept(connection: socket.socket) -> bool:
    """Whether the other side leaves a connection open."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


CONFIG = """
folder = "state"
address = "127.0.0.1"
port = {port}
status_port = {status_port}
[[peers]]
ae_title = "{title}"
[receive]
reserve_mb = {reserve_mb}
[receive.tls]
certificate = "node.pem"
key = "node.key"
authorities = "ca.pem"
"""


def test_sighup_reads_configuration_and_certificates_anew(tiny_model: Path, tmp_path: Path) -> None:
    certificate(tmp_path, "ca")
    certificate(tmp_path, "node", "ca")
    client = certificate(tmp_path, "client", "ca")
    image = make_image(tmp_path / "a.dcm")
    options = ("+tls", client.key, client.certificate, "+cf", client.authorities)

    def write(node_port: int, status_port: int, title: str, reserve_mb: str = "1") -> None:
        (tmp_path / "node.toml").write_text(
            CONFIG.format(port=node_port, status_port=status_port, title=title, reserve_mb=reserve_mb)
        )

    with running(tmp_path, tiny_model) as node:

        def reload() -> None:
            node.process.send_signal(signal.SIGHUP)
            node.expect("RELOADING=1")
            node.expect("READY=1")

        def sends(title: str, *more: str) -> bool:
            return storescu(node.port, "-aet", title, *more, image).returncode == 0

        assert sends("CT1")
        write(node.port, node.status_port, "CT2")
        reload()
        assert not sends("CT2")
        assert not sends("CT1", *options)
        assert sends("CT2", *options)
        assert 1.9 < figure(node.get("/metrics"), "certificate_days_left") <= 2
        certificate(tmp_path, "node", "ca", days=300)
        reload()
        assert 299 < figure(node.get("/metrics"), "certificate_days_left") <= 300
        # What is wrong changes nothing.
        write(node.port, node.status_port, "CT3", '"much"')
        reload()
        assert sends("CT2", *options)
        # What only a start can change is told.
        write(free_port(), node.status_port, "CT4")
        reload()
        assert sends("CT4", *options)
        events = [line["event"] for line in node.lines("audit")]
        assert events.count("configuration read") == 3
        assert events.count("configuration refused") == 1
        logged = [json.loads(line)["message"] for line in node.log.read_text().splitlines()]
        assert "changed, but used from the next start on: port" in logged
        node.process.terminate()
        assert node.process.wait(timeout=90) == 0


def figure(metrics: str, name: str) -> float:
    (line,) = (line for line in metrics.splitlines() if line.startswith(f"medimg_{name} "))
    return float(line.split()[1])


def test_every_field_is_either_fixed_or_taken_over() -> None:
    old = NodeConfig("state")
    destination = DicomDestination("pacs", "PACS", "127.0.0.1", 104)
    new = NodeConfig(
        "other",
        ae_title="OTHER",
        address="127.0.0.1",
        port=1,
        public_key="key",
        status_port=2,
        status_address="::1",
        status_token="token",
        drain_s=1.0,
        peers=(Peer("A"),),
        receive=Reception(max_associations=1),
        inference=Inference(max_tries=1),
        codes={"a": LabelCode("1", "2", "3")},
        deliver=Delivery((destination,), (HttpDestination("a", "http://a"),)),
        audit=AuditRule(every_s=1.0),
        retention=Retention(images_h=1.0),
    )
    merged, later = merge_reloaded(old, new)
    fields = {name: getattr(merged, name) for name in merged.__dataclass_fields__}
    assert {name for name, value in fields.items() if value == getattr(old, name)} == set(later)
    assert all(fields[name] == getattr(new, name) for name in fields if name not in later)


def test_check_says_what_is_well_and_what_is_not(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    make_certificate(tmp_path / "node.pem", days(-9), days(-2))
    text = CONFIG.format(port=free_port(), status_port=0, title="CT1", reserve_mb=1)
    (tmp_path / "node.toml").write_text(text.replace("ca.pem", "node.pem"))
    done = run("medimg-run", "listen", "--check", tiny_model, "--config", tmp_path / "node.toml")
    assert done.returncode == 1
    assert "FAILED  certificates" in done.stdout
    assert "ok      model" in done.stdout
    assert done.stderr == "error: the node would not work: certificates\n"
    assert not (tmp_path / "state").exists()


def test_check_beside_a_running_node(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    node = start()
    config = replace(node._config, port=node.receiver.port)
    found = {item.name: item for item in precheck(tiny_model, config, 1)}
    assert not [item for item in found.values() if item.is_well is False]
    assert found["port"].is_well is None
    wrong = replace(
        config,
        folder="/proc/state",
        audit=AuditRule("absent.key"),
        status_token="absent.token",
        deliver=Delivery((DicomDestination("pacs", "PACS", "127.0.0.1", 104, tls=True),)),
    )
    failed = {item.name for item in precheck(tmp_path / "absent.onnx", wrong, 1) if item.is_well is False}
    assert failed == {"model", "folder", "certificates", "audit key", "status"}


def test_an_older_bundle_is_refused(start: Start, tmp_path: Path) -> None:
    """At start and at reload, although its signature is right; a rollback under way is the operator's."""
    private, public = make_keys(tmp_path, "release")
    folder = tmp_path / "bundle"
    folder.mkdir()
    config = make_config(tmp_path, public_key=str(public))

    def sign(seed: int, version: int | None) -> None:
        write_tiny_model(folder / "tiny.onnx", seed=seed)
        sign_bundle(folder, private, version=version)

    sign(0, 5)
    node = start(config, model=folder)
    sign(1, 4)
    assert not node.models.reload()
    sign(1, 6)
    assert node.models.reload()
    assert node.models.rollback()
    node.stop()
    sign(0, 5)
    with (
        contextlib.closing(Store(tmp_path / "state")) as store,
        pytest.raises(ModelError, match="5 is older than 6, which has run here: to go back to it, sign it"),
    ):
        Models(folder, public, store, 1)
    sign(0, None)
    assert start(config, model=folder).models.current.sha256


def test_a_bundle_of_an_older_release_is_version_0(tmp_path: Path) -> None:
    from medimg.runtime.node.bundle import MANIFEST, AcceptedVersions, Verified, version_of

    private, _ = make_keys(tmp_path, "release")
    write_tiny_model(tmp_path / "tiny.onnx")
    manifest = json.loads(sign_bundle(tmp_path, private).read_text())
    assert version_of(manifest) > 1_700_000_000
    del manifest["version"]
    assert version_of(manifest) == 0
    versions = AcceptedVersions(tmp_path / "bundles.json")
    old = Verified(tmp_path / "tiny.onnx", "sha256", 0)
    versions.require_not_older(old)
    versions.accept(replace(old, version=3))
    versions.require_not_older(Verified(tmp_path / "other.onnx", "sha256", 1))
    with pytest.raises(ModelError, match="older"):
        versions.require_not_older(old)
    (tmp_path / "bundles.json").write_text("[]")
    with pytest.raises(ModelError, match=r"bundles\.json"):
        versions.require_not_older(old)
    assert (tmp_path / MANIFEST).exists()


def test_notices_reach_a_socket_whose_path_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("notify")
        listening.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        notify("READY=1")
        assert listening.recv(100) == b"READY=1"


HEEDS_CTRL_C = "import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
"""A process whose tests run in the background ignores it, and so would its children."""


@pytest.mark.parametrize("delay_s", [0.4, 0.7, 1.0, 1.5])
def test_ctrl_c_in_the_first_moments(tiny_model: Path, tmp_path: Path, delay_s: float) -> None:
    (tmp_path / "node.toml").write_text('folder = "state"\nport = 0\nstatus_port = 0')
    program = Path(sys.executable).with_name("medimg-run")
    command = [program, "listen", tiny_model, "--config", tmp_path / "node.toml"]
    with subprocess.Popen(
        [sys.executable, "-c", HEEDS_CTRL_C, *map(str, command)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            process.wait(timeout=delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (130, 1, -signal.SIGINT, 0)
    # On a busy machine Python itself may still be starting, or about to learn what Ctrl-C shall do: it has
    # its own way to say it.
    modules = {*re.findall(r"medimg/runtime/(\w+)", said)}
    assert "Traceback" not in said or modules <= {"__init__", "__main__", "interrupt"}, said
