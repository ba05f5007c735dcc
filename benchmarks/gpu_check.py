"""What the GPU of this machine gives: answers held against the CPU's, throughput, latency, copies; as JSON.

`gpu_check.py [--models FOLDER --data DATA] [--json FILE]`. FOLDER holds `model.onnx`, `model.fp16.onnx` and
`model.int8.onnx` of one export; without it a VGG16 is trained on simulated images and exported, which needs
the extras train and export. Ends with status 1 if an answer is not what it should be, and with 2 if there is
no GPU: nothing was checked then.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commands import CommandFailedError, run_command
from medimg.benchmarks.environment import Environment, now, read_environment
from medimg.benchmarks.percentiles import summarise
from medimg.runtime.backends import availability_of
from medimg.runtime.building.make import make_engine
from medimg.runtime.classifier import Classifier
from medimg.runtime.data import load_batches, read_data
from medimg.runtime.engines.builder import BuildOptions
from medimg.runtime.errors import MedimgError
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.machine.cuda import Cuda, Device, Resources
from medimg.runtime.model.plan import BatchProfile
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics.metrics import top1_agreement
from medimg.runtime.streams import write_json
from medimg.runtime.tasks import Probabilities

SCHEMA = 1
SUFFIXES = {"fp32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}
LIMITS = {"fp32": 1e-4, "fp16": 5e-3}
LEAST_AGREEMENT = 0.99
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROFILE = BatchProfile(1, 64, 256)
RUN_S = 2.0
WARM_UP = 10
COPIES = 50
GROWTH_BATCHES = 2000

Answer = Callable[[NDArray[np.uint8]], Probabilities]


@dataclass(frozen=True)
class Check:
    """One file on one back end, against ONNX Runtime on the CPU."""

    backend: str
    precision: str
    images: int
    max_abs_diff: float
    top1_agreement: float
    passed: bool
    growth_bytes: int
    """GPU memory that 2,000 further batches took."""


@dataclass(frozen=True)
class Speed:
    """One back end at one batch size, from arrays in the host's memory to probabilities there."""

    backend: str
    precision: str
    batch_size: int
    throughput_per_s: float
    latency_ms: dict[str, float]
    copy_in_ms: float
    """Median time for the batch's bytes to the GPU from pinned memory, alone."""
    copy_out_ms: float
    """Median time for the answers back, alone."""


@dataclass(frozen=True)
class GpuCheck:
    """Everything that was found."""

    gpu: Device
    environment: Environment
    backends: dict[str, str | None]
    """Versions of what ran."""
    build_s: dict[str, float]
    """Seconds that building each engine took, by precision; a timing cache makes the next ones shorter."""
    checks: tuple[Check, ...]
    runs: tuple[Speed, ...]


