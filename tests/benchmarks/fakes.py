"""Time, back ends and machines whose behaviour is known exactly."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.benchmarks.environment import Environment
from medimg.benchmarks.measuring import Settings, measure
from medimg.benchmarks.percentiles import summarise
from medimg.benchmarks.pipeline import Pipeline
from medimg.benchmarks.queries import make_queries
from medimg.benchmarks.results import STAGES, Benchmark, Run, ScenarioName, Validity, WarmUp
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.spec import ModelSpec

MACHINE = Environment(
    started="2026-01-01T00:00:00+00:00",
    cpu="a processor",
    cpu_features=("avx2",),
    cores=4,
    affinity=(0, 1, 2, 3),
    governor=None,
    load_average=(0.0, 0.0, 0.0),
    kernel="6",
    machine="x86_64",
    python="3.11",
    medimg="0.1.0",
    packages={},
)


class FakeClock:
    """Time that passes only when told, so that what is measured is known exactly."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def sleep_until_ns(self, when_ns: int) -> None:
        self.ns = max(self.ns, when_ns)


class FakeBackend:
    """Its n-th call takes `latency_ms(n)` on a fake clock."""

    def __init__(self, clock: FakeClock, latency_ms: Callable[[int], float]) -> None:
        self.clock = clock
        self.latency_ms = latency_ms
        self.latencies: list[float] = []
        """Of every call, those of the warm-up first."""

    def infer(self, images: Images) -> NDArray[np.float32]:
        self.latencies.append(self.latency_ms(len(self.latencies)))
        self.clock.ns += round(self.latencies[-1] * 1e6)
        return np.full((len(images), 3), 1 / 3, np.float32)


def measured(
    spec: ModelSpec,
    latency_ms: Callable[[int], float],
    scenario: ScenarioName = "single-stream",
    batch_size: int = 1,
    **settings: Any,
) -> tuple[Run, FakeBackend]:
    """Run a scenario on a fake back end, on a fake clock."""
    clock = FakeClock()
    backend = FakeBackend(clock, latency_ms)
    (run,) = measure(
        {scenario: Pipeline(backend.infer, spec, clock)},
        make_queries(spec.image),
        [(scenario, batch_size)],
        Settings(**{"duration_s": 60 if scenario == "server" else 20, "threads": 2, **settings}),
    )
    return run, backend


def run_of(raw_ms: NDArray[np.float64], scenario: ScenarioName = "single-stream", batch_size: int = 1) -> Run:
    """Give a run of known latencies, one query after another."""
    values = tuple(float(value) for value in raw_ms)
    seconds = np.cumsum(raw_ms) / 1e3
    return Run(
        scenario=scenario,
        batch_size=batch_size,
        samples=len(values) * batch_size,
        throughput_per_s=len(values) * batch_size / float(seconds[-1]),
        latency_ms=summarise(values),
        stages_ms=dict.fromkeys(STAGES),
        cold_start_s=None,
        raw_ms=values,
        percentile=None if scenario == "offline" else "p90",
        at_s=(0.0, *seconds[:-1].tolist()),
        utilisation=None,
        cold_start=None,
        warm_up=WarmUp(3, 1.0, True, "as stated"),
        driver="native",
        validity=Validity(True, (), None),
        server=None,
        machine=None,
        accuracy=None,
        warnings=(),
    )


def result(*runs: Run, **changes: Any) -> Benchmark:
    """Give a benchmark of known runs."""
    made = Benchmark(
        model="m.onnx",
        model_sha256=None,
        file_precision="fp32",
        precision="fp32",
        backend="openvino",
        device="cpu",
        threads=2,
        images_from="synthetic",
        images=64,
        environment=MACHINE,
        warnings=(),
        complete=True,
        knee=None,
        runs=runs,
    )
    return replace(made, **changes)


def write_images(folder: Path, count: int) -> None:
    """Write readable PNG files."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), pixels)


def browse(page: Path) -> str:
    """Open a page in a real browser, and give the document that it made of it."""
    browser = shutil.which("chromium")
    assert browser, "no chromium: install the package chromium"
    quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={profile}"]
        done = subprocess.run(
            [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=120
        )
    return done.stdout
