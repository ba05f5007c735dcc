from dataclasses import replace

import numpy as np
import pytest

from medimg.benchmarks.environment import Environment
from medimg.benchmarks.judgement import drift, judge_machine, judge_precision, judge_run
from medimg.benchmarks.percentiles import summarise
from medimg.benchmarks.results import Run

ENVIRONMENT = Environment(
    "2026-01-01T00:00:00+00:00",
    "CPU",
    (),
    4,
    (0, 1, 2, 3),
    None,
    (0.1, 0, 0),
    "6.1",
    "x86_64",
    "3.11",
    "0.1",
    {},
)


def run_of(raw_ms: np.ndarray) -> Run:
    values = tuple(float(value) for value in raw_ms)
    return Run("single-stream", 1, len(values), 1.0, summarise(values), {}, None, None, 3, values)


def noisy(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 0.2, count)


@pytest.mark.parametrize(("load", "warned"), [(0.0, False), (0.9, False), (1.1, True), (8.0, True)])
def test_a_busy_machine_is_told_with_its_load(load: float, warned: bool) -> None:
    warnings = list(judge_machine(replace(ENVIRONMENT, load_average=(load, 0, 0))))
    assert bool(warnings) is warned
    if warned:
        assert f"{load:.2f} on 4 cores" in warnings[0]


@pytest.mark.parametrize(("real", "warned"), [("fp16", False), ("fp32", True)])
def test_another_precision_than_the_files_is_told(real: str, warned: bool) -> None:
    warnings = list(judge_precision("fp16", real, "onnxruntime"))
    assert bool(warnings) is warned
    assert all("onnxruntime ran it in fp32" in warning for warning in warnings)


def test_too_few_queries_name_each_percentile_and_the_duration_that_serves() -> None:
    (warning,) = judge_run(run_of(np.full(300, 10.0)))
    assert "p99.9 needs 2995 (--duration 30)" in warning
    assert "p99 needs" not in warning


def test_enough_steady_queries_pass_without_a_word() -> None:
    assert list(judge_run(run_of(noisy(3000)))) == []


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_drift(seed: int) -> None:
    assert drift(noisy(60, seed)) is None


def test_two_modes_in_random_order_are_no_drift() -> None:
    modes = np.random.default_rng(0).choice([10.0, 20.0], 1000)
    assert drift(modes) is None


@pytest.mark.parametrize(("factor", "direction"), [(1.3, "slower"), (0.7, "faster")])
def test_a_slow_change_is_drift(factor: float, direction: str) -> None:
    latencies = noisy(3000) * np.linspace(1, factor, 3000)
    found = drift(latencies)
    assert found == pytest.approx((1 + 5 / 6 * (factor - 1)) / (1 + 1 / 6 * (factor - 1)) - 1, abs=0.02)
    (warning,) = judge_run(run_of(latencies))
    assert f"% {direction} in its last third" in warning


def test_one_stall_is_no_drift() -> None:
    latencies = noisy(3000)
    latencies[2500] = 5000
    assert drift(latencies) is None