def main() -> int:
    """Check and measure; returns the exit status."""
    options = _parse()
    try:
        cuda = Cuda()
        if not cuda.count():
            raise MedimgError("no NVIDIA GPU is there")
    except MedimgError as error:
        print(f"error: {error}: nothing was checked", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder, data = (options.models, options.data) if options.models else _make_models(Path(scratch))
            found = check(cuda, folder, data, Path(scratch))
    except MedimgError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except CommandFailedError as error:
        return error.status
    write_json(found, options.json, schema=SCHEMA)
    return 0 if found.checks and all(item.passed for item in found.checks) else 1


def check(cuda: Cuda, folder: Path, data: Path, scratch: Path) -> GpuCheck:
    """Check and measure every precision on whatever is installed."""
    started, load = now(), os.getloadavg()
    spec = ModelSpec.read(folder / "model.onnx")
    samples = read_data(data, labelled=False).samples
    samples = samples[:: max(1, len(samples) // max(BATCH_SIZES))][: max(BATCH_SIZES)]
    images = np.concatenate(list(load_batches(samples, spec.image, 32, usable_cpus())))
    images = np.asarray(np.resize(images, (max(BATCH_SIZES), *images.shape[1:])), np.uint8)
    checks: list[Check] = []
    runs: list[Speed] = []
    build_s: dict[str, float] = {}
    used: dict[str, str | None] = {}
    for precision, suffix in SUFFIXES.items():
        onnx = folder / f"model{suffix}"
        with Classifier(onnx, backend="onnxruntime", device="cpu") as classifier:
            expected = _in_parts(classifier.probabilities, images)
        if "gpu:0" in availability_of("onnxruntime").devices and precision != "int8":
            used["onnxruntime"] = availability_of("onnxruntime").version
            checks.append(_check(cuda, onnx, "onnxruntime", precision, images, expected))
            runs += _measure(cuda, onnx, "onnxruntime", precision, images)
        if availability_of("tensorrt").devices:
            used["tensorrt"] = availability_of("tensorrt").version
            start = time.perf_counter()
            made = make_engine(onnx, output=scratch, options=BuildOptions(PROFILE), progress=_say)
            build_s[precision] = time.perf_counter() - start
            plan = Path(made.path)
            checks.append(_check(cuda, plan, "tensorrt", precision, images, expected))
            runs += _measure(cuda, plan, "tensorrt", precision, images)
    environment = read_environment(started, load)
    return GpuCheck(cuda.device(0), environment, used, build_s, tuple(checks), tuple(runs))


def _check(
    cuda: Cuda, path: Path, backend: str, precision: str, images: NDArray[np.uint8], expected: Probabilities
) -> Check:
    with Classifier(path, backend=backend, device="gpu:0") as classifier:
        found = _in_parts(classifier.probabilities, images)
        before, _ = cuda.free_bytes()
        for turn in range(GROWTH_BATCHES):
            classifier.probabilities(images[: 1 + turn % 8])
        after, _ = cuda.free_bytes()
    difference, agreement = float(np.abs(found - expected).max()), top1_agreement(expected, found)
    passed = agreement >= LEAST_AGREEMENT if precision == "int8" else difference <= LIMITS[precision]
    _say(f"{backend} {precision}: max |Δp| {difference:.1e}, top-1 agreement {agreement:.4f}")
    return Check(backend, precision, len(images), difference, agreement, bool(passed), before - after)


def _measure(
    cuda: Cuda, path: Path, backend: str, precision: str, images: NDArray[np.uint8]
) -> Iterator[Speed]:
    with Classifier(path, backend=backend, device="gpu:0", tuned_for="latency") as classifier:
        for size in BATCH_SIZES:
            batch = images[:size]
            answer = classifier.probabilities(batch)
            latencies = _latencies_ms(lambda batch=batch: classifier.probabilities(batch))  # type: ignore[misc]
            yield Speed(
                backend,
                precision,
                size,
                throughput_per_s=1000 * size * len(latencies) / sum(latencies),
                latency_ms=summarise(latencies),
                copy_in_ms=_copy_ms(cuda, batch.nbytes, inwards=True),
                copy_out_ms=_copy_ms(cuda, answer.nbytes, inwards=False),
            )
            _say(f"{backend} {precision}, batch {size}: {np.median(latencies):.3f} ms")


def _latencies_ms(call: Callable[[], object]) -> list[float]:
    for _ in range(WARM_UP):
        call()
    latencies: list[float] = []
    end = time.perf_counter() + RUN_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        latencies.append(1000 * (time.perf_counter() - start))
    return latencies


def _copy_ms(cuda: Cuda, size: int, *, inwards: bool) -> float:
    """Time a copy between pinned memory and the GPU, waiting for each."""
    resources = Resources(cuda)
    with ExitStack() as stack:
        stack.callback(resources.free)
        host, device = resources.pinned_memory(size), resources.device_memory(size)
        stream = resources.stream()
        times = []
        for _ in range(COPIES):
            start = time.perf_counter()
            if inwards:
                cuda.copy_to_device(device, host, size, stream)
            else:
                cuda.copy_to_host(host, device, size, stream)
            cuda.wait(stream)
            times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def _in_parts(answer: Answer, images: NDArray[np.uint8]) -> Probabilities:
    return np.concatenate([answer(images[place : place + 32]) for place in range(0, len(images), 32)])


def _make_models(folder: Path) -> tuple[Path, Path]:
    """Train VGG16 for a moment on simulated images and export it; give the models' folder and the images."""
    data, model = folder / "images", folder / "model.h5"
    run_command("medimg-train", "simulate", data, "--train", "60", "--test", "60")
    run_command("medimg-train", "fit", data, "--output", model, "--weights", "none", "--epochs", "1")
    precisions = [option for name in SUFFIXES for option in ("--precision", name)]
    images = ("--calibration", data / "train", "--validation", data / "test", "--golden", "32")
    run_command("medimg-export", model, *precisions, *images, "--force", "--repair-budget", "0")
    return folder, data / "test"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, metavar="FOLDER")
    parser.add_argument("--data", type=Path, metavar="DATA")
    parser.add_argument("--json", default="-", metavar="FILE")
    options = parser.parse_args()
    if (options.models is None) != (options.data is None):
        parser.error("--models and --data go together")
    return options


if __name__ == "__main__":
    sys.exit(main())
