"""What the kit checks and measures, a function per step: `python -m gpu_kit.steps NAME REPORT SECONDS`."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpu_kit.run import IMAGES, MODELS, TESTS
from gpu_kit.seeded import Cut, Drawn, put_back

KIT = Path(__file__).resolve().parents[1]
LIMITS = {"fp32": 1e-4, "fp16": 5e-3}
"""Largest difference of a probability from the CPU's."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RUN_S = 0.5
PEAK_SIZE = 8192


class Report:
    """What a step has found so far, written to its file at each addition."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = {}

    def add(self, name: str, value: object) -> None:
        """Keep a figure, and show it."""
        self._found[name] = value
        print(name, value, flush=True)
        self._path.write_text(json.dumps(self._found), encoding="utf-8")


def machine(report: Report, _seconds: float) -> None:
    """Name the card, the processor and the versions."""
    query = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    shown = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    report.add("card", subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip())
    from medimg.benchmarks.environment import now, read_environment

    environment = read_environment(now(), os.getloadavg())
    report.add("cpu", f"{environment.cpu}, {environment.cores} cores")
    report.add("python", platform.python_version())
    report.add("packages", {**environment.packages, "opencv": cv2.__version__, "numpy": np.__version__})
    import torch

    report.add("torch", {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()})


def answers(report: Report, _seconds: float) -> None:
    """Hold every artefact's answers on the card against the CPU's, alone and in batches."""
    from medimg.runtime import Classifier

    for path in artefacts():
        if ".int8." in path.name:
            continue  # ONNX Runtime has no INT8 convolutions on GPUs, and says so
        precision = "fp16" if ".fp16." in path.name else "fp32"
        with Classifier(path, backend="onnxruntime", device="cpu") as classifier:
            images = kit_images(classifier.spec.image.rows, classifier.spec.image.columns)
            expected = classifier.probabilities(images)
        with Classifier(path, backend="onnxruntime", device="gpu:0") as classifier:
            found = classifier.probabilities(images)
            alone = np.concatenate([classifier.probabilities(image[None]) for image in images])
        difference = float(max(np.abs(found - expected).max(), np.abs(alone - expected).max()))
        report.add(
            path.name,
            {
                "images": len(images),
                "max_abs_diff": difference,
                "limit": LIMITS[precision],
                "passed": bool(difference <= LIMITS[precision]),
                "classes": len(set(expected.argmax(axis=1).tolist())),
                "largest_probability": [float(expected.max(axis=1).min()), float(expected.max())],
            },
        )


def speed(report: Report, _seconds: float) -> None:
    """Time arrays in the host's memory to probabilities there, one call after another and several at once."""
    from medimg.runtime import Classifier

    for name in ("vgg16.fp16.onnx", "vgg16.onnx", "vgg16-half.fp16.onnx"):
        with Classifier(artefact(name), backend="onnxruntime", device="gpu:0") as classifier:
            many = np.resize(kit_images(224, 224), (max(BATCH_SIZES), 224, 224, 3))
            for size in BATCH_SIZES:
                batch, parallel = many[:size], classifier.backend.parallel

                def call(batch: NDArray[np.uint8] = batch) -> None:
                    classifier.probabilities(batch)

                median, highest = timed(call)
                together = size / in_parallel(call, parallel)
                report.add(
                    f"{name} {size}",
                    {
                        "p50_ms": 1000 * median,
                        "max_ms": 1000 * highest,
                        "one_at_a_time_per_s": size / median,
                        "calls_at_once": parallel,
                        "throughput_per_s": together,
                    },
                )


def peers(report: Report, _seconds: float) -> None:
    """Time the same network with the same weights in PyTorch."""
    from gpu_kit.peers import measure_peers

    many = np.resize(kit_images(224, 224), (max(BATCH_SIZES), 224, 224, 3))
    measure_peers(artefact("vgg16.onnx"), many, report.add)


def decoding(report: Report, _seconds: float) -> None:
    """Hold the card's JPEG decoder against the CPU's pixels, and time both."""
    from gpu_kit.decoding import measure_decoding

    with tempfile.TemporaryDirectory() as scratch:
        measure_decoding(sorted((KIT / IMAGES).glob("*.jpg")), Path(scratch), report.add)


