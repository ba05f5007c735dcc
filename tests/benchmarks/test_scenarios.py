import time
from collections.abc import Callable
from itertools import cycle

import numpy as np
import pytest

from medimg.benchmarks.benchmark import Settings, measure
from medimg.benchmarks.judgement import judge_run
from medimg.benchmarks.pipeline import Pipeline
from medimg.benchmarks.queries import make_queries
from medimg.benchmarks.results import STAGES, Run, ScenarioName
from medimg.benchmarks.scenarios import Load, single_stream
from medimg.runtime.errors import BackendError, UsageError
from medimg.runtime.preprocess import Images
from medimg.runtime.spec import ModelSpec

BOTH: tuple[ScenarioName, ...] = ("single-stream", "offline")


class FakeClock:
    """Time that passes only when told, so that what is measured is known exactly."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class FakeBackend:
    """Its n-th call takes `latency_ms(n)` on a fake clock; calls of the warm-up come first."""

    def __init__(self, clock: FakeClock, latency_ms: Callable[[int], float]) -> None:
        self.clock = clock
        self.latency_ms = latency_ms
        self.latencies: list[float] = []

    def infer(self, images: Images) -> np.ndarray:
        self.latencies.append(self.latency_ms(len(self.latencies)))
        self.clock.now_ns += round(self.latencies[-1] * 1e6)
        return np.full((len(images), 3), 1 / 3, np.float32)


def measured(
    spec: ModelSpec,
    latency_ms: Callable[[int], float],
    scenario: ScenarioName = "single-stream",
    batch_size: int = 1,
    duration_s: float = 60,
) -> tuple[Run, list[float]]:
    """Run a scenario on a fake back end; gives the run, and the true latencies without the warm-up's."""
    clock = FakeClock()
    backend = FakeBackend(clock, latency_ms)
    (run,) = measure(
        {scenario: Pipeline(backend.infer, spec, clock)},
        make_queries(spec.image),
        [(scenario, batch_size)],
        Settings(duration_s, threads=2),
    )
    return run, backend.latencies[run.warm_up_queries :]


def bimodal(call: int) -> float:
    return 20.0 if call % 4 == 3 else 5.0


@pytest.mark.parametrize("scenario", BOTH)
@pytest.mark.parametrize(
    "latency_ms",
    [lambda call: 7.5, bimodal, lambda call: 5 + call / 1000],
    ids=["constant", "bimodal", "drifting"],
)
def test_known_latencies_are_measured_right(
    tiny_spec: ModelSpec, scenario: ScenarioName, latency_ms: Callable[[int], float]
) -> None:
    run, truth = measured(tiny_spec, latency_ms, scenario)
    assert run.raw_ms == pytest.approx(truth)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        assert run.latency_ms[name] == pytest.approx(np.quantile(truth, share), rel=0.02), name
    assert run.latency_ms["mean"] == pytest.approx(np.mean(truth))


@pytest.mark.parametrize("scenario", BOTH)
@pytest.mark.parametrize("when", [0, 1, 500])
def test_a_stall_is_never_lost(tiny_spec: ModelSpec, scenario: ScenarioName, when: int) -> None:
    warm_up = 50  # half a second at 10 ms
    run, _ = measured(tiny_spec, lambda call: 2500.0 if call == warm_up + when else 10.0, scenario)
    assert run.warm_up_queries == warm_up
    assert run.latency_ms["max"] == pytest.approx(2500)
    assert run.raw_ms[when] == pytest.approx(2500)
    assert run.throughput_per_s == pytest.approx(len(run.raw_ms) / (sum(run.raw_ms) / 1000))


def test_a_stall_in_the_warm_up_is_in_no_figure(tiny_spec: ModelSpec) -> None:
    run, _ = measured(tiny_spec, lambda call: 2500.0 if call == 0 else 10.0)
    assert run.warm_up_queries == 3
    assert run.latency_ms["max"] == pytest.approx(10)


def test_drift_is_flagged(tiny_spec: ModelSpec) -> None:
    run, _ = measured(tiny_spec, lambda call: 10 * 1.0001**call)
    assert any("drifted" in warning and "slower" in warning for warning in judge_run(run))


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 100.0), (4, 400.0), (32, 3200.0)])
def test_throughput_counts_images_not_batches(tiny_spec: ModelSpec, batch_size: int, expected: float) -> None:
    run, truth = measured(tiny_spec, lambda call: 10.0, "offline", batch_size)
    assert run.throughput_per_s == pytest.approx(expected)
    assert run.samples == batch_size * len(truth)


def test_every_stage_of_the_contract_is_named_and_those_that_do_not_exist_are_null(
    tiny_spec: ModelSpec,
) -> None:
    run, _ = measured(tiny_spec, lambda call: 10.0)
    assert tuple(run.stages_ms) == STAGES
    assert {name for name, value in run.stages_ms.items() if value is None} == {
        "queue",
        "decode",
        "copy_in",
        "copy_out",
    }
    assert run.stages_ms["infer"] == pytest.approx(10)


@pytest.mark.parametrize(("scenario", "needed", "queries"), [("single-stream", 1, 5), ("offline", 0.2, 1)])
def test_a_duration_too_short_is_refused_with_the_one_that_serves(
    tiny_spec: ModelSpec, scenario: ScenarioName, needed: float, queries: int
) -> None:
    with pytest.raises(UsageError, match=rf"0\.1 s is too short.*0\.2 s a query.*must be {needed} or more"):
        measured(tiny_spec, lambda call: 200.0, scenario, duration_s=0.1)
    run, _ = measured(tiny_spec, lambda call: 200.0, scenario, duration_s=needed)
    assert len(run.raw_ms) == queries


@pytest.mark.parametrize("scenario", BOTH)
def test_a_failure_of_the_back_end_ends_the_run(tiny_spec: ModelSpec, scenario: ScenarioName) -> None:
    def fail(call: int) -> float:
        raise BackendError(f"call {call} failed")

    with pytest.raises(BackendError, match="call 0 failed"):
        measured(tiny_spec, fail, scenario)


def test_single_stream_stages_add_up_to_the_real_latency(tiny_spec: ModelSpec) -> None:
    def infer(images: Images) -> np.ndarray:
        time.sleep(0.002)
        return np.full((len(images), 3), 1 / 3, np.float32)

    (run,) = measure(
        {"single-stream": Pipeline(infer, tiny_spec)},
        make_queries(tiny_spec.image),
        [("single-stream", 1)],
        Settings(1, threads=1),
    )
    total = sum(value for value in run.stages_ms.values() if value is not None)
    assert total == pytest.approx(run.latency_ms["mean"], rel=0.05)


def test_the_harness_itself_costs_little(tiny_spec: ModelSpec) -> None:
    answer = np.full((1, 3), 1 / 3, np.float32)
    load = Load(cycle(make_queries(tiny_spec.image).samples), 1, 0.5, 1)
    found = single_stream(Pipeline(lambda images: answer, tiny_spec), load)
    own_ns = np.median(found.latencies_ns) - sum(found.stages_ns.values()) / len(found.latencies_ns)
    assert own_ns < 50_000
