"""Running until the figures stop changing, before anything counts."""

import statistics
from collections.abc import Callable
from dataclasses import replace

from medimg.benchmarks.load import Load
from medimg.benchmarks.pipeline import Measurement
from medimg.benchmarks.results import WarmUp

WINDOW_S = 0.25
WINDOW_QUERIES = 3
WINDOWS = 3
SPREAD = 0.05
MAX_S = 10.0
CRITERION = (
    f"{WINDOWS} windows of {WINDOW_S} s or {WINDOW_QUERIES} queries in a row within {SPREAD:.0%} of each "
    "other, by median latency, or by throughput in offline and server"
)


def median_latency(found: Measurement) -> float:
    """Judge by the queries, where each is waited for."""
    return statistics.median(found.latencies_ns)


def time_a_query(found: Measurement) -> float:
    """Judge by the throughput, where several queries are under way."""
    return found.elapsed_ns / len(found.latencies_ns)


def warm_up(
    run: Callable[[Load], Measurement], load: Load, figure: Callable[[Measurement], float]
) -> tuple[WarmUp, Measurement]:
    """Run short windows until the last ones agree, or for as long as the run itself is to take.

    Args:
        run: runs one window.
        load: what the run is to send.
        figure: what must agree from window to window.

    Returns:
        What it took, and the last window.
    """
    limit_s = min(MAX_S, max(WINDOWS * WINDOW_S, load.duration_s))
    figures: list[float] = []
    seconds, queries = 0.0, 0
    while True:
        seed = load.seed + 1 + len(figures)
        found = run(replace(load, duration_s=WINDOW_S, least_queries=WINDOW_QUERIES, seed=seed))
        figures.append(figure(found))
        seconds += found.elapsed_ns / 1e9
        queries += len(found.latencies_ns)
        stable = is_stable(figures)
        if stable or seconds >= limit_s:
            return WarmUp(queries, seconds, stable, CRITERION), found


def is_stable(figures: list[float]) -> bool:
    """Whether the last windows agree."""
    last = figures[-WINDOWS:]
    return len(last) == WINDOWS and max(last) <= (1 + SPREAD) * min(last)
