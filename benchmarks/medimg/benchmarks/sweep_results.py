"""What a sweep found, which is also the layout of its JSON."""

from dataclasses import dataclass
from typing import Literal

from medimg.benchmarks.results import Benchmark


@dataclass(frozen=True)
class MeasuredAccuracy:
    """How often an artefact is right."""

    accuracy: float
    images: int
    source: Literal["data", "verification"]
    """Counted in the sweep on the images given, or by medimg-export on its own."""
    right: tuple[bool, ...]
    """Of each image, in the data's order; empty for `verification`."""
    drop_ci95: tuple[float, float] | None
    """Drop below Keras, 95 % interval; for `verification` only."""


@dataclass(frozen=True)
class SweepRow:
    """One artefact on one back end."""

    artefact: str
    """Name of the file."""
    file_precision: str
    precision: str
    """What really ran."""
    backend: str
    device: str
    p50_ms: float
    """Of one image after another, from image to top-k."""
    p99_ms: float
    throughput_per_s: float
    """Images a second in offline, at the best batch size."""
    batch_size: int
    """That size."""
    accuracy: MeasuredAccuracy | None
    accuracy_drop_ci95: tuple[float, float] | None
    """Drop below the most accurate row on the same images (or below Keras), 95 % interval."""
    on_front: bool
    """Whether no other row is as fast by p99 and as accurate, and better in one of the two."""
    benchmark: Benchmark
    """All of its figures."""


@dataclass(frozen=True)
class Skipped:
    """A combination that cannot run here."""

    artefact: str
    backend: str
    reason: str


@dataclass(frozen=True)
class Sweep:
    """All combinations of a folder."""

    folder: str
    latency_budget_ms: float | None
    recommendation: tuple[str, ...]
    """What to take and why, a sentence each."""
    rows: tuple[SweepRow, ...]
    """Fastest first."""
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    complete: bool
    """False in a file that was written while combinations were still to come."""
