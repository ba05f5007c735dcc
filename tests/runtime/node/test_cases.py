"""The cases of public reports: each folder's own scripts and files, with what is right."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medimg.runtime.errors import UsageError
from medimg.runtime.node.config import NodeConfig, read_config
from medimg.runtime.node.service import Node

from .conftest import Start, free_port, make_config, make_image, make_series, storescu, uid_of, wait_for

pytestmark = pytest.mark.real
ELSEWHERE = {
    "accession-and-issuer": "test_patients.py::test_cases_of_headers",
    "charset-ir58": "test_patients.py::test_cases_of_headers",
    "one-series-two-patients": "test_patients.py::test_case_of_two_patients_in_one_series",
    "database-growth": "benchmarks/node_year.py",
}
"""Folders whose values are held there."""
HERE = {
    *("archive-says-duplicate", "destination-removed", "expired-certificate", "http-redirect"),
    *("implicit-only-archive", "many-frames", "poison-report", "slow-sender", "uid-two-contents"),
}


@pytest.fixture
def cases(real_data: Path) -> Path:
    return real_data.parent / "cases" / "node"


def test_every_case_has_its_test(cases: Path) -> None:
    assert {entry.name for entry in cases.iterdir() if entry.is_dir()} == {*ELSEWHERE, *HERE}


@contextlib.contextmanager
def script(source: Path, folder: Path, *changes: tuple[str, str]) -> Iterator[None]:
    """Run a case's server in a folder, with other ports."""
    text = source.read_text()
    for old, new in changes:
        text = text.replace(old, new)
    (folder / source.name).write_text(text)
    with subprocess.Popen([sys.executable, source.name], cwd=folder) as server:
        try:
            yield
        finally:
            server.kill()


def config_of(case: Path, folder: Path, **ports: int) -> NodeConfig:
    """Read a case's configuration, on free ports and with a state of its own."""
    text = case.read_text()
    for port in (11122, 9122):
        text = re.sub(rf"= {port}\b", "= 0", text)
    for old, new in ports.items():
        text = text.replace(old.removeprefix("port_"), str(new))
    (folder / case.name).write_text(text)
    config = read_config(folder / case.name)
    return replace(config, inference=replace(config.inference, series_idle_s=0.3, retry_s=0.1))


def send(node: Node, folder: Path, count: int) -> None:
    paths = [path for number in range(count) for path in make_series(folder / str(number), 1)]
    assert storescu(node.receiver.port, *paths).returncode == 0
    wait_for(lambda: len(list(node.store.reports.glob("*.dcm"))) == count)


def test_archive_says_duplicate(start: Start, cases: Path, tmp_path: Path) -> None:
    port, case = free_port(), cases / "archive-says-duplicate"
    with script(case / "dup.py", tmp_path, ("11133", str(port))):
        node = start(config_of(case / "dup.toml", tmp_path, port_11133=port))
        send(node, tmp_path, 2)
        wait_for(lambda: node.store.counts()["undelivered"] == 0)
    assert '"dup": true' in (tmp_path / "dup.log").read_text()


def test_poison_report_and_http_redirect(start: Start, cases: Path, tmp_path: Path) -> None:
    archive, service = free_port(), free_port()
    with contextlib.ExitStack() as servers:
        servers.enter_context(script(cases / "poison-report" / "picky.py", tmp_path, ("11133", str(archive))))
        servers.enter_context(script(cases / "http-redirect" / "redir.py", tmp_path, ("8098", str(service))))
        case = cases / "poison-report" / "deliver.toml"
        node = start(config_of(case, tmp_path, port_11133=archive, port_8098=service))
        send(node, tmp_path, 5)
        # Four reports at the archive; the one that it refuses is set aside, and nothing is at the service.
        wait_for(lambda: node.counters.total("delivered") == 4)
        wait_for(lambda: node.store.counts()["deliveries_set_aside"] == 1)
        wait_for(lambda: node.counters.total("delivery_failed"))
        node.stop()
    assert node.store.path.exists()
    assert "POST /results" in (tmp_path / "redir.log").read_text()
    assert "GET" not in (tmp_path / "redir.log").read_text()
    assert node.counters.total("delivered") == 4


def test_destination_removed(start: Start, cases: Path, tmp_path: Path) -> None:
    case, ports = cases / "destination-removed", {"port_11133": free_port(), "port_8098": free_port()}
    first = start(config_of(case / "deliver.toml", tmp_path, **ports))
    send(first, tmp_path, 1)
    assert first.store.counts()["undelivered"] == 2
    first.stop()
    second = start(replace(config_of(case / "deliver2.toml", tmp_path, **ports)))
    # What "picky" should get is closed after images_h, 3.6 s; the service may still come.
    second._next_tidy = 0.0
    time.sleep(4)
    second._next_tidy = 0.0
    wait_for(lambda: second.store.counts()["undelivered"] == 1)
    assert {one.destination for one in second.store.open_deliveries()} == {"redirecting"}


