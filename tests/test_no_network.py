"""Nothing phones home: commands run with outgoing connections denied and counted, native code's included."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

Watched = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.long

# ONNX Runtime uploads its first report after some ten seconds.
STAYS = """
import sys, time
from medimg.runtime import Classifier
kept = [Classifier(sys.argv[1], backend=name) for name in ("onnxruntime", "openvino")]
time.sleep(15)
"""


def watching(calls: Path) -> list[str]:
    """A command that runs another, no socket of which or of whose children can be connected.

    Args:
        calls: what it writes: one line a system call that can send something.
    """
    strace = ["strace", "--follow-forks", "--seccomp-bpf", "-qq", "--output-append-mode", f"--output={calls}"]
    return [*strace, "--trace=connect,sendto,sendmsg,sendmmsg", "--inject=connect:error=ENETUNREACH"]


def of_a_new_user(home: Path) -> dict[str, str]:
    """The environment; what a build server sets keeps some packages from reporting, which do so elsewhere."""
    return {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


@pytest.fixture(scope="module", autouse=True)
def staying(
    small_artefact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple["subprocess.Popen[bytes]", Path]]]:
    """Processes that stay while the other tests run, and folders of what they did."""
    started = {}
    for name, variables in (("quiet", {}), ("reporting", {"ORT_DISABLE_TELEMETRY": "0"})):
        folder = tmp_path_factory.mktemp(name)
        command = [*watching(folder / "calls.txt"), sys.executable, "-c", STAYS, str(small_artefact)]
        environment = of_a_new_user(folder) | variables
        with (folder / "said.txt").open("w") as said:
            started[name] = subprocess.Popen(command, env=environment, stderr=said), folder
    yield started
    for process, _ in started.values():
        process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls.txt"


@pytest.fixture
def watched(home: Path, calls: Path) -> Watched:
    """Run a command as a new user would; see `watching`."""

    def call(*command: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*watching(calls), *map(str, command)],
            env=of_a_new_user(home),
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def outgoing(calls: Path) -> list[str]:
    """The calls that address a machine, over IPv4 or IPv6."""
    return [line for line in calls.read_text().splitlines() if "AF_INET" in line]


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
        "import os, sys; sys.exit(os.system('getent hosts example.invalid') >> 8)",
    ],
)
def test_what_is_sent_is_counted(watched: Watched, calls: Path, code: str) -> None:
    watched(sys.executable, "-c", code)
    assert outgoing(calls)


def test_no_command_connects(
    watched: Watched, calls: Path, home: Path, small_model: Path, small_artefact: Path, tmp_path: Path
) -> None:
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
        done = watched(Path(sys.executable).with_name(str(command[0])), *command[1:])
        assert done.returncode in (0, 1), f"{command}: {done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
    assert not outgoing(calls)
    # Reports wait in files until they can be sent.
    left = {path.relative_to(home).as_posix() for path in (*home.glob(".[!c]*"), *home.glob(".c*/*"))}
    assert left <= {".keras", ".cache/medimg", ".cache/matplotlib", ".config/matplotlib"}


@pytest.mark.parametrize(("name", "connects"), [("quiet", False), ("reporting", True)])
def test_a_process_that_stays_connects_only_where_reports_are_allowed(
    staying: dict[str, tuple["subprocess.Popen[bytes]", Path]], name: str, connects: bool
) -> None:
    process, folder = staying[name]
    assert process.wait() == 0, (folder / "said.txt").read_text()
    assert bool(outgoing(folder / "calls.txt")) == connects
