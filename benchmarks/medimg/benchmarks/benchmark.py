"""Runs of one artefact: each scenario, at each batch size."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from medimg.benchmarks import with_loadgen
from medimg.benchmarks.cold_start import measure_cold_start
from medimg.benchmarks.environment import Environment, now, read_environment
from medimg.benchmarks.judgement import judge_machine, judge_precision
from medimg.benchmarks.measuring import Progress, Settings, measure
from medimg.benchmarks.options import BenchmarkOptions, DriverOption
from medimg.benchmarks.pipeline import Measurement, Pipeline
from medimg.benchmarks.queries import Queries, make_queries, read_queries
from medimg.benchmarks.results import Benchmark, ColdStart, DriverName, Knee, Run, ScenarioName
from medimg.benchmarks.sensors import Processor, open_gpu
from medimg.runtime.backends import Backend, Tuning
from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import UsageError
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import require

TUNING: Mapping[ScenarioName, Tuning] = {
    "single-stream": "latency",
    "multi-stream": "latency",
    "offline": "throughput",
    "server": "throughput",
}
"""What the back end is tuned for."""
KNEE_SHARE = 0.95


def run_benchmark(
    model: str | Path,
    options: BenchmarkOptions | None = None,
    *,
    threads: int | None = None,
    progress: Progress = lambda _step: None,
    on_run: Callable[[Benchmark], None] = lambda _so_far: None,
) -> Benchmark:
    """Measure an exported artefact, from the image to its most likely classes.

    Args:
        model: an artefact of medimg-export.
        options: which runs, how long, with what.
        threads: processor threads; all that this process may use unless given.
        progress: called with the name of each step as it begins.
        on_run: called after each run with what has been found so far.

    Raises:
        ModelError: the file cannot be used.
        BackendError: the back end or device cannot be had.
        DataError: the data hold no image that can be read, or (for accuracy) not the model's classes.
        UsageError: the duration is too short for the model.
    """
    options = options or BenchmarkOptions()
    plan = options.plan
    chosen = choose_driver(options.driver, logs=options.logs is not None)
    started, load_average, threads = now(), os.getloadavg(), threads or usable_cpus()
    with ExitStack() as opened:
        classifiers = {
            name: opened.enter_context(_open(model, options, threads, TUNING[name])) for name in dict(plan)
        }
        pipelines = {
            name: Pipeline(item.probabilities, item.spec, parallel=item.backend.parallel)
            for name, item in classifiers.items()
        }
        used, spec = next((item.backend, item.spec) for item in classifiers.values())
        queries = _queries(options, spec, threads)
        # What cannot run at all fails here, with its own message.
        for pipeline in pipelines.values():
            pipeline.answer([pipeline.fetch(queries.samples[0])], Measurement())
        cold_start = partial(
            measure_cold_start, model, backend=used.name, device=used.device, threads=threads
        )
        settings = _settings(options, chosen, threads, progress, cold_start)
        settings = replace(settings, gpu=opened.enter_context(open_gpu(used.device)))
        runs: list[Run] = []
        found = None
        for run in measure(pipelines, queries, plan, settings):
            runs.append(run)
            # Looked at once a run is over: it imports every back end.
            environment = found.environment if found else read_environment(started, load_average)
            found = Benchmark(
                model=str(model),
                model_sha256=spec.artefact_sha256,
                file_precision=spec.precision,
                precision=used.precision,
                backend=used.name,
                device=used.device,
                threads=threads,
                images_from=queries.images_from,
                images=queries.measured,
                environment=environment,
                warnings=_warnings(environment, spec, used, queries, runs),
                complete=len(runs) == len(plan),
                knee=find_knee(runs),
                runs=tuple(runs),
            )
            on_run(found)
    assert found, "a plan has a run"
    return found


def _open(model: str | Path, options: BenchmarkOptions, threads: int, tuned_for: Tuning) -> Classifier:
    return Classifier(
        model, backend=options.backend, device=options.device, threads=threads, tuned_for=tuned_for
    )


def _settings(
    options: BenchmarkOptions,
    driver: DriverName,
    threads: int,
    progress: Progress,
    cold_start: Callable[[int], ColdStart],
) -> Settings:
    return Settings(
        options.duration_s,
        threads,
        progress,
        cold_start,
        driver,
        options.percentile,
        options.latency_bound_ms,
        options.rate_per_s,
        options.accuracy,
        None if options.logs is None else Path(options.logs),
        Processor(),
    )


def _queries(options: BenchmarkOptions, spec: ModelSpec, threads: int) -> Queries:
    """Read the images to send, or make them."""
    if options.data is None:
        return make_queries(spec.image)
    labels = spec.labels if options.accuracy else None
    queries = read_queries(options.data, spec.image, threads, labels, spec.allowed)
    return queries.decoded(spec.image) if options.images_from == "arrays" else queries


def _warnings(
    environment: Environment, spec: ModelSpec, used: Backend, queries: Queries, runs: Sequence[Run]
) -> tuple[str, ...]:
    return (
        *judge_machine(environment),
        *judge_precision(spec.precision, used.precision, used.name),
        *queries.warnings,
        *(warning for run in runs for warning in run.warnings),
    )


def choose_driver(driver: DriverOption, *, logs: bool = False) -> DriverName:
    """Take LoadGen for `auto` where it is installed.

    Raises:
        MissingDependencyError: LoadGen is asked for and not installed.
        UsageError: LoadGen's logs are asked for without it.
    """
    chosen: DriverName = driver if driver != "auto" else "loadgen" if with_loadgen.installed() else "native"
    if driver == "loadgen":
        require("mlperf_loadgen", "bench")
    if logs and chosen == "native":
        raise UsageError("logs are LoadGen's own: they need --driver loadgen, and medimg[bench] for it")
    return chosen


def find_knee(runs: Sequence[Run]) -> Knee | None:
    """Find the smallest batch size of `offline` that gives nearly the highest throughput."""
    curve = sorted((run.batch_size, run.throughput_per_s) for run in runs if run.scenario == "offline")
    if len(curve) < 3:
        return None
    highest = max(rate for _, rate in curve)
    return next(Knee(size, KNEE_SHARE, rate) for size, rate in curve if rate >= KNEE_SHARE * highest)
