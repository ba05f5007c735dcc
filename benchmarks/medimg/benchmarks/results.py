"""What a benchmark found: one tree of dataclasses, which is also the layout of its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from medimg.benchmarks.environment import Environment
from medimg.benchmarks.monitor import MachineLog

SCHEMA = 1
"""Layout of the JSON that this version writes."""

STAGES = ("queue", "decode", "preprocess", "copy_in", "infer", "copy_out", "postprocess")
"""The way of an image, in order."""

ScenarioName: TypeAlias = Literal["single-stream", "multi-stream", "offline", "server"]
DriverName: TypeAlias = Literal["loadgen", "native"]
ImagesFrom: TypeAlias = Literal["files", "arrays", "synthetic"]


@dataclass(frozen=True)
class ColdStart:
    """What the first answer costs a new process; the files may lie in the page cache."""

    import_s: float
    """From the start of the process until medimg and the back end are imported."""
    load_s: float
    """Checking, loading and compiling the artefact."""
    first_inference_s: float
    """The first batch."""
    peak_memory_mib: float
    """Largest resident memory of that process."""

    @property
    def total_s(self) -> float:
        """From the start of the process to the first answer."""
        return self.import_s + self.load_s + self.first_inference_s


@dataclass(frozen=True)
class WarmUp:
    """What ran before the clock was started; it is in no figure."""

    queries: int
    seconds: float
    stable: bool
    """Whether the criterion was met before the time was up."""
    criterion: str


@dataclass(frozen=True)
class Validity:
    """Whether a run satisfies the rules of MLPerf LoadGen for its scenario."""

    valid: bool
    reasons: tuple[str, ...]
    """What is not satisfied, and what would do; empty for a valid run."""
    early_stopping_ms: float | None
    """Upper bound of the scenario's percentile at 99 % confidence, from the queries there were."""


@dataclass(frozen=True)
class Trial:
    """One rate that was tried in `server`."""

    rate_per_s: float
    """Queries a second as scheduled, one image each."""
    p50_ms: float
    p99_ms: float
    held: bool
    """Whether the percentile stayed within the bound; of a run in full, whether it was valid."""


@dataclass(frozen=True)
class ServerLoad:
    """What `server` was run with."""

    latency_bound_ms: float
    rate_per_s: float
    """Queries a second as scheduled: the highest rate that held the bound, unless it was given."""
    trials: tuple[Trial, ...]
    """The search for it, in the order tried."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy mode: every image once, in the same scenario."""

    images: int
    correct: int
    accuracy: float


@dataclass(frozen=True)
class Run:
    """One scenario at one batch size."""

    scenario: ScenarioName
    """`single-stream`: one image after another; `multi-stream`: one group of images after another;
    `offline`: all images are there at the start; `server`: images arrive at random, as a Poisson process."""
    batch_size: int
    """Images a query; in `server`, the most that are answered together of those that wait."""
    samples: int
    """Images answered."""
    throughput_per_s: float
    """Images a second, over the whole run."""
    latency_ms: Mapping[str, float]
    """Of a query, from image to top-k: `p50`, `p90`, `p95`, `p99`, `p99.9`, `max`, `mean`.

    In `server` a query begins when it is due, whether or not anybody was free to see it. In `offline` a
    query is a batch; it begins where the one before it ended, and its images are decoded beside it.
    """
    stages_ms: Mapping[str, float | None]
    """Mean of each of `STAGES` a query; None where this path has no such stage, or it cannot be told apart.

    In `single-stream` they add up to the mean latency. Elsewhere they are busy times, summed over threads
    that overlap: their sum means nothing.
    """
    cold_start_s: float | None
    """From the start of a new process to its first answer at this batch size; None if not measured."""
    raw_ms: tuple[float, ...]
    """Latency of every query, in the order measured; none is left out."""
    percentile: str | None
    """What early stopping and `server`'s bound are about; None in `offline`."""
    at_s: tuple[float, ...]
    """When each of them began, in seconds from the start of the run."""
    utilisation: Mapping[str, float | None] | None
    """Busy share, 0 to 1, of the threads that may work at a stage; None in `single-stream`."""
    cold_start: ColdStart | None
    """The cold start in parts."""
    warm_up: WarmUp
    driver: DriverName
    """What sent the queries: MLPerf's LoadGen, or the built-in one with the same semantics."""
    validity: Validity
    server: ServerLoad | None
    """In `server` only."""
    machine: MachineLog | None
    """Clocks, temperature, throttling, memory, energy and other work; None if not watched."""
    accuracy: Accuracy | None
    """Of the accuracy mode; None if it was not asked for."""
    warnings: tuple[str, ...]
    """What makes this run's figures doubtful, and the likely cause."""


@dataclass(frozen=True)
class Knee:
    """Where a larger batch stops paying."""

    batch_size: int
    """The smallest with at least `share` of the highest throughput of all measured."""
    share: float
    throughput_per_s: float


@dataclass(frozen=True)
class Benchmark:
    """An artefact's figures on one machine."""

    model: str
    """The artefact, as it was named."""
    model_sha256: str | None
    """SHA-256 of the artefact without its medimg entry."""
    file_precision: str
    """What the file was made for."""
    precision: str
    """What its convolutions really ran in."""
    backend: str
    device: str
    threads: int
    """Processor threads for inference, and where images are decoded ahead as many again for decoding."""
    images_from: ImagesFrom
    """`files`: decoding counts; `arrays`: decoded before; `synthetic`: made, and of the network's size."""
    images: int
    """Different images used; they are drawn at random."""
    environment: Environment
    warnings: tuple[str, ...]
    """What makes the figures doubtful, and the likely cause."""
    complete: bool
    """False in a file that was written while runs were still to come."""
    knee: Knee | None
    """Of `offline`; None for fewer than three batch sizes."""
    runs: tuple[Run, ...]