def test_expired_certificate(start: Start, cases: Path, tmp_path: Path) -> None:
    from .test_operation import days, make_certificate

    note = (cases / "expired-certificate" / "NOTE.txt").read_text()
    assert "refuse or warn at start" in note
    make_certificate(tmp_path / "node.pem", days(-400), days(-30))
    (tmp_path / "node.toml").write_text(
        f'folder = "state"\nport = {free_port()}\nstatus_port = 0\n[receive.tls]\n'
        'certificate = "node.pem"\nkey = "node.key"\nauthorities = "node.pem"\n'
    )
    with pytest.raises(UsageError, match=r"expired|holds from"):
        start(read_config(tmp_path / "node.toml"))


def test_implicit_only_archive(start: Start, cases: Path, tmp_path: Path) -> None:
    command = re.search(
        r"storescp \+xi -aet PICKY 11124", (cases / "implicit-only-archive/NOTE.txt").read_text()
    )
    assert command
    port = free_port()
    words = [*command.group().split()[:-1], "-od", str(tmp_path), str(port)]
    case = cases / "archive-says-duplicate" / "dup.toml"
    with subprocess.Popen(words) as archive:
        node = start(config_of(case, tmp_path, port_11133=port))
        send(node, tmp_path, 1)
        wait_for(lambda: node.store.counts()["undelivered"] == 0)
        archive.terminate()


def test_many_frames(start: Start, cases: Path, tmp_path: Path) -> None:
    for name in ("mk.py", "many-frames/many.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(cases / name, tmp_path / name)
    folder = tmp_path / "many-frames"
    subprocess.run([sys.executable, "many.py", "300000"], cwd=folder, check=True)
    node = start()
    # Others are answered beside it, and it is set aside: max_frames is 10,000.
    other = make_image(tmp_path / "other.dcm")
    assert storescu(node.receiver.port, folder / "many_300000.dcm", other).returncode == 0
    wait_for(lambda: node.store.counts()["received"] == 0)
    outcomes = dict(node.store._rows("SELECT sop_uid, outcome FROM instances"))
    assert outcomes == {uid_of(folder / "many_300000.dcm"): "set aside", uid_of(other): "classified"}


def test_slow_sender(start: Start, cases: Path, tmp_path: Path) -> None:
    case, port = cases / "slow-sender", free_port()
    text = re.sub(r"\[audit\].*", "", (case / "node.toml").read_text(), flags=re.DOTALL)
    (tmp_path / "node.toml").write_text(text.replace("11122", str(port)).replace("9122", "0"))
    start(read_config(tmp_path / "node.toml"))
    (tmp_path / "slow").mkdir()
    for name in ("mk.py", "send.py"):
        shutil.copy(cases / name, tmp_path / name)
    (tmp_path / "slow" / "loris2.py").write_text((case / "loris2.py").read_text().replace("11122", str(port)))
    done = subprocess.run(
        [sys.executable, "loris2.py", "12"],
        cwd=tmp_path / "slow",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    # Eight slow ones have every association at first, and none of them after the time limit.
    legitimate = re.findall(r"legit: \['(\w+)'\]", done.stdout)
    assert legitimate[-1] == "0000", done.stdout + done.stderr


def test_uid_two_contents(start: Start, cases: Path, tmp_path: Path) -> None:
    case, image = cases / "uid-two-contents", cases / "uid-two-contents" / "ret.dcm"
    port = free_port()
    config = config_of(case / "ret.toml", tmp_path, port_11123=port)
    kept = tmp_path / "kept"
    kept.mkdir()
    contents: dict[str, set[bytes]] = {}
    with subprocess.Popen(["storescp", "-aet", "PACS", "-od", kept, str(port)]) as archive:
        for _ in range(2):
            receive_and_deliver(start(config), image)
            for path in kept.iterdir():
                contents.setdefault(uid_of(path), set()).add(path.read_bytes())
            forget_rows(start(replace(make_config(tmp_path), folder=config.folder)))
        archive.terminate()
    assert contents
    assert all(len(found) == 1 for found in contents.values())


def receive_and_deliver(node: Node, image: Path) -> None:
    assert storescu(node.receiver.port, image).returncode == 0
    wait_for(lambda: node.counters.total("delivered") == 1)
    node.stop()


def forget_rows(node: Node) -> None:
    """Have a node forget all that is done."""
    node.store.fold(time.time(), time.time())
    node.store.clean_rows(time.time() + 1)
    assert node.store._rows("SELECT count(*) FROM series") == [(0,)]
    node.stop()
