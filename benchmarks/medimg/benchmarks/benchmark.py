"""Runs of one artefact: each scenario, at each batch size."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from medimg.benchmarks import with_loadgen
from medimg.benchmarks.cold_start import measure_cold_start
from medimg.benchmarks.environment import Environment, now, read_environment
from medimg.benchmarks.judgement import judge_machine, judge_precision
from medimg.benchmarks.measuring import Progress, Settings, measure
from medimg.benchmarks.percentiles import SHARES
from medimg.benchmarks.pipeline import Measurement, Pipeline
from medimg.benchmarks.queries import Queries, make_queries, read_queries
from medimg.benchmarks.results import Benchmark, DriverName, Knee, Run, ScenarioName
from medimg.benchmarks.sensors import Processor, open_gpu
from medimg.runtime.backends import Backend, Tuning
from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import UsageError
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import require

BATCH_SIZES: Mapping[ScenarioName, tuple[int, ...]] = {
    "single-stream": (1,),
    "multi-stream": (8,),
    "offline": (8,),
    "server": (1,),
}
"""Unless others are asked for; `single-stream` has no other. Eight is MLPerf's multi-stream."""
DEFAULT_DURATION_S = 10.0
TUNING: Mapping[ScenarioName, Tuning] = {
    "single-stream": "latency",
    "multi-stream": "latency",
    "offline": "throughput",
    "server": "throughput",
}
"""What the back end is tuned for."""
KNEE_SHARE = 0.95

DriverOption: TypeAlias = Literal["auto", "loadgen", "native"]


def run_benchmark(
    model: str | Path,
    *,
    data: str | Path | None = None,
    images_from: Literal["files", "arrays"] | None = None,
    scenarios: Sequence[ScenarioName] = ("single-stream", "offline"),
    batch_sizes: Sequence[int] | None = None,
    backend: str = "auto",
    device: str = "auto",
    duration_s: float = DEFAULT_DURATION_S,
    driver: DriverOption = "auto",
    percentile: str | None = None,
    latency_bound_ms: float | None = None,
    rate_per_s: float | None = None,
    accuracy: bool = False,
    logs: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = lambda _step: None,
    on_run: Callable[[Benchmark], None] = lambda _so_far: None,
) -> Benchmark:
    """Measure an exported artefact, from the image to its most likely classes.

    Args:
        model: an artefact of medimg-export.
        data: images to send, any kind of DATA; without it, made images of the network's size.
        images_from: `arrays` decodes the images of `data` before the clock is started.
        scenarios: which to run.
        batch_sizes: images a query, a run each, in all scenarios but `single-stream`; in `server`, the most
            that are answered together. Unless given, 8, and 1 in `server`.
        backend: `auto` or the name of one.
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        duration_s: seconds a run, not counting its warm-up.
        driver: `loadgen`, MLPerf's own; `native`, the same rules from Python; `auto` takes LoadGen where it
            is installed.
        percentile: such as `p99`: the duration must be long enough for it.
        latency_bound_ms: what the percentile must stay within in `server`.
        rate_per_s: arrivals in `server`; unless given, the highest rate that holds the bound is looked for.
        accuracy: run accuracy mode too; `data` must be labelled with the model's classes.
        logs: a folder for LoadGen's logs, one below it a run.
        threads: processor threads; all that this process may use unless given.
        progress: called with the name of each step as it begins.
        on_run: called after each run with what has been found so far.

    Raises:
        ModelError: the file cannot be used.
        BackendError: the back end or device cannot be had.
        DataError: `data` holds no image that can be read, or (for accuracy) not the model's classes.
        UsageError: options do not fit together, or `duration_s` is too short for the model.
    """
    plan = make_plan(scenarios, batch_sizes)
    _check(plan, duration_s, percentile, latency_bound_ms, rate_per_s)
    if data is None and (accuracy or images_from):
        raise UsageError("accuracy, and a choice where images come from, need data: name them with --data")
    chosen = choose_driver(driver, logs=logs is not None)
    started, load_average, threads = now(), os.getloadavg(), threads or usable_cpus()
    with ExitStack() as opened:
        classifiers = {
            name: opened.enter_context(
                Classifier(model, backend=backend, device=device, threads=threads, tuned_for=TUNING[name])
            )
            for name in dict(plan)
        }
        pipelines = {
            name: Pipeline(item.probabilities, item.spec, parallel=item.backend.parallel)
            for name, item in classifiers.items()
        }
        used, spec = next((item.backend, item.spec) for item in classifiers.values())
        queries = _queries(data, spec, threads, images_from, accuracy=accuracy)
        # What cannot run at all fails here, with its own message.
        for pipeline in pipelines.values():
            pipeline.answer([pipeline.fetch(queries.samples[0])], Measurement())
        settings = Settings(
            duration_s,
            threads,
            progress,
            partial(measure_cold_start, model, backend=used.name, device=used.device, threads=threads),
            chosen,
            percentile,
            latency_bound_ms,
            rate_per_s,
            accuracy,
            None if logs is None else Path(logs),
            Processor(),
            opened.enter_context(open_gpu(used.device)),
        )
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


def _queries(
    data: str | Path | None, spec: ModelSpec, threads: int, images_from: str | None, *, accuracy: bool
) -> Queries:
    """Read the images to send, or make them."""
    if data is None:
        return make_queries(spec.image)
    queries = read_queries(data, spec.image, threads, spec.labels if accuracy else None, spec.allowed)
    return queries.decoded(spec.image) if images_from == "arrays" else queries


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


def make_plan(
    scenarios: Sequence[ScenarioName], batch_sizes: Sequence[int] | None
) -> list[tuple[ScenarioName, int]]:
    """List the runs.

    Raises:
        UsageError: there is none, or an unknown one.
    """
    if unknown := [name for name in scenarios if name not in BATCH_SIZES]:
        raise UsageError(f"no scenario {unknown[0]!r}: choose from {', '.join(BATCH_SIZES)}")
    if not scenarios or (batch_sizes is not None and (not batch_sizes or min(batch_sizes) < 1)):
        raise UsageError(
            f"scenarios {list(scenarios)} and batch sizes {list(batch_sizes or ())}: at least one, from 1 up"
        )
    return [
        (name, size)
        for name in dict.fromkeys(scenarios)
        for size in dict.fromkeys(
            BATCH_SIZES[name] if batch_sizes is None or name == "single-stream" else batch_sizes
        )
    ]


def _check(
    plan: Sequence[tuple[ScenarioName, int]],
    duration_s: float,
    percentile: str | None,
    latency_bound_ms: float | None,
    rate_per_s: float | None,
) -> None:
    if duration_s <= 0:
        raise UsageError(f"duration {duration_s:g} s is not above 0")
    if percentile is not None and percentile not in SHARES:
        raise UsageError(f"no percentile {percentile!r}: choose from {', '.join(SHARES)}")
    if "server" in dict(plan) and not (latency_bound_ms and latency_bound_ms > 0):
        raise UsageError("server needs a latency bound: name it in milliseconds with --latency-bound")
    if rate_per_s is not None and not 0 < rate_per_s < math.inf:
        raise UsageError(f"a rate of {rate_per_s:g} images a second is not above 0")
