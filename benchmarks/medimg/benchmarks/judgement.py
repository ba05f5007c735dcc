"""What makes a measurement doubtful."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medimg.benchmarks.environment import Environment
from medimg.benchmarks.monitor import MachineLog
from medimg.benchmarks.percentiles import SHARES, too_few
from medimg.benchmarks.results import Run
from medimg.benchmarks.validity import queries_needed

BUSY_LOAD = 0.25
"""Load average a core above which other work is likely to have been measured too."""
BUSY_CORES = 0.1
"""Processors kept busy by other work that are said."""
DRIFT = 0.05
"""Relative change of the median that counts as drift."""
SPREAD = 0.1
"""Interquartile range, as a share of the median, that counts as unsteady."""
BLOCKS = 30
"""Consecutive parts of an `offline` run that are compared."""
STALL = 10
"""Times the median that counts as a stall."""


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
    every_s = run.at_s[-1] / queries + run.latency_ms["mean"] / 1e3 / queries
    if run.scenario != "offline" and (short := too_few(queries)):
        needs = ", ".join(
            f"{key} needs {count} (--duration {math.ceil(count * every_s)})" for key, count in short.items()
        )
        yield f"{name}: {queries} queries are too few: {needs}"
    if not run.validity.valid:
        hint = ""
        if run.percentile and queries < (needed := queries_needed(SHARES[run.percentile])):
            hint = f" (--duration {math.ceil(needed * every_s)} gives {needed} queries)"
        yield f"{name}: not valid by {_RULES[run.driver]} rules: {'; '.join(run.validity.reasons)}{hint}"
    if not run.warm_up.stable:
        yield (
            f"{name}: the warm-up was not steady after {run.warm_up.seconds:.1f} s "
            f"(likely {likely_cause(run.machine)})"
        )
    # In server the latency varies with the arrivals, however steady the system is.
    if run.scenario != "server":
        for words in _unsteady(run):
            yield f"{name}: {words}"
    if run.machine and run.machine.throttled:
        yield f"{name}: the processor or the GPU was throttled (cool it, or limit its power, and run again)"
    if run.machine and run.machine.other_cores > BUSY_CORES:
        yield f"{name}: other work kept {run.machine.other_cores:.1f} processors busy during the run"


_RULES = {"loadgen": "LoadGen's", "native": "MLPerf's"}


def likely_cause(machine: MachineLog | None, otherwise: str = "other work") -> str:
    """Name what most likely made a run unsteady, from what was seen around it."""
    if machine and machine.throttled:
        return "throttling"
    if machine and machine.clock_fell:
        return "a clock that fell: fix it, for example with the governor performance"
    if machine and machine.other_cores > BUSY_CORES:
        return f"other work, on {machine.other_cores:.1f} processors"
    return otherwise


def _unsteady(run: Run) -> Iterator[str]:
    values = np.asarray(run.raw_ms)
    if run.scenario == "offline":
        # Batches under way at once end together, so that single ones tell nothing.
        steady = (
            np.array([block.mean() for block in np.array_split(values, BLOCKS)])
            if len(values) >= 4 * BLOCKS
            else values[:0]
        )
    else:
        steady = values
    change = drift(steady)
    if change is not None:
        direction, cause = (
            ("slower", "heat or other work") if change > 0 else ("faster", "too short a warm-up")
        )
        yield (
            f"drifted, {abs(change):.0%} {direction} in its last third than in its first "
            f"(likely {likely_cause(run.machine, cause) if change > 0 else cause})"
        )
    if len(steady) >= 10:
        low, median, high = np.percentile(steady, [25, 50, 75])
        if high - low > SPREAD * median:
            yield (
                f"unsteady, the middle half of its queries took {low:.3g} to {high:.3g} ms "
                f"(likely {likely_cause(run.machine, 'images of different sizes, or other work')})"
            )
    usual = float(values.mean() if run.scenario == "offline" else np.median(values))
    stalls = np.flatnonzero(values > STALL * usual)
    if len(stalls):
        yield (
            f"{len(stalls)} of {len(values)} queries took over {STALL} times the usual, the longest "
            f"{values.max():.4g} ms, the first at {run.at_s[stalls[0]]:.1f} s; they are in the figures "
            f"(likely {likely_cause(run.machine, 'another process, or memory being collected')})"
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
