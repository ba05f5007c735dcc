"""What a benchmark and a sweep may be told."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from medimg.benchmarks.percentiles import SHARES
from medimg.benchmarks.results import ScenarioName
from medimg.runtime.errors import UsageError

BATCH_SIZES: Mapping[ScenarioName, tuple[int, ...]] = {
    "single-stream": (1,),
    "multi-stream": (8,),
    "offline": (8,),
    "server": (1,),
}
"""Unless others are asked for; `single-stream` has no other. Eight is MLPerf's multi-stream."""

DriverOption: TypeAlias = Literal["auto", "loadgen", "native"]


@dataclass(frozen=True)
class BenchmarkOptions:
    """What `run_benchmark` may be told; all is validated when made."""

    data: str | Path | None = None
    """Images to send, any kind of DATA; without it, made images of the network's size."""
    images_from: Literal["files", "arrays"] | None = None
    """`arrays` decodes the images of `data` before the clock is started."""
    scenarios: tuple[ScenarioName, ...] = ("single-stream", "offline")
    """Which to run."""
    batch_sizes: tuple[int, ...] | None = None
    """Images a query, a run each, in all scenarios but `single-stream`; in `server`, the most that are
    answered together. Unless given, 8, and 1 in `server`."""
    backend: str = "auto"
    """`auto` or the name of one."""
    device: str = "auto"
    """`auto`, `cpu`, `gpu` or `gpu:N`."""
    duration_s: float = 10.0
    """Seconds a run, not counting its warm-up."""
    driver: DriverOption = "auto"
    """`loadgen`, MLPerf's own; `native`, the same rules from Python; `auto` takes LoadGen where it is
    installed."""
    percentile: str | None = None
    """Such as `p99`: the duration must be long enough for it."""
    latency_bound_ms: float | None = None
    """What the percentile must stay within in `server`."""
    rate_per_s: float | None = None
    """Arrivals in `server`; unless given, the highest rate that holds the bound is looked for."""
    accuracy: bool = False
    """Whether to run accuracy mode too; `data` must be labelled with the model's classes."""
    logs: str | Path | None = None
    """A folder for LoadGen's logs, one below it a run."""

    def __post_init__(self) -> None:
        scenarios, sizes, rate = self.scenarios, self.batch_sizes, self.rate_per_s
        if unknown := [name for name in scenarios if name not in BATCH_SIZES]:
            raise UsageError(f"no scenario {unknown[0]!r}: choose from {', '.join(BATCH_SIZES)}")
        if not scenarios or (sizes is not None and (not sizes or min(sizes) < 1)):
            raise UsageError(
                f"scenarios {list(scenarios)} and batch sizes {list(sizes or ())}: at least one, from 1 up"
            )
        if self.duration_s <= 0:
            raise UsageError(f"duration {self.duration_s:g} s is not above 0")
        if self.percentile is not None and self.percentile not in SHARES:
            raise UsageError(f"no percentile {self.percentile!r}: choose from {', '.join(SHARES)}")
        if "server" in scenarios and not (self.latency_bound_ms and self.latency_bound_ms > 0):
            raise UsageError("server needs a latency bound: name it in milliseconds with --latency-bound")
        if rate is not None and not 0 < rate < math.inf:
            raise UsageError(f"a rate of {rate:g} images a second is not above 0")
        if self.data is None and (self.accuracy or self.images_from):
            raise UsageError(
                "accuracy, and a choice where images come from, need data: name them with --data"
            )

    @property
    def plan(self) -> tuple[tuple[ScenarioName, int], ...]:
        """The runs: each scenario, at each batch size."""
        return tuple(
            (name, size)
            for name in dict.fromkeys(self.scenarios)
            for size in dict.fromkeys(self._sizes(name))
        )

    def _sizes(self, scenario: ScenarioName) -> tuple[int, ...]:
        if self.batch_sizes is None or scenario == "single-stream":
            return BATCH_SIZES[scenario]
        return self.batch_sizes


@dataclass(frozen=True)
class SweepOptions:
    """What `run_sweep` may be told; all is validated when made."""

    data: str | Path | None = None
    """Images to send; where they are labelled, accuracy is counted on them (on the part `test`, if there is
    one)."""
    backends: tuple[str, ...] = ()
    """Those to try; all unless given."""
    batch_sizes: tuple[int, ...] | None = (1, 8)
    """Images a query in offline."""
    device: str = "auto"
    """`auto`, `cpu`, `gpu` or `gpu:N`."""
    duration_s: float = 10.0
    """Seconds a run."""
    driver: DriverOption = "auto"
    """As for `run_benchmark`."""
    latency_budget_ms: float | None = None
    """What p99 of one image after another should stay within."""

    def __post_init__(self) -> None:
        self.benchmark("auto")

    def benchmark(self, backend: str) -> BenchmarkOptions:
        """What each artefact is measured with, on a back end."""
        return BenchmarkOptions(
            data=self.data,
            batch_sizes=self.batch_sizes,
            backend=backend,
            device=self.device,
            duration_s=self.duration_s,
            driver=self.driver,
        )
