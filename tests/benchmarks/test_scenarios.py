"""Known latencies are measured right, on a clock that passes only when told."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackend, FakeClock, measured

from medimg.benchmarks.load import Load, poisson_arrivals_ns
from medimg.benchmarks.measuring import Settings, measure
from medimg.benchmarks.native import server
from medimg.benchmarks.pipeline import Pipeline
from medimg.benchmarks.queries import make_queries
from medimg.benchmarks.results import STAGES, ScenarioName
from medimg.benchmarks.system import System
from medimg.runtime.errors import BackendError, UsageError
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.spec import ModelSpec

FOLLOWING: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "offline")
ALL: tuple[ScenarioName, ...] = (*FOLLOWING, "server")
SERVED: dict[str, Any] = {"latency_bound_ms": 1e6, "rate_per_s": 20.0}


def bimodal(call: int) -> float:
    return 20.0 if call % 4 == 3 else 5.0


@pytest.mark.parametrize("scenario", FOLLOWING)
@pytest.mark.parametrize(
    "latency_ms",
    [lambda call: 7.5, bimodal, lambda call: 5 + call / 1000],
    ids=["constant", "bimodal", "drifting"],
)
def test_known_latencies_are_measured_right(
    tiny_spec: ModelSpec, scenario: ScenarioName, latency_ms: Callable[[int], float]
) -> None:
    run, backend = measured(tiny_spec, latency_ms, scenario)
    truth = backend.latencies[run.warm_up.queries :]
    assert run.raw_ms == pytest.approx(truth)
    assert run.at_s == pytest.approx([0, *np.cumsum(truth)[:-1] / 1e3])
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        assert run.latency_ms[name] == pytest.approx(np.quantile(truth, share), rel=0.02), name
    assert run.latency_ms["mean"] == pytest.approx(np.mean(truth))


def waiting_line(due_ms: np.ndarray, service_ms: list[float]) -> np.ndarray:
    """Lindley's recursion: what each of a single line of customers waits for and takes."""
    free, found = 0.0, []
    for arrival, service in zip(due_ms, service_ms, strict=True):
        free = max(free, arrival) + service
        found.append(free - arrival)
    return np.array(found)


@pytest.mark.parametrize("latency_ms", [lambda call: 30.0, bimodal], ids=["constant", "bimodal"])
def test_server_counts_from_the_scheduled_arrival(
    tiny_spec: ModelSpec, latency_ms: Callable[[int], float]
) -> None:
    run, backend = measured(tiny_spec, latency_ms, "server", **SERVED)
    due_ms = poisson_arrivals_ns(20, 60, 0) / 1e6
    expected = waiting_line(due_ms, backend.latencies[run.warm_up.queries :])
    assert run.raw_ms == pytest.approx(expected)
    assert run.at_s == pytest.approx(due_ms / 1e3)
    assert run.stages_ms["queue"] == pytest.approx(expected.mean() - (run.stages_ms["infer"] or 0))


def test_a_stall_delays_all_who_arrive_meanwhile(tiny_spec: ModelSpec) -> None:
    """Coordinated omission would count one late query; those that came during the stall are late too."""
    clock = FakeClock()
    backend = FakeBackend(clock, lambda call: 2000.0 if call == 100 else 1.0)
    samples = make_queries(tiny_spec.image).samples
    with System(Pipeline(backend.infer, tiny_spec, clock), samples, 1) as system:
        found = server(system, Load(1, 60, len(samples), rate_per_s=50, latency_bound_s=1))
    late = sum(latency > 100e6 for latency in found.latencies_ns)
    # Within two seconds at 50 a second.
    assert 60 < late < 140
    assert max(found.latencies_ns) == 2000e6


def test_waiting_queries_are_answered_together_up_to_the_batch_size(tiny_spec: ModelSpec) -> None:
    one, alone = measured(tiny_spec, lambda call: 45.0, "server", **SERVED)
    many, together = measured(tiny_spec, lambda call: 45.0, "server", 8, **SERVED)
    assert len(one.raw_ms) == len(many.raw_ms)
    assert len(together.latencies) - many.warm_up.queries < len(alone.latencies) - one.warm_up.queries
    assert many.latency_ms["p99"] < one.latency_ms["p99"] / 2


