"""The way of an image from its file to its most likely classes, with a clock at every stage."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medimg.benchmarks.clock import Clock, RealClock
from medimg.benchmarks.results import Validity
from medimg.runtime.classifier import best_classes
from medimg.runtime.data import Sample
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.tasks import Probabilities
from medimg.runtime.tasks.probabilities import require_numbers

TOP_K = 5
"""Classes a query answers with, as `medimg-run predict` does unless told otherwise."""


@dataclass
class Measurement:
    """What a scenario saw, in nanoseconds."""

    latencies_ns: list[int] = field(default_factory=list)
    """One a query, in order."""
    begins_ns: list[int] = field(default_factory=list)
    """When each of them began, from the start of the run; in `server`, when it was due."""
    stages_ns: dict[str, int] = field(default_factory=dict)
    """Sum over the run, by stage."""
    answers: dict[int, int] = field(default_factory=dict)
    """The last first class of each sample, by its index."""
    images: int = 0
    elapsed_ns: int = 0
    validity: Validity | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, stages_ns: Iterable[tuple[str, int]], images: int) -> None:
        """Count images and the time that their stages took; several threads may call it at once."""
        with self._lock:
            for stage, duration_ns in stages_ns:
                self.stages_ns[stage] = self.stages_ns.get(stage, 0) + duration_ns
            self.images += images


@dataclass(frozen=True)
class Fetched:
    """An image ready for the network, and what making it took."""

    image: Images
    """`(rows, columns, 3)` uint8 RGB."""
    stage: str
    """`decode` for a file, which includes the resize; `preprocess` for an array."""
    duration_ns: int
    name: str = "image"
    """What the image is called in messages."""


@dataclass(frozen=True)
class Pipeline:
    """All that happens in a query."""

    infer: Callable[[Images], Probabilities]
    """`(batch, rows, columns, 3)` uint8 RGB to `(batch, classes)`."""
    spec: ModelSpec
    clock: Clock = field(default_factory=RealClock)
    parallel: int = 1
    """Calls of `infer` at once, where a scenario has several queries under way."""

    def fetch(self, sample: Sample) -> Fetched:
        """Read and resize one image.

        Raises:
            ImageError: it cannot be read.
        """
        start = self.clock.now_ns()
        image = sample.load(self.spec.image)
        stage = "decode" if isinstance(sample.source, Path) else "preprocess"
        return Fetched(image, stage, self.clock.now_ns() - start, sample.name)

    def answer(self, fetched: Sequence[Fetched], found: Measurement) -> list[int]:
        """Classify one batch, count the time of every stage, and give each image's first class."""
        now_ns = self.clock.now_ns
        start = now_ns()
        batch = np.stack([item.image for item in fetched])
        stacked = now_ns()
        probabilities = self.infer(batch)
        inferred = now_ns()
        require_numbers(probabilities, (item.name for item in fetched))
        best = best_classes(probabilities, self.spec.labels, TOP_K)
        done = now_ns()
        stages = [(item.stage, item.duration_ns) for item in fetched]
        stages += [
            ("preprocess", stacked - start), ("infer", inferred - stacked), ("postprocess", done - inferred),
        ]  # fmt: skip
        found.add(stages, len(fetched))
        return [scores[0].index for scores in best]
