"""The pictures of a report, as SVG."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from medimg.benchmarks.results import STAGES, Run
from medimg.runtime.optional import require
from medimg.runtime.report import Figure, svg_of

COLORS = ("#4b6b9b", "#c46a4a", "#7aa37a", "#8a6fa8", "#b8a04a", "#5aa0a8", "#9b9b9b")
BINS = 60
WIDE = 3
"""Times the median from which on latencies are drawn on a logarithmic axis."""


class Picture:
    """One picture of one or more plots side by side."""

    def __init__(self, columns: int = 1, height: float = 3.2) -> None:
        self._figure = require("matplotlib.figure", "bench").Figure(figsize=(8, height), layout="constrained")
        self.axes: Sequence[Any] = self._figure.subplots(1, columns, squeeze=False)[0]

    def finish(self, caption: str) -> Figure:
        """Write it as SVG, the same every time."""
        for axes in self.axes:
            axes.spines[["top", "right"]].set_visible(False)
        return Figure(caption, svg_of(self._figure))


def distribution(run: Run) -> Figure:
    """Draw the histogram of the latencies, and the share of queries up to each."""
    picture = Picture(columns=2)
    histogram, cumulated = picture.axes
    values = np.asarray(run.raw_ms)
    bins = np.linspace(values.min(), values.max(), BINS)
    if values.max() > WIDE * np.median(values):
        # A stall would press all others into one bin.
        bins = np.geomspace(max(values.min(), values.max() / 1e6), values.max(), BINS)
        histogram.set_xscale("log")
        cumulated.set_xscale("log")
    histogram.hist(values, bins=bins, color=COLORS[0])
    histogram.set_yscale("log")
    histogram.set_xlabel("ms")
    histogram.set_ylabel("queries")
    ordered = np.sort(values)
    cumulated.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=COLORS[0])
    for place, name in enumerate(("p50", "p90", "p99")):
        value = run.latency_ms[name]
        cumulated.axvline(
            value, color=COLORS[place + 1], linewidth=1, linestyle="--", label=f"{name} {value:.4g}"
        )
    cumulated.set_xlabel("ms")
    cumulated.set_ylabel("share of queries")
    cumulated.legend(frameon=False, fontsize=8, loc="lower right")
    return picture.finish(f"{_name(run)}: latency of {len(values)} queries, histogram (log) and CDF")


def timeline(run: Run) -> Figure:
    """Draw every latency over the run, with the clock and the temperature where the machine tells them."""
    picture = Picture()
    (axes,) = picture.axes
    # Pixels, not thousands of shapes, keep the page small.
    axes.plot(run.at_s, run.raw_ms, ".", markersize=2, color=COLORS[0], rasterized=True)
    axes.set_xlabel("s")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    states = (run.machine.before, *run.machine.during, run.machine.after) if run.machine else ()
    clocks = [(state.at_s, state.clock_mhz) for state in states if state.clock_mhz is not None]
    heat = [(state.at_s, state.temperature_c) for state in states if state.temperature_c is not None]
    shown = "clock in MHz" if clocks else None
    if clocks:
        _beside(axes, clocks, "MHz", COLORS[1])
    elif heat:
        shown = "temperature in °C"
        _beside(axes, heat, "°C", COLORS[1])
    return picture.finish(
        f"{_name(run)}: every query over the run" + (f", and the {shown} (line)" if shown else "")
    )


def _beside(axes: Any, points: list[tuple[float, float]], unit: str, color: str) -> None:  # noqa: ANN401  matplotlib's class
    other = axes.twinx()
    other.plot(*zip(*points, strict=True), color=color, linewidth=1)
    other.set_ylabel(unit, color=color)
    other.set_ylim(bottom=0, top=1.2 * max(value for _, value in points))
    other.spines[["top", "left"]].set_visible(False)


def stages(runs: Sequence[Run]) -> Figure:
    """Draw what each stage took an image, a bar a run; they add up in single-stream only."""
    picture = Picture(height=1.2 + 0.4 * len(runs))
    (axes,) = picture.axes
    left = np.zeros(len(runs))
    for color, stage in zip(COLORS, STAGES, strict=True):
        values = np.array([(run.stages_ms[stage] or 0.0) * len(run.raw_ms) / run.samples for run in runs])
        if values.any():
            axes.barh(range(len(runs)), values, left=left, color=color, label=stage.replace("_", " "))
            left += values
    axes.set_yticks(range(len(runs)), [_name(run) for run in runs])
    axes.invert_yaxis()
    axes.set_xlabel("ms an image, busy")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return picture.finish(
        "Stages by image: they add up to the latency in single-stream, and overlap elsewhere"
    )


def curves(runs: Sequence[Run]) -> Iterator[Figure]:
    """Draw latency against throughput: by batch size, and by rate of arrivals."""
    sizes = sorted((run for run in runs if run.scenario == "offline"), key=lambda run: run.batch_size)
    if len(sizes) > 1:
        picture = Picture()
        (axes,) = picture.axes
        axes.plot(
            [run.throughput_per_s for run in sizes],
            [run.latency_ms["mean"] for run in sizes],
            "o-",
            color=COLORS[0],
        )
        for run in sizes:
            place = (run.throughput_per_s, run.latency_ms["mean"])
            axes.annotate(str(run.batch_size), place, textcoords="offset points", xytext=(5, 5), fontsize=8)
        axes.set_xlabel("images a second")
        axes.set_ylabel("ms from batch to batch")
        axes.margins(0.1)
        yield picture.finish("Throughput and time a batch in offline, by batch size")
    for run in runs:
        if run.server and run.server.trials:
            yield _rates(run)


def _rates(run: Run) -> Figure:
    server = run.server
    assert server, "checked by the caller"
    picture = Picture()
    (axes,) = picture.axes
    for label, held, color in (("held", True, COLORS[2]), ("too slow", False, COLORS[1])):
        trials = [trial for trial in server.trials if trial.held is held]
        axes.plot([t.rate_per_s for t in trials], [t.p99_ms for t in trials], "o", color=color, label=label)
    axes.plot(
        [server.rate_per_s], [run.latency_ms["p99"]], "*", markersize=12, color=COLORS[0], label="the run"
    )
    axes.axhline(server.latency_bound_ms, color=COLORS[6], linewidth=1, linestyle="--", label="bound")
    axes.set_yscale("log")
    axes.set_xlabel("images a second, arriving at random")
    axes.set_ylabel("p99, ms")
    axes.legend(frameon=False, fontsize=8)
    return picture.finish(f"{_name(run)}: latency by rate of arrivals, as tried")


def _name(run: Run) -> str:
    return run.scenario if run.scenario == "single-stream" else f"{run.scenario}, batch {run.batch_size}"
