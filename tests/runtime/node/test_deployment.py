"""docs/deployment.md, as a newcomer follows it: its commands and configurations are run."""

import os
import re
import socket
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import pytest

from medimg.runtime.node.config import NodeConfig, read_config

from .conftest import ROOT, free_port, make_image, wait_for

pytestmark = pytest.mark.long

GUIDE = (ROOT / "docs" / "deployment.md").read_text()


def blocks(kind: str, section: int) -> list[str]:
    """Give a section's blocks of code."""
    (part,) = re.findall(rf"^## {section}\. .*?(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)
    return re.findall(rf"```{kind}\n(.*?)```", part, re.DOTALL)


def shell(script: str, folder: Path) -> str:
    """Run a script as the guide's reader would, with this environment's commands."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def here(text: str, folder: Path) -> str:
    """Put this test's folders and user in place of the system's."""
    for place in ("/etc/medimg", "/var/lib/medimg", "/mnt/other-disk/medimg"):
        text = text.replace(place, f"{folder}{place}")
    text = re.sub(r"^chown .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^runuser -u medimg -- ", "", text, flags=re.MULTILINE)
    text = re.sub(r"^systemctl .*$", "", text, flags=re.MULTILINE)
    return (
        text.replace("/opt/medimg/bin/", "")
        .replace("-o root -g medimg", "")
        .replace("-o medimg -g medimg", "")
    )


def test_a_newcomer_gets_a_node_that_works(tiny_model: Path, tmp_path: Path) -> None:
    """From the release of a model to the check of the audit log, by the guide's own words."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.int8.onnx").write_bytes(tiny_model.read_bytes())
    (tmp_path / "mnt" / "other-disk").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    for section in (2, 3):
        (commands,) = blocks("sh", section)
        shell(here(commands, tmp_path), tmp_path)
    port, status_port = free_port(), free_port()
    ports = f'address = "127.0.0.1"\nport = {port}\nstatus_port = {status_port}\n'
    small = "\n[receive]\nreserve_mb = 1.0\n"
    minimal, _ = blocks("toml", 3)
    (tmp_path / "etc/medimg/node.toml").write_text(ports + here(minimal, tmp_path) + small)

    check, trial = (here(text, tmp_path) for text in blocks("sh", 4))
    assert "FAILED" not in shell(check, tmp_path)
    unit = ConfigParser(strict=False, interpolation=None)
    unit.read_string(blocks("ini", 4)[0])
    begin = here(unit["Service"]["ExecStart"], tmp_path).split()
    program = Path(sys.executable).with_name(begin[0])
    with subprocess.Popen([program, *begin[1:]], stderr=subprocess.DEVNULL) as node:
        try:
            wait_for(lambda: listens(port) and listens(status_port))
            make_image(tmp_path / "image.dcm")
            said = shell(trial.replace("11112", str(port)).replace("9112", str(status_port)), tmp_path)
            assert said.endswith("ok\n")
        finally:
            node.terminate()
            assert node.wait(timeout=90) == 0
    (verify,) = re.findall(r"`(medimg-run audit verify [^`]*)`", GUIDE)
    assert "checkpoints agree" in shell(
        here(verify, tmp_path).replace("audit.pub", "etc/medimg/audit.pub"), tmp_path
    )


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


EXAMPLES = ("folder", "public_key", "status_token", "peers", "codes")


def test_values_that_the_guide_shows_are_the_defaults(tmp_path: Path) -> None:
    _, everything = blocks("toml", 3)
    path = tmp_path / "node.toml"
    path.write_text(everything)
    shown, plain = read_config(path), NodeConfig("")
    without = replace(shown, **{name: getattr(plain, name) for name in EXAMPLES})
    without = replace(
        without,
        receive=replace(without.receive, tls=None),
        deliver=replace(without.deliver, dicom=(), http=()),
        audit=replace(without.audit, key=None, checkpoints=None),
    )
    assert without == plain
    # And none is left out.
    for table in ("receive", "inference", "deliver", "audit", "retention"):
        for name in getattr(plain, table).__dataclass_fields__:
            if (table, name) not in (("receive", "sop_classes"), ("deliver", "dicom"), ("deliver", "http")):
                assert re.search(rf"\b{name}\b", everything), f"{table}.{name} is not in the guide"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RestartPreventExitStatus", "2"),
        ("ReadWritePaths", "-/mnt/other-disk/medimg"),
        ("SystemCallFilter", "@system-service"),
        ("Type", "notify"),
    ],
)
def test_the_unit(name: str, value: str) -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    (text,) = blocks("ini", 4)
    unit.read_string(text)
    assert unit["Service"][name] == value
    assert {"MemoryMax", "LimitNOFILE"} <= unit["Service"].keys()
