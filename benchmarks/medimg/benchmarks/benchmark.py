"""Single-stream and offline runs of one artefact."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from medimg.benchmarks.cold_start import measure_cold_start
from medimg.benchmarks.environment import now, read_environment
from medimg.benchmarks.judgement import judge_machine, judge_precision, judge_run
from medimg.benchmarks.percentiles import samples_needed, summarise
from medimg.benchmarks.pipeline import Measurement, Pipeline
from medimg.benchmarks.queries import Queries, make_queries, read_queries
from medimg.benchmarks.results import STAGES, Benchmark, ColdStart, Run, ScenarioName
from medimg.benchmarks.scenarios import SCENARIOS, Load
from medimg.runtime.backends import Tuning
from medimg.runtime.classifier import Classifier
from medimg.runtime.cpus import usable_cpus
from medimg.runtime.errors import UsageError

DEFAULT_BATCH_SIZES = (8,)
DEFAULT_DURATION_S = 10.0
WARM_UP_S = 0.5
WARM_UP_QUERIES = 3
"""The clock starts after the longer of the two."""
LEAST_QUERIES: Mapping[ScenarioName, int] = {"single-stream": samples_needed(0.5), "offline": 1}
"""A run in which fewer fit is refused: latencies need a median at least, throughput one batch."""
TUNING: Mapping[ScenarioName, Tuning] = {"single-stream": "latency", "offline": "throughput"}
"""What the back end is tuned for."""

Progress: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What all runs of a benchmark share."""

    duration_s: float
    """Seconds a run, not counting its warm-up."""
    threads: int
    """For decoding ahead."""
    progress: Progress = lambda _step: None
    """Called with the name of each step as it begins."""
    cold_start: Callable[[int], ColdStart] | None = None
    """Measures a new process's first answer at a batch size; None to leave it out."""


def run_benchmark(
    model: str | Path,
    *,
    data: str | Path | None = None,
    scenarios: Sequence[ScenarioName] = ("single-stream", "offline"),
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    backend: str = "auto",
    device: str = "auto",
    duration_s: float = DEFAULT_DURATION_S,
    threads: int | None = None,
    progress: Progress = lambda _step: None,
) -> Benchmark:
    """Measure an exported artefact, from the image to its most likely classes.

    Args:
        model: an artefact of medimg-export.
        data: images to send, any kind of DATA; without it, made images of the network's size.
        scenarios: which to run. `single-stream` sends one image after another.
        batch_sizes: images a query in `offline`, a run each.
        backend: `auto` or the name of one.
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        duration_s: seconds a run, not counting its warm-up.
        threads: processor threads; all that this process may use unless given.
        progress: called with the name of each step as it begins.

    Raises:
        ModelError: the file cannot be used.
        BackendError: the back end or device cannot be had.
        DataError: `data` holds no image that can be read.
        UsageError: an option is out of its range, or `duration_s` is too short for the model.
    """
    plan = _plan(scenarios, batch_sizes, duration_s)
    started, load_average, threads = now(), os.getloadavg(), threads or usable_cpus()
    with ExitStack() as opened:
        classifiers = {
            name: opened.enter_context(
                Classifier(model, backend=backend, device=device, threads=threads, tuned_for=TUNING[name])
            )
            for name in dict(plan)
        }
        pipelines = {
            name: Pipeline(classifier.probabilities, classifier.spec, parallel=classifier.backend.parallel)
            for name, classifier in classifiers.items()
        }
        used, spec = next((item.backend, item.spec) for item in classifiers.values())
        queries = make_queries(spec.image) if data is None else read_queries(data, spec.image, threads)
        # What cannot run at all fails here, with its own message.
        for pipeline in pipelines.values():
            pipeline.answer([pipeline.fetch(queries.samples[0])], Measurement())
        cold_start = partial(
            measure_cold_start, model, backend=used.name, device=used.device, threads=threads
        )
        settings = Settings(duration_s, threads, progress, cold_start)
        runs = tuple(measure(pipelines, queries, plan, settings))
    environment = read_environment(started, load_average)
    return Benchmark(
        model=str(model),
        model_sha256=spec.artefact_sha256,
        file_precision=spec.precision,
        precision=used.precision,
        backend=used.name,
        device=used.device,
        threads=threads,
        images_from=queries.images_from,
        images=len(queries.samples),
        environment=environment,
        warnings=(
            *judge_machine(environment),
            *judge_precision(spec.precision, used.precision, used.name),
            *queries.warnings,
            *(warning for run in runs for warning in judge_run(run)),
        ),
        runs=runs,
    )


