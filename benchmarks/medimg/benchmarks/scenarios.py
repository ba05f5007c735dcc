"""How queries arrive: MLPerf Inference's single-stream and offline scenarios.

Source:
    V. J. Reddi et al., MLPerf Inference Benchmark, ISCA 2020, table II.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

from medimg.benchmarks.pipeline import Fetched, Measurement, Pipeline
from medimg.benchmarks.results import ScenarioName
from medimg.runtime.data import Sample
from medimg.runtime.ordered import in_order, worker_threads


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
        worker_threads(load.threads, "decode") as decoders,
        worker_threads(pipeline.parallel, "infer") as runners,
    ):
        fetched = in_order(decoders, pipeline.fetch, load.samples, load.batch_size + 2 * load.threads)

        def queries() -> Iterator[list[Fetched]]:
            sent = 0
            while clock() < end or sent < load.least_queries:
                yield list(islice(fetched, load.batch_size))
                sent += 1

        answer = partial(pipeline.answer, measurement=found)
        for _ in in_order(runners, answer, queries(), pipeline.parallel):
            done = clock()
            found.latencies_ns.append(done - begun)
            begun = done
    found.elapsed_ns = begun - begin
    return found


SCENARIOS: Mapping[ScenarioName, Callable[[Pipeline, Load], Measurement]] = {
    "single-stream": single_stream,
    "offline": offline,
}
