"""How queries arrive: MLPerf Inference's single-stream and offline scenarios.

Source:
    V. J. Reddi et al., MLPerf Inference Benchmark, ISCA 2020, table II.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from medimg.benchmarks.pipeline import Fetched, Measurement, Pipeline
from medimg.benchmarks.results import ScenarioName
from medimg.runtime.data import Sample


@dataclass(frozen=True)
class Load:
    """What a scenario is run with."""

    samples: Iterator[Sample]
    """Endless."""
    batch_size: int
    """Images a query."""
    duration_s: float
    """No query begins after this time."""
    threads: int
    """For decoding, where a scenario decodes ahead."""
    least_queries: int = 1
    """Run so many even if they take longer."""


def single_stream(pipeline: Pipeline, load: Load) -> Measurement:
    """Send each query when the one before it is answered; everything happens in one thread."""
    found = Measurement()
    clock = pipeline.clock_ns
    begun = begin = clock()
    end = begin + round(load.duration_s * 1e9)
    while begun < end or len(found.latencies_ns) < load.least_queries:
        pipeline.answer([pipeline.fetch(next(load.samples)) for _ in range(load.batch_size)], found)
        done = clock()
        found.latencies_ns.append(done - begun)
        begun = done
    found.elapsed_ns = begun - begin
    return found


def offline(pipeline: Pipeline, load: Load) -> Measurement:
    """Answer images that are all there at the start, decoding ahead in threads as `predict` does."""
    found = Measurement()
    clock = pipeline.clock_ns
    begun = begin = clock()
    end = begin + round(load.duration_s * 1e9)
    with (
        ThreadPoolExecutor(load.threads) as pool,
        closing(_fetched_ahead(pool, pipeline, load)) as images,
    ):
        while begun < end or len(found.latencies_ns) < load.least_queries:
            pipeline.answer([next(images) for _ in range(load.batch_size)], found)
            done = clock()
            found.latencies_ns.append(done - begun)
            begun = done
    found.elapsed_ns = begun - begin
    return found


def _fetched_ahead(pool: ThreadPoolExecutor, pipeline: Pipeline, load: Load) -> Generator[Fetched]:
    waiting: deque[Future[Fetched]] = deque()
    try:
        for _ in range(load.batch_size + 2 * load.threads):
            waiting.append(pool.submit(pipeline.fetch, next(load.samples)))
        while True:
            done = waiting.popleft()
            waiting.append(pool.submit(pipeline.fetch, next(load.samples)))
            yield done.result()
    finally:
        for future in waiting:
            future.cancel()


SCENARIOS: Mapping[ScenarioName, Callable[[Pipeline, Load], Measurement]] = {
    "single-stream": single_stream,
    "offline": offline,
}