def measure(
    pipelines: Mapping[ScenarioName, Pipeline],
    queries: Queries,
    plan: Sequence[tuple[ScenarioName, int]],
    settings: Settings,
) -> Iterator[Run]:
    """Run each scenario of a plan, given with its images a query, on its own pipeline.

    Raises:
        UsageError: fewer queries than `LEAST_QUERIES` fit into the duration.
    """
    first_answers = _cold_starts(sorted({size for _, size in plan}), settings)
    for scenario, batch_size in plan:
        settings.progress(f"{scenario}, batch {batch_size}: {settings.duration_s:g} s")
        run = partial(SCENARIOS[scenario], pipelines[scenario])
        load = Load(queries.endless(), batch_size, settings.duration_s, settings.threads)
        warm_up = run(replace(load, duration_s=WARM_UP_S, least_queries=WARM_UP_QUERIES))
        _check_duration(scenario, load, warm_up)
        yield _to_run(scenario, batch_size, warm_up, run(load), first_answers.get(batch_size))


def _cold_starts(batch_sizes: Sequence[int], settings: Settings) -> dict[int, ColdStart]:
    found: dict[int, ColdStart] = {}
    if settings.cold_start:
        for size in batch_sizes:
            settings.progress(f"cold start, batch {size}")
            found[size] = settings.cold_start(size)
    return found


def _plan(
    scenarios: Sequence[ScenarioName], batch_sizes: Sequence[int], duration_s: float
) -> list[tuple[ScenarioName, int]]:
    if unknown := [name for name in scenarios if name not in SCENARIOS]:
        raise UsageError(f"no scenario {unknown[0]!r}: choose from {', '.join(SCENARIOS)}")
    if not scenarios or not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(
            f"scenarios {list(scenarios)} and batch sizes {list(batch_sizes)}: at least one, from 1 up"
        )
    if duration_s <= 0:
        raise UsageError(f"duration {duration_s:g} s is not above 0")
    sizes = {"single-stream": (1,), "offline": tuple(dict.fromkeys(batch_sizes))}
    return [(name, size) for name in dict.fromkeys(scenarios) for size in sizes[name]]


def _check_duration(scenario: ScenarioName, load: Load, warm_up: Measurement) -> None:
    query_s = summarise(warm_up.latencies_ns)["p50"] / 1e9
    least = LEAST_QUERIES[scenario]
    needed = least * query_s
    if load.duration_s < needed:
        raise UsageError(
            f"a duration of {load.duration_s:g} s is too short: {scenario} at batch {load.batch_size} takes "
            f"{query_s:.3g} s a query, so --duration must be {needed:.3g} or more (so that {least} fit)"
        )


def _to_run(
    scenario: ScenarioName,
    batch_size: int,
    warm_up: Measurement,
    found: Measurement,
    first: ColdStart | None,
) -> Run:
    raw_ms = tuple(latency / 1e6 for latency in found.latencies_ns)
    stages = {
        name: found.stages_ns[name] / 1e6 / len(raw_ms) if name in found.stages_ns else None
        for name in STAGES
    }
    return Run(
        scenario=scenario,
        batch_size=batch_size,
        samples=found.images,
        throughput_per_s=found.images / (found.elapsed_ns / 1e9),
        latency_ms=summarise(raw_ms),
        stages_ms=stages,
        cold_start_s=first.total_s if first else None,
        cold_start=first,
        warm_up_queries=len(warm_up.latencies_ns),
        raw_ms=raw_ms,
    )
