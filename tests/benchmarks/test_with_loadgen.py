"""MLPerf's LoadGen drives the same system, and agrees with the native driver where both are exact."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medimg.benchmarks import native, with_loadgen
from medimg.benchmarks.load import Load, poisson_arrivals_ns
from medimg.benchmarks.measuring import Settings, measure
from medimg.benchmarks.pipeline import Measurement, Pipeline
from medimg.benchmarks.queries import make_queries
from medimg.benchmarks.results import ScenarioName, Validity
from medimg.benchmarks.system import System
from medimg.benchmarks.validity import upper_bound
from medimg.runtime.errors import BackendError
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.spec import ModelSpec

ALL: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "offline", "server")
SERVICE_S = 0.002


class Sleeper:
    """Takes a known time a batch; the first class follows from the image's first pixel."""

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, images: Images) -> np.ndarray:
        self.calls += 1
        time.sleep(SERVICE_S)
        return np.eye(3, dtype=np.float32)[images[:, 0, 0, 0] % 3]


def load_of(scenario: ScenarioName, **changes: Any) -> Load:
    size = 1 if scenario in ("single-stream", "server") else 4
    # Two batches at a time in offline.
    expected_s = SERVICE_S / 2 if scenario == "offline" else SERVICE_S
    load = Load(size, 0.6, 64, expected_query_s=expected_s, rate_per_s=100, latency_bound_s=1.0, share=0.9)
    return replace(load, **changes)


def drive(
    spec: ModelSpec, scenario: ScenarioName, load: Load, logs: Path | None = None, infer: Any = None
) -> Measurement:
    samples = make_queries(spec.image).samples
    with System(Pipeline(infer or Sleeper().infer, spec, parallel=2), samples, 2) as system:
        return with_loadgen.drive(scenario, system, load, logs)


@pytest.mark.parametrize("scenario", ALL)
def test_a_run_is_valid_and_its_logs_are_kept_without_an_error(
    tiny_spec: ModelSpec, scenario: ScenarioName, tmp_path: Path
) -> None:
    found = drive(tiny_spec, scenario, load_of(scenario), tmp_path / "logs")
    assert found.validity is not None
    assert found.validity.valid, found.validity
    summary = (tmp_path / "logs" / "mlperf_log_summary.txt").read_text()
    assert "Result is : VALID" in summary
    assert "No errors encountered during test." in summary
    assert with_loadgen.read_detail(tmp_path / "logs" / "mlperf_log_detail.txt").errors == ()
    assert min(found.latencies_ns) >= (0 if scenario == "offline" else 1e9 * SERVICE_S)
    assert found.elapsed_ns >= 0.55e9


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "server"])
def test_the_latencies_are_those_of_loadgens_own_summary(
    tiny_spec: ModelSpec, scenario: ScenarioName, tmp_path: Path
) -> None:
    found = drive(tiny_spec, scenario, load_of(scenario), tmp_path)
    values = with_loadgen.read_detail(tmp_path / "mlperf_log_detail.txt").values
    kind = "per_query_latency_ns" if scenario == "multi-stream" else "latency_ns"
    stem = "query_latency_ns" if scenario == "multi-stream" else "latency_ns"
    assert max(found.latencies_ns) == values[f"result_max_{stem}"]
    assert min(found.latencies_ns) == values[f"result_min_{stem}"]
    assert found.validity is not None
    if scenario != "server":
        bound_ms = upper_bound([latency / 1e6 for latency in found.latencies_ns], 0.9)
        assert found.validity.early_stopping_ms == pytest.approx(bound_ms)
    ordered = sorted(found.latencies_ns)
    assert ordered[int(0.9 * len(ordered))] == values[f"result_90.00_percentile_{kind}"]