@pytest.mark.parametrize("scenario", ALL)
@pytest.mark.parametrize("when", [0, 1, 500])
def test_a_stall_is_never_lost(tiny_spec: ModelSpec, scenario: ScenarioName, when: int) -> None:
    warm_up = 75  # three windows of a quarter of a second at 10 ms
    run, _ = measured(tiny_spec, lambda call: 2500.0 if call == warm_up + when else 10.0, scenario, **SERVED)
    assert run.warm_up.queries == warm_up
    assert run.warm_up.stable
    assert run.latency_ms["max"] >= 2500
    assert run.raw_ms[when] == pytest.approx(run.latency_ms["max"])
    if scenario != "server":
        assert run.throughput_per_s == pytest.approx(run.samples / (sum(run.raw_ms) / 1000))
        assert any("over 10 times the usual" in warning for warning in run.warnings)


def test_a_stall_in_the_warm_up_is_in_no_figure(tiny_spec: ModelSpec) -> None:
    run, _ = measured(tiny_spec, lambda call: 2500.0 if call == 0 else 10.0)
    assert run.latency_ms["max"] == pytest.approx(10)


def test_the_warm_up_lasts_until_the_latency_is_steady(tiny_spec: ModelSpec) -> None:
    run, _ = measured(tiny_spec, lambda call: max(10.0, 40 - 0.5 * call))
    assert run.warm_up.stable
    assert 60 < run.warm_up.queries < 200
    assert run.latency_ms["max"] == pytest.approx(10)


def test_a_warm_up_that_never_settles_is_told(tiny_spec: ModelSpec) -> None:
    run, _ = measured(tiny_spec, lambda call: 10 * 1.005**call, duration_s=5)
    assert not run.warm_up.stable
    assert any("the warm-up was not steady after" in warning for warning in run.warnings)


@pytest.mark.parametrize("scenario", FOLLOWING)
def test_drift_is_flagged(tiny_spec: ModelSpec, scenario: ScenarioName) -> None:
    run, _ = measured(tiny_spec, lambda call: 10 * 1.0001**call, scenario)
    assert any("drifted" in warning and "slower" in warning for warning in run.warnings)


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 100.0), (4, 400.0), (32, 3200.0)])
@pytest.mark.parametrize("scenario", ["offline", "multi-stream"])
def test_throughput_counts_images_not_batches(
    tiny_spec: ModelSpec, scenario: ScenarioName, batch_size: int, expected: float
) -> None:
    run, _ = measured(tiny_spec, lambda call: 10.0, scenario, batch_size, duration_s=10)
    assert run.throughput_per_s == pytest.approx(expected)
    assert run.samples == batch_size * len(run.raw_ms)


@pytest.mark.parametrize("scenario", ALL)
def test_every_stage_of_the_contract_is_named_and_those_that_do_not_exist_are_null(
    tiny_spec: ModelSpec, scenario: ScenarioName
) -> None:
    run, _ = measured(tiny_spec, lambda call: 10.0, scenario, **SERVED)
    assert tuple(run.stages_ms) == STAGES
    missing = {"decode", "copy_in", "copy_out"} | ({"queue"} if scenario != "server" else set())
    assert {name for name, value in run.stages_ms.items() if value is None} == missing
    assert run.stages_ms["infer"] == pytest.approx(10)


def test_busy_shares_are_those_of_the_clock(tiny_spec: ModelSpec) -> None:
    single, _ = measured(tiny_spec, lambda call: 10.0)
    assert single.utilisation is None
    assert sum(value or 0 for value in single.stages_ms.values()) == pytest.approx(single.latency_ms["mean"])
    offline, _ = measured(tiny_spec, lambda call: 10.0, "offline")
    assert (offline.utilisation or {})["infer"] == pytest.approx(1)
    served, _ = measured(tiny_spec, lambda call: 10.0, "server", **SERVED)
    # 20 a second, 10 ms each.
    assert (served.utilisation or {})["infer"] == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize(
    ("scenario", "options", "needed", "queries"),
    [
        ("single-stream", {}, "1", 5),
        ("multi-stream", {}, "1", 5),
        ("offline", {}, "0.2", 1),
        ("single-stream", {"percentile": "p90"}, "12.8", 64),
        ("multi-stream", {"percentile": "p99"}, "133", 665),
        ("server", {**SERVED, "percentile": "p99"}, "33.1", None),
    ],
)
def test_a_duration_too_short_is_refused_with_the_one_that_serves(
    tiny_spec: ModelSpec, scenario: ScenarioName, options: dict[str, Any], needed: str, queries: int | None
) -> None:
    with pytest.raises(UsageError, match=rf"0\.1 s is too short.*must be {needed} or more"):
        measured(tiny_spec, lambda call: 200.0, scenario, duration_s=0.1, **options)
    run, _ = measured(tiny_spec, lambda call: 200.0, scenario, duration_s=float(needed), **options)
    assert queries is None or len(run.raw_ms) == queries
    if "percentile" in options and scenario != "server":
        assert run.validity.valid, run.validity


