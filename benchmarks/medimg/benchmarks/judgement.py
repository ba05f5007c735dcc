"""What makes a measurement doubtful."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medimg.benchmarks.environment import Environment
from medimg.benchmarks.percentiles import too_few
from medimg.benchmarks.results import Run

BUSY_LOAD = 0.25
"""Load average a core above which other work is likely to have been measured too."""
DRIFT = 0.05
"""Relative change of the median that counts as drift."""


def judge_machine(environment: Environment) -> Iterator[str]:
    """Say whether other work was under way before the first run."""
    load = environment.load_average[0]
    if load > BUSY_LOAD * environment.cores:
        yield (
            f"the machine was busy: load average {load:.2f} on {environment.cores} cores in the minute "
            "before (other work, or work that has just ended); wait a minute and run again"
        )


def judge_precision(file_precision: str, precision: str, backend: str) -> Iterator[str]:
    """Say so if the file's precision is not the one that ran."""
    if precision != file_precision:
        yield f"the file is {file_precision}, but {backend} ran it in {precision}"


def judge_run(run: Run) -> Iterator[str]:
    """Say whether a run changed while it was measured, or is too short for its percentiles.

    What `offline` measures is its throughput: its percentiles are marked, and no warning is made of them.
    """
    name = f"{run.scenario}, batch {run.batch_size}"
    queries = len(run.raw_ms)
    short = too_few(queries)
    if short and run.scenario == "single-stream":
        needs = ", ".join(
            f"{key} needs {count} (--duration {math.ceil(count * run.latency_ms['mean'] / 1000)})"
            for key, count in short.items()
        )
        yield f"{name}: {queries} queries are too few: {needs}"
    change = drift(np.asarray(run.raw_ms))
    if change is not None:
        direction, cause = (
            ("slower", "heat or other work") if change > 0 else ("faster", "too short a warm-up")
        )
        yield (
            f"{name}: drifted, {abs(change):.0%} {direction} in its last third than in its first "
            f"(likely {cause})"
        )


def drift(latencies_ms: NDArray[np.float64]) -> float | None:
    """Compare the medians of the last and the first third.

    Returns:
        The relative change, or None if it is under 5 % or within three standard errors of none.
    """
    third = len(latencies_ms) // 3
    if third < 5:
        return None
    first, last = latencies_ms[:third], latencies_ms[-third:]
    before, after = float(np.median(first)), float(np.median(last))
    error = math.hypot(_median_error(first), _median_error(last))
    change = after - before
    return change / before if abs(change) > max(DRIFT * before, 3 * error) else None


def _median_error(values: NDArray[np.float64]) -> float:
    """Standard error of a median, from the median absolute deviation, as for a normal distribution."""
    deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return math.sqrt(math.pi / 2) * deviation / math.sqrt(len(values))
