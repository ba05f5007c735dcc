"""A benchmark's figures for people, within 80 columns."""

from collections.abc import Iterator
from pathlib import Path

from medimg.benchmarks.comparison import BenchmarkComparison
from medimg.benchmarks.percentiles import too_few
from medimg.benchmarks.results import STAGES, Benchmark, Run
from medimg.runtime.text import printable

_IMAGES = {
    "files": "images: {} files, decoded in every query",
    "arrays": "images: {} arrays, decoded before; no decoding in these figures",
    "synthetic": "images: {} synthetic arrays; no decoding in these figures (--data has it)",
}
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
            f"{change.scenario:<13} {change.batch_size:>5} {change.measure:<9} {_digits(change.before):>8} "
            f"{_digits(change.after):>8} {change.speed_ratio:>6.3f}  {sure:<15} {change.judgement}"
        )
    return lines


def _lines(benchmark: Benchmark) -> Iterator[str]:
    environment = benchmark.environment
    version = environment.packages.get(benchmark.backend, "")
    name = printable(Path(benchmark.model).name)
    yield f"{name}: {benchmark.precision} by {benchmark.backend} {version}".rstrip()
    yield f"{environment.cpu}, {benchmark.threads} of {environment.cores} cores, {benchmark.device}"
    yield _IMAGES[benchmark.images_from].format(benchmark.images)
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
    yield from _cold_starts(benchmark.runs)


def _latencies(run: Run) -> str:
    doubtful = too_few(len(run.raw_ms))
    figures = "".join(
        f"{f'({value})' if name in doubtful else value:>7}"
        for name, value in ((name, _digits(run.latency_ms[name])) for name in _LATENCIES)
    )
    return (
        f"{run.scenario:<13} {run.batch_size:>5} {run.samples:>7} {_digits(run.throughput_per_s):>8}{figures}"
    )


def _stages(run: Run) -> str:
    name = f"{run.scenario:<13}" if run.scenario == "single-stream" else f"{run.scenario} {run.batch_size:<5}"
    return f"{name:<13}" + "".join(
        f"{'-' if run.stages_ms[stage] is None else _digits(run.stages_ms[stage]):>{width}}"
        for stage, width in _STAGE_WIDTHS.items()
    )


def _cold_starts(runs: tuple[Run, ...]) -> Iterator[str]:
    by_size = {run.batch_size: run.cold_start for run in runs if run.cold_start}
    if by_size:
        yield ""
    for size, first in by_size.items():
        yield (
            f"cold start, batch {size}: {first.total_s:.2f} s (import {first.import_s:.2f}, "
            f"load {first.load_s:.2f}, first inference {first.first_inference_s:.2f})"
        )


def _digits(value: float | None) -> str:
    """Write three significant digits, and never fewer than the whole number."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