def files(report: Report, _seconds: float) -> None:
    """Time files on disk to classes."""
    from medimg.runtime import Classifier

    paths = sorted((KIT / IMAGES).glob("*.jpg")) * 64
    for decode in ("cpu", "gpu"):
        for size in (32, 128):
            options: dict[str, Any] = {} if decode == "cpu" else {"decode": "gpu"}
            with Classifier(artefact("vgg16.fp16.onnx"), device="gpu:0", **options) as classifier:
                list(classifier.predict(paths[:512], batch_size=size))
                start = time.perf_counter()
                answered = sum(item.error is None for item in classifier.predict(paths, batch_size=size))
                seconds = time.perf_counter() - start
            report.add(f"{decode} {size}", {"answered": answered, "throughput_per_s": answered / seconds})


def tests(report: Report, _seconds: float) -> None:
    """Run the tests that are marked `gpu`."""
    environment = {**os.environ, "MEDIMG_GPU_ARTEFACTS": str(KIT / MODELS)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-ra",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        str(KIT / TESTS),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-8000:])
    report.add("status", done.returncode)
    report.add(
        "closing_line", done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]
    )
    if done.returncode:
        raise SystemExit("a test failed")


def memory(report: Report, seconds: float) -> None:
    """Classify files without a pause and watch the memory of card and host."""
    import resource

    from medimg.runtime import Classifier
    from medimg.runtime.machine.cuda import Cuda

    cuda, paths = Cuda(), sorted((KIT / IMAGES).glob("*.jpg")) * 32
    with Classifier(artefact("vgg16.fp16.onnx"), device="gpu:0") as classifier:
        start, images = time.perf_counter(), 0
        watched: list[tuple[float, int, int]] = []
        while time.perf_counter() - start < seconds:
            images += len(list(classifier.predict(paths, batch_size=1 + len(watched) % 64)))
            resident_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            watched.append((time.perf_counter() - start, cuda.free_bytes()[0], resident_kb * 1024))
            report.add("second_free_gpu_bytes_peak_host_bytes", watched[:: max(1, len(watched) // 100)])
        report.add("images", images)


def timed(call: Callable[[], object], seconds: float = RUN_S) -> tuple[float, float]:
    """Call over and over; give the median and the longest time in seconds, after three calls to warm up."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)), max(times)


def in_parallel(call: Callable[[], object], threads: int, seconds: float = RUN_S) -> float:
    """Call from several threads for a while; give the seconds per call."""
    end, start = time.perf_counter() + seconds, time.perf_counter()

    def keep_calling(_number: int) -> int:
        count = 0
        while time.perf_counter() < end:
            call()
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        calls = sum(pool.map(keep_calling, range(threads)))
    return (time.perf_counter() - start) / calls


def artefacts() -> Iterator[Path]:
    """Give every artefact of the kit, whole."""
    names = {path.name.removesuffix(".left") for path in (KIT / MODELS).iterdir() if ".onnx" in path.name}
    yield from (artefact(name) for name in sorted(names) if name.endswith(".onnx"))


def artefact(name: str) -> Path:
    """Give one artefact; one without its seeded weights is rebuilt first."""
    path = KIT / MODELS / name
    if not path.exists():
        listed = json.loads(path.with_name(f"{name}.cuts.json").read_text(encoding="utf-8"))
        cuts = [Cut(cut["offset"], cut["dtype"], _drawn(cut["drawn"])) for cut in listed]
        whole = put_back(path.with_name(f"{name}.left").read_bytes(), cuts)
        partly = path.with_name(f"{name}.{os.getpid()}")
        partly.write_bytes(whole)
        partly.replace(path)
    return path


def _drawn(values: dict[str, Any]) -> Drawn:
    return Drawn(values["seed"], tuple(values["shape"]))


def kit_images(rows: int, columns: int) -> NDArray[np.uint8]:
    """Decode the kit's images: `(images, rows, columns, 3)` uint8 RGB."""
    from medimg.runtime.images.load import load_image
    from medimg.runtime.images.rule import ImageRule

    rule = ImageRule(rows, columns)
    return np.stack([load_image(path, rule) for path in sorted((KIT / IMAGES).glob("*.jpg"))])


STEPS: dict[str, Callable[[Report, float], None]] = {
    step.__name__: step for step in (machine, answers, speed, peers, decoding, files, tests, memory)
}

if __name__ == "__main__":
    STEPS[sys.argv[1]](Report(Path(sys.argv[2])), float(sys.argv[3]))
