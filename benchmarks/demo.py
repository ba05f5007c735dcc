"""The whole path as a user would type it: images in, a verified INT8 model running.

Simulates ultrasound images unless others are given, fine-tunes VGG16 on them, exports it in three precisions,
classifies some of the images and measures the artefacts. Ends with status 1 if a model is worse than it
should be, and with 2 if the input cannot be used.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import CommandFailedError, read_json, run_command
from demo_data import one_of_each_class, with_test_part
from medimg.runtime.errors import MedimgError
from weights import Weights, find_weights

SUFFIXES = {"fp32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}
LEAST_ACCURACY = 0.85
"""Of the float32 artefact on held-out simulated images."""
MOST_INT8_LOSS = 0.02
BENCH_SECONDS = "3"
MARKER = ".made-by-demo"
"""Says that the demo may empty the folder it lies in."""

SIMULATED_COUNTS = ("--train", "200", "--test", "60")
"""Images a class: as many as the demo's six minutes on two cores allow."""
SIMULATED_SIZE = ("--image-size", "160")
"""The simulated images' own."""
FROM_SCRATCH = (
    "--arch", "vgg-bn", "--dense-units", "256", "--image-size", "80", "--epochs", "12",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the last table."""

    artefact: str
    size_mb: float
    accuracy: float | None
    agreement: float | None
    """Share of held-out images with the Keras model's first class."""
    ran_in: str
    """The precision that really ran."""
    latency_ms: float | None
    """Median of one image after another, from file to answer."""
    images_per_s: float | None
    """Offline, in batches."""


def main() -> int:
    """Run the demo; returns its exit status."""
    options = _parse()
    start = time.perf_counter()
    try:
        passed = demonstrate(options.data, options.weights, options.output)
    except (CommandFailedError, MedimgError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, CommandFailedError) else 2
    print(f"\nwhole demo: {time.perf_counter() - start:.0f} s")
    return 0 if passed else 1


def demonstrate(data: Path | None, weights: str | None, output: Path) -> bool:
    """Go the whole path; returns whether the models are as good as they should be."""
    empty(output)
    start_from = find_weights(weights)
    seconds: dict[str, float] = {}
    print("Images: " + (f"{data}" if data else "SIMULATED ultrasound, no patient's and no phantom's"))
    print(f"Weights: {start_from.words}")
    images = data or output / "images"
    if data is None:
        seconds["simulate"] = run_command("medimg-train", "simulate", images, *SIMULATED_COUNTS)
    images = with_test_part(images, output)
    model = output / "model.h5"
    seconds |= _make(model, images, fit_options(start_from, simulated=data is None))
    seconds |= _use(model, images)
    print("\nstep times: " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    origin = f"images of {data}" if data else "SIMULATED images"
    rows = _rows(model, read_json(output / "export.json"))
    print(f"\nHeld-out {origin}; {start_from.words}\n")
    print("\n".join(table(rows)))
    return judge(read_json(output / "export.json"), simulated=data is None)


def fit_options(weights: Weights, *, simulated: bool) -> tuple[str, ...]:
    """Choose what `fit` is told: which network, from which weights, at which image size."""
    if weights.path is None:
        print("A VGG with batch normalisation is trained from scratch instead, on images of 64 pixels")
        return FROM_SCRATCH
    return ("--weights", str(weights.path), *(SIMULATED_SIZE if simulated else ()))


def _make(model: Path, images: Path, options: tuple[str, ...]) -> dict[str, float]:
    """Fit, evaluate and export; returns the seconds of each step."""
    output = model.parent
    evaluation = output / "evaluation.json"
    return {
        "fit": run_command("medimg-train", "fit", images, "--output", model, *options),
        "evaluate": run_command("medimg-train", "evaluate", model, images, "--json", evaluation),
        "export": run_command(
            "medimg-export", model,
            *(word for precision in SUFFIXES for word in ("--precision", precision)),
            "--calibration", images, "--validation", images,
            "--max-drop", str(MOST_INT8_LOSS), "--json", output / "export.json",
        ),
    }  # fmt: skip


def _use(model: Path, images: Path) -> dict[str, float]:
    """Predict and measure; returns the seconds of each step."""
    chosen = one_of_each_class(images, model.parent)
    seconds = {
        "predict": run_command("medimg-run", "predict", model.with_suffix(SUFFIXES["int8"]), *chosen),
        "bench": 0.0,
    }
    for precision, suffix in SUFFIXES.items():
        seconds["bench"] += run_command(
            "medimg-bench", "run", model.with_suffix(suffix), "--data", images,
            "--duration", BENCH_SECONDS, "--json", model.parent / f"bench-{precision}.json",
        )  # fmt: skip
    return seconds


def _rows(model: Path, export: Mapping[str, Any]) -> list[Row]:
    found = {item["precision"]: item for item in export["artefacts"]}
    reference = found["fp32"]["verification"]["accuracy_reference"]
    rows = [Row(model.name, model.stat().st_size / 1e6, reference, None, "fp32", None, None)]
    for precision, suffix in SUFFIXES.items():
        bench = read_json(model.parent / f"bench-{precision}.json")
        runs = {run["scenario"]: run for run in bench["runs"]}
        verification = found[precision]["verification"]
        rows.append(
            Row(
                model.with_suffix(suffix).name,
                found[precision]["bytes"] / 1e6,
                verification["accuracy"],
                verification["top1_agreement"],
                bench["precision"],
                runs["single-stream"]["latency_ms"]["p50"],
                runs["offline"]["throughput_per_s"],
            )
        )
    return rows


def table(rows: list[Row]) -> list[str]:
    """Lay out the last table, a line an artefact."""
    heads = ("MB", "accuracy", "as Keras", "ran in", "ms/image", "images/s")
    lines = [f"{'artefact':<18}" + "".join(f"{head:>10}" for head in heads)]
    for row in rows:
        cells = (
            f"{row.size_mb:.1f}", _cell(row.accuracy, ".4f"), _cell(row.agreement, ".4f"), row.ran_in,
            _cell(row.latency_ms, ".1f"), _cell(row.images_per_s, ".1f"),
        )  # fmt: skip
        lines.append(f"{row.artefact:<18}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def _cell(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def judge(export: Mapping[str, Any], *, simulated: bool) -> bool:
    """State the two gates; the accuracy's applies to the simulated images alone."""
    found = {item["precision"]: item["verification"] for item in export["artefacts"]}
    accuracy, loss = found["fp32"]["accuracy"], found["int8"]["accuracy_drop"]
    accurate, faithful = accuracy >= LEAST_ACCURACY, loss <= MOST_INT8_LOSS
    verdict = _verdict(accurate, counts=simulated)
    print(f"\nfp32 accuracy {accuracy:.4f}, at least {LEAST_ACCURACY:.2f}: {verdict}")
    print(f"int8 loses {loss:.4f}, at most {MOST_INT8_LOSS:.2f}: {_verdict(faithful, counts=True)}")
    return faithful and (accurate or not simulated)


def _verdict(passed: bool, *, counts: bool) -> str:
    return ("passed" if passed else "FAILED") if counts else "only stated: your own data may be harder"


def empty(output: Path) -> None:
    """Make the folder, emptied if an earlier demo made it."""
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise OSError(f"{output} holds other files: choose another folder with --output")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARKER).touch()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="labelled images of your own; simulated ones unless given")
    parser.add_argument("--weights", metavar="PATH", help="VGG16's weights without its top, or none")
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for all files [default: demo]"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
