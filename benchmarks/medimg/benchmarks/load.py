"""What is asked of the system under test: how many images a query, which, and when."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.benchmarks.system import Indices

Nanoseconds: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Load:
    """What a scenario is run with."""

    batch_size: int
    """Images a query; in `server`, the most that are answered together."""
    duration_s: float
    """No query begins after this time."""
    samples: int
    """Images to draw from: the first so many."""
    share: float = 0.9
    """Of the queries that the scenario's percentile bounds."""
    least_queries: int = 1
    """Run so many even if they take longer."""
    expected_query_s: float = 0.01
    """How long a query is likely to take; LoadGen makes its queries beforehand."""
    rate_per_s: float = 0.0
    """Arrivals in `server`."""
    latency_bound_s: float = math.inf
    """Of the percentile, in `server`."""
    seed: int = 0
    every_image_once: bool = False
    """Accuracy mode: all images in order, however long they take."""

    def indices(self) -> Iterator[int]:
        """Draw samples at random and without end, or all once, as LoadGen does in its two modes."""
        if self.every_image_once:
            return iter(range(self.samples))
        random = np.random.default_rng(self.seed)
        return chain.from_iterable(random.integers(0, self.samples, 1024).tolist() for _ in count())

    def queries(self) -> Iterator[Indices]:
        """Group the samples."""
        indices = self.indices()
        return iter(lambda: list(islice(indices, self.batch_size)), [])

    def arrivals_ns(self) -> Nanoseconds:
        """Schedule the queries of `server`, from the start of the run."""
        if self.every_image_once:
            return poisson_arrivals_ns(
                self.rate_per_s, self.samples / self.rate_per_s, self.seed, self.samples
            )
        return poisson_arrivals_ns(self.rate_per_s, self.duration_s, self.seed)


def poisson_arrivals_ns(
    rate_per_s: float, duration_s: float, seed: int, queries: int | None = None
) -> Nanoseconds:
    """Draw the arrivals of a Poisson process: the very ones that LoadGen draws from the same seed.

    Each gap takes two words of a Mersenne Twister, low word first, as `std::exponential_distribution` of
    GNU's libstdc++ does. The first query is due at 0, the last is the first one due at or after the duration.

    Args:
        rate_per_s: queries a second, on average.
        duration_s: how long they come.
        seed: of the generator.
        queries: exactly so many instead, however long they take.
    """
    # A hundred standard deviations above the mean are never reached.
    mean = rate_per_s * duration_s
    gaps = queries or math.ceil(mean + 100 * math.sqrt(mean) + 100)
    words = np.random.RandomState(seed).randint(0, 2**32, size=2 * gaps, dtype=np.uint32).astype(np.float64)
    uniform = (words[0::2] + words[1::2] * 2.0**32) / 2.0**64
    gaps_ns = (-np.log(1 - uniform) / rate_per_s * 1e9).astype(np.int64)
    due = np.concatenate([[0], np.cumsum(gaps_ns)])
    return due[: queries or 1 + int(np.searchsorted(due, round(duration_s * 1e9)))]
