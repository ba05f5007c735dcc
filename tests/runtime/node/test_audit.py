"""The audit log and its checkpoints: every change is found."""

import json
import subprocess
from pathlib import Path

import pytest

from medimg.runtime.errors import CheckFailedError, UsageError
from medimg.runtime.node.audit import CHECKPOINTS, Checkpoints, Verified, verify_log
from medimg.runtime.node.config import AuditRule
from medimg.runtime.node.journal import Journal
from medimg.runtime.node.store import Store

from .conftest import Start, make_config, make_image, storescu, wait_for


def make_keys(folder: Path, name: str = "audit") -> tuple[Path, Path]:
    """Make an Ed25519 pair with openssl, as the deployment guide says."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    for command in (["genpkey", "-algorithm", "ed25519"], ["pkey", "-in", private, "-pubout"]):
        target = private if command[0] == "genpkey" else public
        subprocess.run(["openssl", *command, "-out", target], check=True, capture_output=True)
    return private, public


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Ten entries with checkpoints after four and nine: log, checkpoints, public key."""
    private, public = make_keys(tmp_path)
    store = Store(tmp_path / "state")
    journal = Journal(tmp_path / "audit", "audit", store)
    checkpoints = Checkpoints(tmp_path / "kept-apart", private, 0.0)
    for number in range(10):
        store.audit("event", number=number)
        journal.catch_up()
        if number in (3, 8):
            assert checkpoints.work(*journal.position)
    store.close()
    return tmp_path / "audit", tmp_path / "kept-apart", public


def test_a_whole_log_verifies(log: tuple[Path, Path, Path]) -> None:
    assert verify_log(*log) == Verified(10, 2, 9)
    assert verify_log(log[0]) == Verified(10, 0, 0)


@pytest.mark.parametrize("entry", range(10))
@pytest.mark.parametrize("change", ["alter", "remove", "repeat", "exchange"])
def test_every_change_of_an_entry_is_found(log: tuple[Path, Path, Path], entry: int, change: str) -> None:
    path = log[0] / "000000.jsonl"
    lines = path.read_text().splitlines()
    if change == "alter":
        lines[entry] = lines[entry].replace('"number":', '"number":1')
    elif change == "remove":
        del lines[entry]
    elif change == "repeat":
        lines.insert(entry, lines[entry])
    else:
        lines[entry], lines[entry - 1] = lines[entry - 1], lines[entry]
    path.write_text("".join(f"{line}\n" for line in lines))
    if entry == 9 and change in ("alter", "remove"):
        # Nothing has vouched for the last entry yet.
        assert verify_log(*log).signed_entries == 9
    else:
        with pytest.raises(CheckFailedError):
            verify_log(*log)


@pytest.mark.parametrize("left", range(9))
def test_truncation_is_found_by_the_checkpoints(log: tuple[Path, Path, Path], left: int) -> None:
    path = log[0] / "000000.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:left]))
    assert verify_log(log[0]).entries == left
    with pytest.raises(CheckFailedError, match="its end is missing"):
        verify_log(*log)


def test_a_log_written_anew_is_not_what_was_signed(log: tuple[Path, Path, Path], tmp_path: Path) -> None:
    store = Store(tmp_path / "other")
    Journal(tmp_path / "forged", "audit", store)
    for number in range(10):
        store.audit("event", number=-number)
    Journal(tmp_path / "forged", "audit", store)
    store.close()
    assert verify_log(tmp_path / "forged").entries == 10
    with pytest.raises(CheckFailedError, match="entry 4 is not the one that was signed"):
        verify_log(tmp_path / "forged", log[1], log[2])


def test_forged_checkpoints_are_found(log: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, other = make_keys(tmp_path, "other")
    with pytest.raises(CheckFailedError, match=r"was not signed by other\.pub"):
        verify_log(log[0], log[1], other)
    path = log[1] / CHECKPOINTS
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["checkpoint"] = lines[1]["checkpoint"].replace('"count": 9', '"count": 8')
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CheckFailedError, match="was not signed"):
        verify_log(*log)
    path.write_text("")
    with pytest.raises(CheckFailedError, match="holds no checkpoint"):
        verify_log(*log)


def test_a_wrong_key_is_refused_in_words(tmp_path: Path) -> None:
    key = tmp_path / "rsa.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    with pytest.raises(UsageError, match="openssl genpkey -algorithm ed25519"):
        Checkpoints(tmp_path, key, 1.0)
    key.write_text("nonsense")
    with pytest.raises(UsageError, match="no Ed25519 private key"):
        Checkpoints(tmp_path, key, 1.0)


@pytest.mark.long
@pytest.mark.parametrize("named", [False, True])
def test_what_a_node_logs(start: Start, tmp_path: Path, named: bool) -> None:
    private, public = make_keys(tmp_path)
    rule = AuditRule(str(private), str(tmp_path / "apart"), patient_names=named)
    node = start(make_config(tmp_path, audit=rule))
    storescu(node.receiver.port, make_image(tmp_path / "a.dcm"))
    wait_for(lambda: node.counters.total("answered"))
    wait_for(lambda: not node.store.unreported_series())
    node.stop()
    folder = tmp_path / "state" / "audit"
    text = (folder / "000000.jsonl").read_text()
    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert events == ["model", "started", "received", "answered", "reported", "stopped"]
    assert ("Doe" in text) == named
    assert verify_log(folder, tmp_path / "apart", public).signed_entries == 6
