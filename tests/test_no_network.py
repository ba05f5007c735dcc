"""Nothing phones home: each command runs with outgoing connections denied and counted."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

GUARD = """
import sys

def guard(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, (str, bytes)):  # the path of a local socket
            return
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        address = arguments[0]
    else:
        return
    if True:
        with open({log!r}, "a") as log:
            log.write(f"{{event}} {{address}}\\n")
        raise OSError("outgoing connections are denied")

sys.addaudithook(guard)
"""


@pytest.fixture
def guarded(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which every Python process denies and counts connections, and the count's file."""
    log = tmp_path / "connections.log"
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD.format(log=str(log)))
    return {**os.environ, "PYTHONPATH": str(tmp_path / "guard")}, log


def test_the_guard_counts(guarded: tuple[dict[str, str], Path]) -> None:
    environment, log = guarded
    code = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode != 0
    assert "192.0.2.1" in log.read_text()


def test_no_command_connects(
    guarded: tuple[dict[str, str], Path], small_model: Path, small_artefact: Path, tmp_path: Path
) -> None:
    environment, log = guarded
    pictures = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    for label in ("cyst", "normal", "solid"):
        (pictures / label).mkdir(parents=True)
        for number in range(6):
            picture = generator.integers(0, 256, (32, 32), dtype=np.uint8)
            cv2.imwrite(str(pictures / label / f"{number}.png"), picture)
    int8 = ("--precision", "int8")
    simulated = ("--train", "2", "--test", "1", "--size", "32")
    one_trial = ("--arch", "cnn", "--image-size", "32", "--epochs", "1", "--max-trials", "1")
    commands = [
        ("medimg-run", "doctor"),
        ("medimg-run", "inspect", small_artefact),
        *(
            ("medimg-run", "predict", small_artefact, pictures, "--backend", name)
            for name in ("openvino", "onnxruntime")
        ),
        ("medimg-export", small_model, "--output", tmp_path, *int8, "--calibration", pictures),
        ("medimg-train", "check", pictures),
        ("medimg-train", "evaluate", small_artefact, pictures),
        ("medimg-train", "simulate", tmp_path / "simulated", *simulated),
        ("medimg-train", "tune", pictures, "--output", tmp_path / "search", *one_trial),
        ("medimg-bench", "run", small_artefact, "--duration", "0.2"),
    ]
    for command in commands:
        program = str(Path(sys.executable).with_name(str(command[0])))
        line = [program, *map(str, command[1:])]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), f"{command}: {done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
    assert not log.exists(), log.read_text()
