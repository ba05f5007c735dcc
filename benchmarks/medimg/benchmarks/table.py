"""A benchmark's figures for people, within 80 columns."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from medimg.benchmarks.comparison import BenchmarkComparison
from medimg.benchmarks.percentiles import too_few
from medimg.benchmarks.results import STAGES, Benchmark, Run
from medimg.runtime.text import printable

IMAGES = {
    "files": "images: {} files, decoded in every query",
    "arrays": "images: {} arrays, decoded before; no decoding in these figures",
    "synthetic": "images: {} synthetic arrays; no decoding in these figures (--data has it)",
}
DRIVERS = {
    "loadgen": "queries sent by MLPerf LoadGen",
    "native": "queries sent by medimg, by LoadGen's rules",
}
WIDTH = 80
_LATENCIES = ("p50", "p90", "p99", "p99.9", "max", "mean")
_STAGE_WIDTHS = {stage: max(len(stage), 7) + 1 for stage in STAGES}


def show(benchmark: Benchmark) -> list[str]:
    """Lay out the figures, a line each."""
    return list(_lines(benchmark))


def show_comparison(comparison: BenchmarkComparison) -> list[str]:
    """Lay out what changed, a line each."""
    lines = [f"{'scenario':<13} batch {'measure':<9} {'before':>8} {'after':>8}  speed  95 % interval"]
    for change in comparison.changes:
        interval = change.speed_ratio_ci95
        sure = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "too few queries"
        lines.append(
            f"{change.scenario:<13} {change.batch_size:>5} {change.measure:<9} {digits(change.before):>8} "
            f"{digits(change.after):>8} {change.speed_ratio:>6.3f}  {sure:<15} {change.judgement}"
        )
    return lines


def _lines(benchmark: Benchmark) -> Iterator[str]:
    environment = benchmark.environment
    version = environment.packages.get(benchmark.backend, "")
    name = printable(Path(benchmark.model).name)
    yield f"{name}: {benchmark.precision} by {benchmark.backend} {version}".rstrip()
    yield f"{environment.cpu}, {benchmark.threads} of {environment.cores} cores, {benchmark.device}"
    yield IMAGES[benchmark.images_from].format(benchmark.images)
    yield DRIVERS[benchmark.runs[0].driver]
    yield ""
    yield f"{'latency, ms':<13} batch  images images/s" + "".join(f"{name:>7}" for name in _LATENCIES)
    yield from map(_latencies, benchmark.runs)
    if any(too_few(len(run.raw_ms)) for run in benchmark.runs):
        yield f"{'':<13} ( ) rests on too few queries"
    yield ""
    yield f"{'stages, ms':<13}" + "".join(
        f"{name.replace('_', ' '):>{_STAGE_WIDTHS[name]}}" for name in STAGES
    )
    yield from map(_stages, benchmark.runs)
    used = [run for run in benchmark.runs if run.utilisation]
    if used:
        yield "busy, %"
        yield from map(_utilisation, used)
    yield ""
    for words in facts(benchmark):
        yield from textwrap.wrap(words, WIDTH, subsequent_indent="  ")


def facts(benchmark: Benchmark) -> Iterator[str]:
    """Say in words what the tables have no room for."""
    for run in benchmark.runs:
        name = f"{run.scenario}, batch {run.batch_size}"
        yield f"{name}: {_validity(run)}"
        if run.server:
            yield (
                f"{name}: {digits(run.server.rate_per_s)} images a second hold {run.percentile} within "
                f"{run.server.latency_bound_ms:g} ms ({len(run.server.trials)} rates tried)"
            )
        if run.accuracy:
            found = run.accuracy
            yield f"{name}: accuracy {found.accuracy:.4f}, {found.correct} of {found.images} images"
        yield f"{name}: {_machine(run)}"
    if benchmark.knee:
        knee = benchmark.knee
        yield (
            f"knee: batch {knee.batch_size} is the smallest with {knee.share:.0%} of the highest throughput "
            f"({digits(knee.throughput_per_s)} images/s)"
        )
    yield from _cold_starts(benchmark.runs)


def _validity(run: Run) -> str:
    state = "VALID" if run.validity.valid else "INVALID"
    if run.validity.early_stopping_ms is None or run.percentile is None:
        return state
    return f"{state}, {run.percentile} at most {digits(run.validity.early_stopping_ms)} ms (99 % confidence)"


def _machine(run: Run) -> str:
    if run.machine is None:
        return "the machine was not watched"
    found = run.machine
    clocks = [state.clock_mhz for state in (found.before, *found.during, found.after) if state.clock_mhz]
    heat = [
        state.temperature_c
        for state in (found.before, *found.during, found.after)
        if state.temperature_c is not None
    ]
    parts = [
        f"{found.own_cores:.1f} cores used, {found.other_cores:.1f} by others",
        f"memory {found.peak_memory_mib:.0f} MiB" if found.peak_memory_mib else "memory not available",
        f"{min(clocks):.0f} to {max(clocks):.0f} MHz" if clocks else "clocks not available",
        f"{min(heat):.0f} to {max(heat):.0f} °C" if heat else "temperature not available",
        {True: "throttled", False: "not throttled", None: "throttling not available"}[found.throttled],
        f"{digits(found.energy.joules_per_image)} J an image ({found.energy.source})"
        if found.energy
        else "energy not available",
    ]
    return ", ".join(parts)


def _latencies(run: Run) -> str:
    doubtful = too_few(len(run.raw_ms))
    figures = "".join(
        f"{f'({value})' if name in doubtful else value:>7}"
        for name, value in ((name, digits(run.latency_ms[name])) for name in _LATENCIES)
    )
    return (
        f"{run.scenario:<13} {run.batch_size:>5} {run.samples:>7} {digits(run.throughput_per_s):>8}{figures}"
    )


def _name(run: Run) -> str:
    return f"{run.scenario:<13}" if run.scenario == "single-stream" else f"{run.scenario} {run.batch_size}"


def _stages(run: Run) -> str:
    return f"{_name(run):<13.13}" + "".join(
        f"{'-' if run.stages_ms[stage] is None else digits(run.stages_ms[stage]):>{width}}"
        for stage, width in _STAGE_WIDTHS.items()
    )


def _utilisation(run: Run) -> str:
    shares = run.utilisation or {}
    return f"{_name(run):<13.13}" + "".join(
        f"{'-' if (share := shares.get(stage)) is None else f'{100 * share:.0f}':>{width}}"
        for stage, width in _STAGE_WIDTHS.items()
    )


def _cold_starts(runs: tuple[Run, ...]) -> Iterator[str]:
    by_size = {run.batch_size: run.cold_start for run in runs if run.cold_start}
    for size, first in by_size.items():
        yield (
            f"cold start, batch {size}: {first.total_s:.2f} s (import {first.import_s:.2f}, "
            f"load {first.load_s:.2f}, first inference {first.first_inference_s:.2f}), "
            f"{first.peak_memory_mib:.0f} MiB"
        )


def digits(value: float | None) -> str:
    """Write three significant digits, and never fewer than the whole number."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
