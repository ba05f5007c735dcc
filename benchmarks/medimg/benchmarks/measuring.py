"""One run after another: warm up, look for the rate, measure, count the right answers, judge."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from medimg.benchmarks import native, with_loadgen
from medimg.benchmarks.judgement import judge_run
from medimg.benchmarks.load import Load
from medimg.benchmarks.monitor import Gpu, MachineLog, watched
from medimg.benchmarks.percentiles import SHARES, samples_needed, summarise
from medimg.benchmarks.pipeline import Measurement, Pipeline
from medimg.benchmarks.queries import Queries
from medimg.benchmarks.results import (
    STAGES,
    Accuracy,
    ColdStart,
    DriverName,
    Run,
    ScenarioName,
    ServerLoad,
    Trial,
    WarmUp,
)
from medimg.benchmarks.search import BACK_OFF, BACK_OFFS, best_rate, search
from medimg.benchmarks.sensors import Processor
from medimg.benchmarks.system import System
from medimg.benchmarks.validity import TARGET_PERCENTILES, queries_needed
from medimg.benchmarks.warm_up import median_latency, time_a_query, warm_up
from medimg.runtime.errors import UsageError

LEAST_QUERIES: Mapping[ScenarioName, int] = {
    "single-stream": samples_needed(0.5),
    "multi-stream": samples_needed(0.5),
    "offline": 1,
    "server": samples_needed(0.5),
}
"""A run in which fewer fit is refused: latencies need a median at least, throughput one batch."""

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
    driver: DriverName = "native"
    percentile: str | None = None
    """Of the latencies, for early stopping and `server`'s bound; the scenario's own unless given."""
    latency_bound_ms: float | None = None
    """Of the percentile, in `server`."""
    rate_per_s: float | None = None
    """Arrivals in `server`; found by search unless given."""
    accuracy: bool = False
    """Whether to send every image once more and count the right answers."""
    logs: Path | None = None
    """A folder for LoadGen's logs."""
    processor: Processor | None = None
    """Watched during the runs; None to watch nothing."""
    gpu: Gpu | None = None
    """Likewise."""
    seed: int = 0
    """Of the samples drawn and of the arrivals."""


def measure(
    pipelines: Mapping[ScenarioName, Pipeline],
    queries: Queries,
    plan: Sequence[tuple[ScenarioName, int]],
    settings: Settings,
) -> Iterator[Run]:
    """Run each scenario of a plan, given with its images a query, on its own pipeline.

    Raises:
        UsageError: fewer queries fit into the duration than are needed.
    """
    first_answers = _cold_starts(sorted({size for _, size in plan}), settings)
    for scenario, batch_size in plan:
        with System(pipelines[scenario], queries.samples, settings.threads) as system:
            percentile = settings.percentile or TARGET_PERCENTILES.get(scenario, "p90")
            load = Load(
                batch_size, settings.duration_s, queries.measured, SHARES[percentile], seed=settings.seed
            )
            yield _OneRun(scenario, system, percentile, load, settings).run(first_answers.get(batch_size))