def test_the_native_arrivals_are_loadgens(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    found = drive(tiny_spec, "server", load_of("server", seed=7), tmp_path)
    due = poisson_arrivals_ns(100, 0.6, 7)
    # LoadGen's trace gives nanoseconds after a rounding.
    np.testing.assert_allclose(found.begins_ns, due, atol=2)
    values = with_loadgen.read_detail(tmp_path / "mlperf_log_detail.txt").values
    assert values["generated_query_count"] == len(due)


@pytest.mark.parametrize("rate", [0.5, 3.0, 1e4])
def test_arrivals_are_a_poisson_process(rate: float) -> None:
    due = poisson_arrivals_ns(rate, 2000 / rate, 3)
    gaps = np.diff(due) / 1e9 * rate
    assert due[0] == 0
    assert len(due) == pytest.approx(2000, abs=150)
    assert gaps.mean() == pytest.approx(1, abs=0.1)
    assert gaps.std() == pytest.approx(1, abs=0.1)
    assert due[-2] < 2000 / rate * 1e9 <= due[-1]


@pytest.mark.parametrize("scenario", ALL)
def test_both_drivers_find_the_same_classes_in_accuracy_mode(
    tiny_spec: ModelSpec, scenario: ScenarioName
) -> None:
    load = load_of(scenario, every_image_once=True, duration_s=0.0, rate_per_s=400)
    samples = make_queries(tiny_spec.image).samples
    truth = {n: int(sample.load(tiny_spec.image)[0, 0, 0]) % 3 for n, sample in enumerate(samples)}
    with System(Pipeline(Sleeper().infer, tiny_spec, parallel=2), samples, 2) as system:
        assert with_loadgen.drive(scenario, system, load).answers == truth
        assert native.drive(scenario, system, load).answers == truth


@pytest.mark.parametrize("scenario", ALL)
def test_a_failure_of_the_back_end_reaches_the_caller_through_loadgen(
    tiny_spec: ModelSpec, scenario: ScenarioName
) -> None:
    sleeper = Sleeper()

    def infer(images: Images) -> np.ndarray:
        if sleeper.calls == 5:
            raise BackendError("the device has gone")
        return sleeper.infer(images)

    with pytest.raises(BackendError, match="the device has gone"):
        drive(tiny_spec, scenario, load_of(scenario), infer=infer)
    # LoadGen itself is as good as new.
    again = drive(tiny_spec, scenario, load_of(scenario)).validity
    assert again is not None
    assert again.valid


@contextmanager
def interrupt_soon(handler: Any) -> Iterator[None]:
    """Send SIGINT to this process, which handles it so whatever it was started with."""
    before = signal.signal(signal.SIGINT, handler)
    sending = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    sending.start()
    try:
        yield
        sending.join()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_an_interrupt_ends_the_run_between_two_queries(tiny_spec: ModelSpec, scenario: ScenarioName) -> None:
    begin = time.monotonic()
    with interrupt_soon(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        drive(tiny_spec, scenario, load_of(scenario, duration_s=60.0))
    assert time.monotonic() - begin < 30


def test_an_ignored_interrupt_ends_nothing(tiny_spec: ModelSpec) -> None:
    with interrupt_soon(signal.SIG_IGN):
        validity = drive(tiny_spec, "single-stream", load_of("single-stream")).validity
    assert validity is not None
    assert validity.valid


def test_too_few_queries_are_invalid_by_loadgen_and_by_the_native_driver(tiny_spec: ModelSpec) -> None:
    load = load_of("single-stream", duration_s=0.3, share=0.999)
    samples = make_queries(tiny_spec.image).samples
    with System(Pipeline(Sleeper().infer, tiny_spec), samples, 2) as system:
        verdicts = [module.drive("single-stream", system, load).validity for module in (with_loadgen, native)]
    for verdict in verdicts:
        assert verdict is not None
        assert not verdict.valid
        assert "6636" in verdict.reasons[0]


def test_an_error_in_the_detail_log_is_found(tmp_path: Path) -> None:
    lines = [
        {"key": "result_validity", "value": "VALID", "metadata": {"is_error": False}},
        {"key": "error_runtime", "value": "ran out of queries", "metadata": {"is_error": True}},
    ]
    log = tmp_path / "detail.txt"
    log.write_text("".join(f":::MLLOG {json.dumps(line)}\n" for line in lines))
    found = with_loadgen.read_detail(log)
    assert found.errors == ("error_runtime: ran out of queries",)
    assert found.validity() == Validity(False, found.errors, None)


def test_a_system_much_faster_than_in_the_warm_up_is_run_again(tiny_spec: ModelSpec) -> None:
    calls = 0

    def infer(images: Images) -> np.ndarray:
        nonlocal calls
        calls += 1
        # Slow for as long as the warm-up takes.
        time.sleep(0.1 if calls <= 10 else 0.0005)
        return np.full((len(images), 3), 1 / 3, np.float32)

    (run,) = measure(
        {"single-stream": Pipeline(infer, tiny_spec)},
        make_queries(tiny_spec.image),
        [("single-stream", 1)],
        Settings(0.6, threads=1, driver="loadgen"),
    )
    assert run.validity.valid, run.validity
    assert run.at_s[-1] > 0.5
