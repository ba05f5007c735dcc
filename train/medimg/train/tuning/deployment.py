"""What a trained model is worth on this machine: its accuracy in INT8, and how long one image takes.

Export and timing are other rooms: their commands run in processes of their own, and their JSON is read.
"""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from medimg.train.data.parts import Part
from medimg.train.errors import DeploymentError

CALIBRATION_IMAGES = 300
TIMED_S = (3.0, 30.0, 300.0)
"""How long single images are timed: the first that is long enough for the device."""
TOO_SHORT = "--duration must be"
"""What `medimg-bench` says of the others."""
PERCENTILE = "p90"
"""Of the latency of single images, as in MLPerf's single-stream scenario (arXiv:1911.02549)."""


@dataclass(frozen=True)
class Deployment:
    """A model after export to INT8."""

    accuracy: float
    """On the validation images, from the artefact."""
    latency_ms: float
    """What 90 % of single images are answered within."""
    seconds: float
    """What export and timing took."""


@dataclass(frozen=True)
class Judges:
    """The images, as tables of files, that INT8 takes its ranges from and that judge it."""

    calibration: Path
    validation: Path


def write_judges(training: Part, validation: Part, labels: Sequence[str], folder: Path) -> Judges:
    """Write decoded images as PNG files with a table of their classes; they are what the network takes.

    Args:
        training: `(images, rows, columns, 3)` uint8 RGB, `(images,)` classes; evenly chosen ones are written.
        validation: the same; all are written.
        labels: the classes' names.
        folder: an empty folder, which the caller removes: the images are the patients'.
    """
    step = max(1, len(training) // CALIBRATION_IMAGES)
    calibration = range(0, len(training), step)[:CALIBRATION_IMAGES]
    return Judges(
        _write_part(training, calibration, labels, folder / "calibration"),
        _write_part(validation, range(len(validation)), labels, folder / "validation"),
    )


def measure(model: Path, judges: Judges, threads: int) -> Deployment:
    """Export a model to INT8 beside it, judge it, and time it on single images.

    Args:
        model: a Keras file with a spec.
        judges: what ranges come from and what judges.
        threads: processor threads.

    Raises:
        DeploymentError: one of the commands failed.
    """
    begin = time.perf_counter()
    artefact = export_int8(model, judges.calibration, threads, "--validation", str(judges.validation))
    latency_ms = time_singles(Path(artefact["path"]), threads)[PERCENTILE]
    return Deployment(artefact["verification"]["accuracy"], latency_ms, time.perf_counter() - begin)


def export_int8(model: Path, calibration: Path, threads: int, *options: str) -> dict[str, Any]:
    """Export a Keras file to INT8 beside it, and give what `medimg-export --json` says of the artefact.

    Layers are not put back into float32, since that changes what is timed.

    Args:
        model: with a spec.
        calibration: what ranges come from.
        threads: processor threads.
        options: more of the command's.

    Raises:
        DeploymentError: the command failed.
    """
    report = _run(
        *("export", str(model), "--precision", "int8", "--force", "--repair-budget", "0"),
        *("--calibration", str(calibration), "--threads", str(threads), *options),
        # A failed verification is a low accuracy, not an error.
        accepted=(0, 1),
    )
    (artefact,) = report["artefacts"]
    return dict(artefact)


def time_singles(artefact: Path, threads: int, *options: str) -> dict[str, float]:
    """Time an artefact on single images, and give percentiles in milliseconds, such as `p50`.

    Args:
        artefact: what `export_int8` wrote.
        threads: processor threads.
        options: more of the options of `medimg-bench run`.

    Raises:
        DeploymentError: the command failed.
    """
    for seconds in TIMED_S:
        try:
            timed = _run(
                *("benchmarks", "run", str(artefact), "--scenario", "single-stream"),
                *("--duration", str(seconds), "--threads", str(threads), *options),
            )
        except DeploymentError as error:
            if TOO_SHORT not in str(error) or seconds == TIMED_S[-1]:
                raise
        else:
            break
    return dict(timed["runs"][0]["latency_ms"])


def _run(room: str, *arguments: str, accepted: tuple[int, ...] = (0,)) -> Any:  # noqa: ANN401  any layout
    command = [sys.executable, "-m", f"medimg.{room}", *arguments, "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in accepted or not done.stdout.startswith("{"):
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DeploymentError(f"medimg.{room} failed: {said[-1]}")
    return json.loads(done.stdout)


def _write_part(part: Part, chosen: range, labels: Sequence[str], folder: Path) -> Path:
    folder.mkdir(parents=True)
    table = folder / "images.csv"
    with table.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number in chosen:
            cv2.imwrite(str(folder / f"{number}.png"), part.inputs[number][..., ::-1])
            rows.writerow([f"{number}.png", labels[part.truth[number]]])
    return table