@dataclass
class _OneRun:
    """The steps of one run."""

    scenario: ScenarioName
    system: System
    percentile: str
    load: Load
    settings: Settings
    trials: list[Trial] = field(default_factory=list)

    def run(self, first: ColdStart | None) -> Run:
        """Warm up, look for the rate, measure, count the right answers, judge."""
        self._say("warm-up")
        warm = self._warm_up()
        self._check_duration()
        self._say(f"{self.load.duration_s:g} s")
        found, machine = self._measured()
        accuracy = self._accuracy() if self.settings.accuracy else None
        server = None
        if self.scenario == "server":
            bound = self.settings.latency_bound_ms
            assert bound, "checked with the options"
            server = ServerLoad(bound, self.load.rate_per_s, tuple(self.trials))
        run = self._to_run(found, warm, first, machine, accuracy, server)
        return replace(run, warnings=tuple(judge_run(run)))

    def _say(self, step: str) -> None:
        self.settings.progress(f"{self.scenario}, batch {self.load.batch_size}: {step}")

    def _warm_up(self) -> WarmUp:
        one_by_one = self.scenario in ("single-stream", "multi-stream")
        scenario = native.follow_one_another if one_by_one else native.offline
        figure = median_latency if one_by_one else time_a_query
        warm, last = warm_up(partial(scenario, self.system), self.load, figure)
        self.load = replace(self.load, expected_query_s=figure(last) / 1e9)
        return warm

    def _check_duration(self) -> None:
        """Refuse a duration in which too little would happen."""
        load, least = self.load, LEAST_QUERIES[self.scenario]
        purpose = f"so that {least} fit"
        if self.settings.percentile and self.scenario != "offline":
            least = queries_needed(load.share)
            purpose = f"the {least} that {self.settings.percentile} takes"
        query_s = load.expected_query_s
        if self.scenario == "server":
            query_s = 1 / self.settings.rate_per_s if self.settings.rate_per_s else query_s / load.batch_size
        if load.duration_s < least * query_s:
            raise UsageError(
                f"a duration of {load.duration_s:g} s is too short: {self.scenario} at batch "
                f"{load.batch_size} takes {query_s:.3g} s a query, so --duration must be "
                f"{_rounded_up(least * query_s)} or more ({purpose})"
            )

    def _measured(self) -> tuple[Measurement, MachineLog | None]:
        if self.scenario != "server":
            return self._long_enough()
        bound = self.settings.latency_bound_ms
        assert bound, "checked with the options"
        self.load = replace(self.load, latency_bound_s=bound / 1e3)
        if self.settings.rate_per_s:
            self.load = replace(self.load, rate_per_s=self.settings.rate_per_s)
            return self._watched(self.load)
        self.trials = search(self._try, self.load.batch_size / self.load.expected_query_s)
        rate = best_rate(self.trials)
        if rate is None:
            lowest = min(self.trials, key=lambda trial: trial.rate_per_s)
            raise UsageError(
                f"server: no rate holds a latency bound of {bound:g} ms: at {lowest.rate_per_s:.3g} images a "
                f"second p99 is {lowest.p99_ms:.4g} ms; raise --latency-bound"
            )
        return self._confirmed(rate)

    def _long_enough(self) -> tuple[Measurement, MachineLog | None]:
        """Measure; once more if LoadGen ran out of queries, because it was faster than in the warm-up."""
        found, machine = self._watched(self.load)
        if found.elapsed_ns < 1e9 * self.load.duration_s:
            query_s = found.elapsed_ns / 1e9 / len(found.latencies_ns)
            self.load = replace(self.load, expected_query_s=min(query_s, self.load.expected_query_s))
            self._say(f"{self.load.duration_s:g} s again: it was faster than in the warm-up")
            found, machine = self._watched(self.load)
        return found, machine

    def _try(self, rate: float) -> Trial:
        load = replace(self.load, rate_per_s=rate)
        self._say(f"trying {rate:.4g} images a second")
        found = native.server(self.system, load)
        summary = summarise([latency / 1e6 for latency in found.latencies_ns])
        return Trial(rate, summary["p50"], summary["p99"], not self._exceeds(found))

    def _confirmed(self, rate: float) -> tuple[Measurement, MachineLog | None]:
        """Run at the rate found, with other arrivals; lower it where it does not hold again."""
        for attempt in range(BACK_OFFS):
            self.load = replace(self.load, rate_per_s=rate, seed=self.settings.seed + 1 + attempt)
            self._say(f"{self.load.duration_s:g} s at {rate:.4g} images a second")
            found, machine = self._watched(self.load)
            assert found.validity, "a driver judges what it measured"
            enough = len(found.latencies_ns) >= queries_needed(self.load.share)
            # Too short a run is not made valid by a lower rate.
            if found.validity.valid or not (enough or self._exceeds(found)) or attempt == BACK_OFFS - 1:
                break
            summary = summarise([latency / 1e6 for latency in found.latencies_ns])
            self.trials.append(Trial(rate, summary["p50"], summary["p99"], held=False))
            rate *= BACK_OFF
        return found, machine

    def _exceeds(self, found: Measurement) -> bool:
        """Whether the percentile, as LoadGen takes it, is above the bound."""
        ordered = sorted(found.latencies_ns)
        return ordered[int(self.load.share * len(ordered))] > 1e9 * self.load.latency_bound_s

    def _watched(self, load: Load) -> tuple[Measurement, MachineLog | None]:
        processor = self.settings.processor
        if processor is None:
            return self._drive(load, "performance"), None
        with watched(processor, self.settings.gpu) as watch:
            found = self._drive(load, "performance")
            watch.images = found.images
        return found, watch.log

    def _accuracy(self) -> Accuracy:
        self._say("accuracy mode")
        samples = self.system.samples
        load = replace(self.load, samples=len(samples), duration_s=0.0, every_image_once=True)
        answers = self._drive(load, "accuracy").answers
        correct = sum(samples[index].label == answer for index, answer in answers.items())
        assert len(answers) == len(samples), "accuracy mode sends every image"
        return Accuracy(len(samples), correct, correct / len(samples))

    def _drive(self, load: Load, mode: str) -> Measurement:
        if self.settings.driver == "native":
            return native.drive(self.scenario, self.system, load)
        folder = f"{self.scenario}-{load.batch_size}-{mode}"
        logs = None if self.settings.logs is None else self.settings.logs / folder
        return with_loadgen.drive(self.scenario, self.system, load, logs)

    def _to_run(
        self,
        found: Measurement,
        warm: WarmUp,
        first: ColdStart | None,
        machine: MachineLog | None,
        accuracy: Accuracy | None,
        server: ServerLoad | None,
    ) -> Run:
        raw_ms = tuple(latency / 1e6 for latency in found.latencies_ns)
        validity = found.validity
        assert validity, "a driver judges what it measured"
        return Run(
            scenario=self.scenario,
            batch_size=self.load.batch_size,
            samples=found.images,
            throughput_per_s=found.images / (found.elapsed_ns / 1e9),
            latency_ms=summarise(raw_ms),
            stages_ms={
                name: found.stages_ns[name] / 1e6 / len(raw_ms) if name in found.stages_ns else None
                for name in STAGES
            },
            cold_start_s=first.total_s if first else None,
            raw_ms=raw_ms,
            percentile=None if self.scenario == "offline" else self.percentile,
            at_s=tuple(begin / 1e9 for begin in found.begins_ns),
            utilisation=None if self.scenario == "single-stream" else self._utilisation(found),
            cold_start=first,
            warm_up=warm,
            driver=self.settings.driver,
            validity=validity,
            server=server,
            machine=machine,
            accuracy=accuracy,
            warnings=(),
        )

    def _utilisation(self, found: Measurement) -> dict[str, float | None]:
        parallel, decoding = self.system.pipeline.parallel, self.settings.threads
        workers = {"decode": parallel if self.scenario == "server" else decoding}
        if self.scenario == "multi-stream":
            parallel = 1
        return {
            name: None
            if name == "queue" or name not in found.stages_ns
            else found.stages_ns[name] / found.elapsed_ns / workers.get(name, parallel)
            for name in STAGES
        }


def _cold_starts(batch_sizes: Sequence[int], settings: Settings) -> dict[int, ColdStart]:
    found: dict[int, ColdStart] = {}
    if settings.cold_start:
        for size in batch_sizes:
            settings.progress(f"cold start, batch {size}")
            found[size] = settings.cold_start(size)
    return found


def _rounded_up(seconds: float) -> str:
    """Write a duration that is surely enough, in three digits."""
    step = 10.0 ** (math.floor(math.log10(seconds)) - 2)
    return f"{math.ceil(round(seconds / step, 6)) * step:.6g}"