@pytest.mark.parametrize("scenario", ALL)
def test_a_failure_of_the_back_end_ends_the_run(tiny_spec: ModelSpec, scenario: ScenarioName) -> None:
    def fail(call: int) -> float:
        if call == 200:
            raise BackendError(f"call {call} failed")
        return 10.0

    with pytest.raises(BackendError, match="call 200 failed"):
        measured(tiny_spec, fail, scenario, **SERVED)


@pytest.mark.parametrize("scenario", ALL)
def test_accuracy_mode_sends_every_image_once(tiny_spec: ModelSpec, scenario: ScenarioName) -> None:
    run, backend = measured(tiny_spec, lambda call: 10.0, scenario, accuracy=True, **SERVED)
    # The fake back end finds all classes equally likely, and made images have no label.
    assert run.accuracy is not None
    assert (run.accuracy.images, run.accuracy.correct) == (64, 0)
    assert len(backend.latencies) == run.warm_up.queries + len(run.raw_ms) + 64


def p99_at(rate: float, seed: int = 9) -> float:
    """What a single line of customers that take 20 ms each waits at a rate, over a long time."""
    due_ms = poisson_arrivals_ns(rate, 3000, seed) / 1e6
    return float(np.quantile(waiting_line(due_ms, [20.0] * len(due_ms)), 0.99))


def test_server_finds_the_highest_rate_whose_p99_stays_within_the_bound(tiny_spec: ModelSpec) -> None:
    run, _ = measured(tiny_spec, lambda call: 20.0, "server", latency_bound_ms=100, duration_s=300)
    assert run.server is not None
    assert run.validity.valid, run.validity
    assert run.latency_ms["p99"] <= 100
    # As queueing theory has it, with what a run of five minutes varies by.
    assert p99_at(0.85 * run.server.rate_per_s) < 100 < p99_at(1.15 * run.server.rate_per_s)
    below = [trial for trial in run.server.trials if trial.rate_per_s <= 0.85 * run.server.rate_per_s]
    assert all(trial.held for trial in below)


def test_a_run_too_short_for_the_bounds_percentile_is_not_run_again(tiny_spec: ModelSpec) -> None:
    run, _ = measured(tiny_spec, lambda call: 20.0, "server", latency_bound_ms=100, duration_s=4)
    assert run.server is not None
    assert len(run.raw_ms) < 459
    assert not run.validity.valid
    assert any("gives 662 queries" in warning for warning in run.warnings)


def test_samples_are_drawn_at_random_and_the_same_from_the_same_seed() -> None:
    drawn = [[next(indices) for _ in range(5000)] for indices in (Load(1, 1, 64).indices() for _ in range(2))]
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == set(range(64))
    other = Load(1, 1, 64, seed=1).indices()
    assert [next(other) for _ in range(5000)] != drawn[0]


def test_single_stream_stages_add_up_to_the_real_latency(tiny_spec: ModelSpec) -> None:
    def infer(images: Images) -> np.ndarray:
        time.sleep(0.01)
        return np.full((len(images), 3), 1 / 3, np.float32)

    (run,) = measure(
        {"single-stream": Pipeline(infer, tiny_spec)},
        make_queries(tiny_spec.image),
        [("single-stream", 1)],
        Settings(1, threads=1),
    )
    total = sum(value for value in run.stages_ms.values() if value is not None)
    assert total == pytest.approx(run.latency_ms["mean"], rel=0.05)
