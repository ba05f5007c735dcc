"""What a benchmark found: one tree of dataclasses, which is also the layout of its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from medimg.benchmarks.environment import Environment

SCHEMA = 1
"""Layout of the JSON that this version writes."""

STAGES = ("queue", "decode", "preprocess", "copy_in", "infer", "copy_out", "postprocess")
"""The way of an image, in order."""

ScenarioName: TypeAlias = Literal["single-stream", "offline"]
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

    @property
    def total_s(self) -> float:
        """From the start of the process to the first answer."""
        return self.import_s + self.load_s + self.first_inference_s


@dataclass(frozen=True)
class Run:
    """One scenario at one batch size."""

    scenario: ScenarioName
    """`single-stream`: one image after another; `offline`: all images are there at the start."""
    batch_size: int
    """Images a query: a query is one call of the back end with all that is around it."""
    samples: int
    """Images answered."""
    throughput_per_s: float
    """Images a second, over the whole run."""
    latency_ms: Mapping[str, float]
    """Of a query, from image to top-k: `p50`, `p90`, `p95`, `p99`, `p99.9`, `max`, `mean`.

    In `offline` a query begins where the one before it ended, and its images are decoded beside it.
    """
    stages_ms: Mapping[str, float | None]
    """Mean of each of `STAGES` a query; None where this path has no such stage, or it cannot be told apart.

    In `single-stream` they add up to the mean latency. In `offline` they are busy times, decoding
    summed over its threads: they overlap, so their sum means nothing.
    """
    cold_start_s: float | None
    """From the start of a new process to its first answer at this batch size; None if not measured."""
    cold_start: ColdStart | None
    """The same in parts."""
    warm_up_queries: int
    """Queries run before the clock was started; they are in no figure."""
    raw_ms: tuple[float, ...]
    """Latency of every query, in the order measured; none is left out."""


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
    """Processor threads for inference, and in `offline` as many again for decoding."""
    images_from: ImagesFrom
    """`files`: decoding counts; `arrays`: decoded before; `synthetic`: made, and of the network's size."""
    images: int
    """Different images used; they are repeated in a fixed order."""
    environment: Environment
    warnings: tuple[str, ...]
    """What makes the figures doubtful, and the likely cause."""
    runs: tuple[Run, ...]
