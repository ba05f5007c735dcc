"""What may go wrong around a running `predict`: survived or reported, and no answer lost in silence."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from medimg.runtime import backends
from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import ModelError
from medimg.runtime.files.paths import walk_images

PROGRAM = Path(sys.executable).with_name("medimg-run")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        cv2.imwrite(str(folder / f"{number:02}.png"), generator.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return folder


def test_files_that_vanish_meanwhile_have_their_reason(ready_artefact: Path, pictures: Path) -> None:
    def vanishing() -> Iterator[Path]:
        for number, path in enumerate(walk_images([pictures])):
            if number == 3:
                for gone in sorted(pictures.iterdir())[20:]:
                    gone.unlink()
                (pictures / "39.png").touch()
            yield path

    with Classifier(ready_artefact) as classifier:
        answers = list(classifier.predict(vanishing()))
    assert [Path(str(answer.path)).name for answer in answers] == [f"{number:02}.png" for number in range(40)]
    assert [answer.error is None for answer in answers] == [True] * 20 + [False] * 20
    reasons = {answer.error.message.partition(": ")[2] for answer in answers if answer.error}
    assert reasons == {"No such file or directory", "is empty"}


@pytest.mark.long
def test_a_full_disk_leaves_no_part_of_the_output(ready_artefact: Path, pictures: Path) -> None:
    target = pictures.parent / "answers.jsonl"
    done = subprocess.run(
        [PROGRAM, "predict", ready_artefact, pictures, "--format", "jsonl", "--output", target],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"error: {target}: cannot be written" in done.stderr
    assert done.stderr.count("error:") == 1
    assert [path.name for path in pictures.parent.iterdir()] == ["pictures"]


@pytest.mark.long
def test_a_full_disk_behind_standard_output_is_reported(ready_artefact: Path, pictures: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [PROGRAM, "predict", ready_artefact, pictures],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "error: standard output cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.long
def test_an_interrupted_run_keeps_what_is_done(ready_artefact: Path, pictures: Path) -> None:
    listed = "\n".join(str(path) for path in sorted(pictures.iterdir())) + "\n"
    # A shell that starts the tests in the background has them ignore Ctrl-C, and so would the command.
    heeding = ["env", "--default-signal=INT"]
    options = ["-", "--format", "jsonl", "--batch-size", "1"]
    command = [*heeding, str(PROGRAM), "predict", str(ready_artefact), *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin
        assert running.stderr
        running.stdin.write(listed)
        running.stdin.flush()
        # It has begun; standard input stays open, so that it waits for more.
        began = running.stderr.readline()
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        written, complaint = running.communicate(timeout=30)
    assert "openvino" in began
    assert running.returncode == 130
    assert complaint.split("\n") == ["", "error: interrupted", ""]
    names = [Path(json.loads(line)["path"]).name for line in written.splitlines()]
    assert len(names) > 10
    assert names == [f"{number:02}.png" for number in range(len(names))]


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.soak)])
def test_a_changed_artefact_never_reaches_a_back_end(
    ready_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    def reached(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a back end was opened")

    monkeypatch.setattr(backends.Choice, "open", reached)
    content = ready_artefact.read_bytes()
    generator = np.random.default_rng(0)
    changed = tmp_path / "changed.onnx"
    for _ in range(count):
        damaged = bytearray(content)
        for place in generator.integers(0, len(damaged), generator.integers(1, 5)):
            damaged[place] ^= 1 << int(generator.integers(8))
        if generator.random() < 0.3:
            del damaged[int(generator.integers(len(damaged))) :]
        if damaged == content:
            continue
        changed.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"changed\.onnx"):
            Classifier(changed)
