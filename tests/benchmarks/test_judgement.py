from dataclasses import replace

import numpy as np
import pytest
from fakes import MACHINE, run_of

from medimg.benchmarks.judgement import drift, judge_machine, judge_precision, judge_run, likely_cause
from medimg.benchmarks.monitor import MachineLog, MachineState
from medimg.benchmarks.results import Validity


def noisy(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 0.2, count)


def state(clock_mhz: float | None) -> MachineState:
    return MachineState(0.0, clock_mhz, None, None, None, None, None)


def log(
    clocks_mhz: tuple[float, ...] = (2000.0,), other_cores: float = 0.0, throttled: bool | None = None
) -> MachineLog:
    during = tuple(map(state, clocks_mhz))
    return MachineLog(state(2000.0), during, state(2000.0), 1.0, other_cores, throttled, None, None)


@pytest.mark.parametrize(("load", "warned"), [(0.0, False), (0.9, False), (1.1, True), (8.0, True)])
def test_a_busy_machine_is_told_with_its_load(load: float, warned: bool) -> None:
    warnings = list(judge_machine(replace(MACHINE, load_average=(load, 0, 0))))
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


def test_an_invalid_run_says_why_and_what_would_do() -> None:
    invalid = Validity(False, ("300 queries where early stopping needs 662",), None)
    run = replace(run_of(np.full(300, 10.0), "multi-stream", 8), validity=invalid, percentile="p99")
    warning = next(warning for warning in judge_run(run) if "not valid" in warning)
    assert "300 queries where early stopping needs 662 (--duration 7 gives 662 queries)" in warning


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_drift(seed: int) -> None:
    assert drift(noisy(60, seed)) is None


def test_two_modes_in_random_order_are_unsteady_but_no_drift() -> None:
    modes = np.random.default_rng(0).choice([10.0, 20.0], 3000)
    assert drift(modes) is None
    (warning,) = judge_run(run_of(modes))
    assert "unsteady, the middle half of its queries took 10 to 20 ms" in warning


@pytest.mark.parametrize(("factor", "direction"), [(1.3, "slower"), (0.7, "faster")])
def test_a_slow_change_is_drift(factor: float, direction: str) -> None:
    latencies = noisy(3000) * np.linspace(1, factor, 3000)
    found = drift(latencies)
    assert found == pytest.approx((1 + 5 / 6 * (factor - 1)) / (1 + 1 / 6 * (factor - 1)) - 1, abs=0.02)
    warning = next(warning for warning in judge_run(run_of(latencies)) if "drifted" in warning)
    assert f"% {direction} in its last third" in warning


def test_one_stall_is_no_drift_and_is_told_with_its_time() -> None:
    latencies = noisy(3000)
    latencies[2500] = 5000
    assert drift(latencies) is None
    (warning,) = judge_run(run_of(latencies))
    assert (
        "1 of 3000 queries took over 10 times the usual, the longest 5000 ms, the first at 25.0 s" in warning
    )


@pytest.mark.parametrize(
    ("machine", "cause"),
    [
        (None, "heat"),
        (log(), "heat"),
        (log(clocks_mhz=(1990.0, 2010.0)), "heat"),
        (log(clocks_mhz=(1500.0,)), "a clock that fell"),
        (log(clocks_mhz=(1500.0,), throttled=True), "throttling"),
        (log(other_cores=1.25, throttled=False), "other work, on 1.2 processors"),
    ],
)
def test_the_likely_cause_is_what_was_seen(machine: MachineLog | None, cause: str) -> None:
    assert likely_cause(machine, "heat").startswith(cause)
    drifting = run_of(noisy(3000) * np.linspace(1, 1.3, 3000))
    warnings = list(judge_run(replace(drifting, machine=machine)))
    assert any("drifted" in warning and f"(likely {cause}" in warning for warning in warnings)


def test_throttling_and_other_work_are_told_of_a_steady_run_too() -> None:
    steady = replace(run_of(noisy(3000)), machine=log(other_cores=0.5, throttled=True))
    throttled, busy = judge_run(steady)
    assert "throttled" in throttled
    assert "other work kept 0.5 processors busy" in busy


def test_batches_that_end_together_are_not_unsteady() -> None:
    """Two at a time on two threads: the time from one to the next is nothing, then all."""
    pairs = np.tile([0.1, 40.0], 1500)
    assert list(judge_run(run_of(pairs, "offline", 8))) == []
    slowing = pairs * np.repeat(np.linspace(1, 1.5, 30), 100)
    assert any("drifted" in warning for warning in judge_run(run_of(slowing, "offline", 8)))
