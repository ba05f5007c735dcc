"""A benchmark's figures for people, within 80 columns."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from medimg.benchmarks.comparison import BenchmarkComparison
from medimg.benchmarks.monitor import MachineLog
from medimg.benchmarks.percentiles import too_few
from medimg.benchmarks.results import STAGES, Benchmark, Run
from medimg.runtime.files.text import printable

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
_NAME_WIDTH = 16
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
    yield f"{'stages, ms':<{_NAME_WIDTH}}" + "".join(
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
        yield f"{run.scenario}, batch {run.batch_size}: {'; '.join(_facts_of_run(run))}"
    if benchmark.knee:
        knee = benchmark.knee
        yield (
            f"knee: batch {knee.batch_size} is the smallest with {knee.share:.0%} of the highest throughput "
            f"({digits(knee.throughput_per_s)} images/s)"
        )
    yield from _cold_starts(benchmark.runs)


def _facts_of_run(run: Run) -> Iterator[str]:
    bound = run.validity.early_stopping_ms
    sure = "" if bound is None else f", {run.percentile} at most {digits(bound)} ms (99 % confidence)"
    yield f"{'VALID' if run.validity.valid else 'INVALID'}{sure}"
    if run.server:
        tried = f" ({len(run.server.trials)} rates tried)" if run.server.trials else ""
        yield (
            f"{digits(run.server.rate_per_s)} images a second, {run.percentile} to stay within "
            f"{run.server.latency_bound_ms:g} ms{tried}"
        )
    if run.accuracy:
        found = run.accuracy
        yield f"accuracy {found.accuracy:.4f}, {found.correct} of {found.images} images"
    if run.machine:
        yield ", ".join(_machine(run.machine))


def _machine(found: MachineLog) -> Iterator[str]:
    states = (found.before, *found.during, found.after)
    energy = found.energy
    told = {
        "memory": _span([state.memory_mib for state in states], "MiB"),
        "GPU memory": _span([state.gpu_memory_mib for state in states], "MiB"),
        "clock": _span([state.clock_mhz for state in states], "MHz"),
        "GPU clock": _span([state.gpu_clock_mhz for state in states], "MHz"),
        "temperature": _span([state.temperature_c for state in states], "°C"),
        "GPU temperature": _span([state.gpu_temperature_c for state in states], "°C"),
        "throttled": {True: "yes", False: "no", None: None}[found.throttled],
        "energy": f"{digits(energy.joules_per_image)} J an image ({energy.source})" if energy else None,
    }
    yield f"{found.own_cores:.1f} cores used, {found.other_cores:.1f} by others"
    for name, words in told.items():
        if words:
            yield f"{name} {words}"
    if missing := [name for name, words in told.items() if words is None]:
        yield f"not available: {' / '.join(missing)}"


def _span(values: list[float | None], unit: str) -> str | None:
    known = sorted(round(value) for value in values if value is not None)
    if not known:
        return None
    low, high = known[0], known[-1]
    return f"{low if low == high else f'{low} to {high}'} {unit}"


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
    return run.scenario if run.scenario == "single-stream" else f"{run.scenario} {run.batch_size}"


def _stages(run: Run) -> str:
    return f"{_name(run):<{_NAME_WIDTH}.{_NAME_WIDTH}}" + "".join(
        f"{'-' if run.stages_ms[stage] is None else digits(run.stages_ms[stage]):>{width}}"
        for stage, width in _STAGE_WIDTHS.items()
    )


def _utilisation(run: Run) -> str:
    shares = run.utilisation or {}
    return f"{_name(run):<{_NAME_WIDTH}.{_NAME_WIDTH}}" + "".join(
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
