"""Two results side by side: which is faster, by how much, and how sure that is.

Source:
    B. Schmeiser, Batch Size Effects in the Analysis of Simulation Output, Operations Research 30 (1982):
    means of 10 to 30 consecutive blocks stand for independent values where single ones follow one another.
"""

import json
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.benchmarks.results import SCHEMA, Benchmark, Run, ScenarioName
from medimg.runtime.errors import DataError, ModelError
from medimg.runtime.files.plain import from_plain
from medimg.runtime.optional import require

Judgement: TypeAlias = Literal["faster", "slower", "cannot tell"]

BLOCKS = 20
"""Consecutive blocks that a run is cut into."""
MAX_BYTES = 2**28


@dataclass(frozen=True)
class Change:
    """One scenario and batch size in both results."""

    scenario: ScenarioName
    batch_size: int
    measure: Literal["p50 ms", "images/s"]
    """The throughput in offline, the rate found in server, else the median latency."""
    before: float
    after: float
    speed_ratio: float
    """Above 1 where the second is faster."""
    speed_ratio_ci95: tuple[float, float] | None
    """Welch's interval on the logarithms of the blocks' figures; None for fewer than two queries a block.

    Of rates that `server` has looked for: from the highest that held to the next that did not.
    """
    judgement: Judgement


@dataclass(frozen=True)
class BenchmarkComparison:
    """What changed from one result to another."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    """What differs besides the speed, so that the ratio may have another cause."""

    def slower_by(self, share: float) -> tuple[Change, ...]:
        """Give the changes that are slower by more than a share, with their whole interval."""
        return tuple(
            change
            for change in self.changes
            if change.speed_ratio_ci95 is not None and change.speed_ratio_ci95[1] < 1 - share
        )


def compare_benchmarks(before: str | Path, after: str | Path) -> BenchmarkComparison:
    """Compare two results of `medimg-bench run --json`, run by run.

    The interval covers what varied within the two runs, and not what varies from one process to the next:
    where a difference matters, measure both several times in turn.

    Args:
        before: the first result.
        after: the second.

    Raises:
        DataError: a file is no such result, or they have no scenario and batch size in common.
    """
    first, second = read_result(Path(before)), read_result(Path(after))
    runs = {(run.scenario, run.batch_size): run for run in first.runs}
    pairs = [
        (runs[run.scenario, run.batch_size], run)
        for run in second.runs
        if (run.scenario, run.batch_size) in runs
    ]
    if not pairs:
        raise DataError(
            f"{before} and {after} have no scenario with the same batch size in common: measure both with "
            "the same --scenario and --batch-size"
        )
    return BenchmarkComparison(tuple(_change(*pair) for pair in pairs), tuple(_differences(first, second)))


def read_result(path: Path) -> Benchmark:
    """Read what `medimg-bench run --json` wrote.

    Raises:
        DataError: it is missing, or something else.
    """
    try:
        if not stat.S_ISREG((status := path.stat()).st_mode) and not path.is_dir():
            raise DataError(f"{path}: is a device or a pipe, and no result")
        if status.st_size > MAX_BYTES:
            raise DataError(f"{path}: has more than {MAX_BYTES:,} bytes")
        plain = json.loads(path.read_bytes())
        schema = plain.pop("schema", None) if isinstance(plain, dict) else None
        if schema != SCHEMA:
            raise DataError(
                f"{path}: not a result of medimg-bench run (its schema is {schema!r}, not {SCHEMA}): "
                "measure again with --json"
            )
        found = from_plain(Benchmark, plain, str(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not JSON") from None
    except ModelError as error:
        raise DataError(f"{error}: not a result of medimg-bench run") from None
    if not found.runs:
        raise DataError(f"{path}: holds no run: measure again")
    for run in found.runs:
        figures = (run.throughput_per_s, run.latency_ms.get("p50", 0.0), *run.raw_ms)
        if not all(0 < figure < math.inf for figure in figures):
            raise DataError(
                f"{path}: {run.scenario}, batch {run.batch_size}: times must be above 0 and finite"
            )
    return found


def _change(before: Run, after: Run) -> Change:
    if before.server and after.server and before.server.trials and after.server.trials:
        return _change_of_rate(before, after)
    if before.scenario == "offline":
        ratio = after.throughput_per_s / before.throughput_per_s
        interval = _interval(_block_means(before), _block_means(after))
        figures = (before.throughput_per_s, after.throughput_per_s)
        return Change("offline", before.batch_size, "images/s", *figures, ratio, interval, _judge(interval))
    ratio = before.latency_ms["p50"] / after.latency_ms["p50"]
    interval = _interval(_block_medians(before), _block_medians(after))
    figures = (before.latency_ms["p50"], after.latency_ms["p50"])
    return Change(before.scenario, before.batch_size, "p50 ms", *figures, ratio, interval, _judge(interval))


def _change_of_rate(before: Run, after: Run) -> Change:
    """Compare rates that a search has found; each lies between one that held and one that did not."""
    (low, high), (after_low, after_high) = _bracket(before), _bracket(after)
    interval = (after_low / high, after_high / low)
    ratio = after_low / low
    return Change("server", before.batch_size, "images/s", low, after_low, ratio, interval, _judge(interval))


def _bracket(run: Run) -> tuple[float, float]:
    assert run.server, "checked by the caller"
    held = run.server.rate_per_s
    above = [trial.rate_per_s for trial in run.server.trials if not trial.held and trial.rate_per_s > held]
    return held, min(above, default=held)


def _blocks(run: Run) -> list[NDArray[np.float64]]:
    return np.array_split(np.asarray(run.raw_ms, np.float64), BLOCKS) if len(run.raw_ms) >= 2 * BLOCKS else []


def _block_medians(run: Run) -> NDArray[np.float64]:
    return np.array([np.median(block) for block in _blocks(run)])


def _block_means(run: Run) -> NDArray[np.float64]:
    return np.array([block.mean() for block in _blocks(run)])


def _interval(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float] | None:
    """Give the 95 % interval of `before / after`, from times by block."""
    stats = require("scipy.stats", "bench")
    if not len(before) or not len(after):
        return None
    first, second = np.log(before), np.log(after)
    if first.std() + second.std() == 0:
        ratio = float(np.exp(first[0] - second[0]))
        return ratio, ratio
    found = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return math.exp(found.low), math.exp(found.high)


def _judge(interval: tuple[float, float] | None) -> Judgement:
    if interval is None or interval[0] <= 1 <= interval[1]:
        return "cannot tell"
    return "faster" if interval[0] > 1 else "slower"


def _differences(first: Benchmark, second: Benchmark) -> Iterator[str]:
    here, there = first.environment, second.environment
    checked = (
        ("the processor", here.cpu, there.cpu),
        ("the number of cores", here.cores, there.cores),
        ("the frequency governor", here.governor, there.governor),
        ("the number of threads", first.threads, second.threads),
        ("the device", first.device, second.device),
        ("the back end", first.backend, second.backend),
        ("the precision", first.precision, second.precision),
        ("where images come from", first.images_from, second.images_from),
        ("the number of images", first.images, second.images),
        ("what sends the queries", first.runs[0].driver, second.runs[0].driver),
    )
    for name, one, other in checked:
        if one != other:
            yield f"{name} differs: {one}, then {other}"
    for benchmark, which in ((first, "first"), (second, "second")):
        if not benchmark.complete:
            yield f"the {which} result is incomplete: its run ended early"
        for warning in benchmark.warnings:
            yield f"the {which} result: {warning}"
