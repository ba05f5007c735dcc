"""Comparing two results: the interval holds what it says, and every odd file has its message."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import MACHINE, result, run_of
from numpy.typing import NDArray

from medimg.benchmarks.comparison import Change, compare_benchmarks, read_result
from medimg.benchmarks.results import SCHEMA, Benchmark, Run, ScenarioName, ServerLoad, Trial
from medimg.runtime.errors import DataError
from medimg.runtime.files.plain import to_plain
from medimg.runtime.streams import write_json


def latencies(seed: int, count: int = 1000, mean_ms: float = 10.0) -> NDArray[np.float64]:
    """Times of which each is like the one before it (autocorrelation 0.8), with a spread of some percent."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=count)
    for place in range(1, count):
        noise[place] += 0.8 * noise[place - 1]
    return mean_ms * np.exp(0.02 * noise)


def written(path: Path, benchmark: Benchmark) -> Path:
    write_json(benchmark, str(path), schema=SCHEMA)
    return path


def changes(folder: Path, before: Benchmark, after: Benchmark) -> tuple[Change, ...]:
    return compare_benchmarks(
        written(folder / "before.json", before), written(folder / "after.json", after)
    ).changes


def test_what_run_writes_is_read_back(tiny_artefact: Path, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    command = [sys.executable, "-m", "medimg.benchmarks", "run", str(tiny_artefact), "--duration", "0.2"]
    subprocess.run([*command, "--json", str(output)], check=True, capture_output=True)
    plain = json.loads(output.read_text())
    del plain["schema"]
    assert to_plain(read_result(output)) == plain


@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_the_interval_of_equal_speeds_holds_one_as_often_as_it_says(
    scenario: ScenarioName, tmp_path: Path
) -> None:
    held = 0
    for seed in range(200):
        one, other = (result(run_of(latencies(2 * seed + side), scenario)) for side in (0, 1))
        (change,) = changes(tmp_path, one, other)
        held += change.judgement == "cannot tell"
    # 95 % of 200 are 190, with a standard deviation of 3.
    assert 181 <= held <= 199


@pytest.mark.parametrize(("share", "judgement"), [(0.95, "faster"), (1.05, "slower")])
def test_five_percent_are_told(share: float, judgement: str, tmp_path: Path) -> None:
    before = result(run_of(latencies(0)), run_of(latencies(1), "offline", 8))
    after = result(
        run_of(latencies(2, mean_ms=10 * share)), run_of(latencies(3, mean_ms=10 * share), "offline", 8)
    )
    latency, throughput = changes(tmp_path, before, after)
    assert (latency.measure, throughput.measure) == ("p50 ms", "images/s")
    for change in (latency, throughput):
        assert change.judgement == judgement
        assert change.speed_ratio == pytest.approx(1 / share, rel=0.02)
        low, high = change.speed_ratio_ci95 or (0, 0)
        assert low < 1 / share < high


def test_too_few_queries_cannot_tell(tmp_path: Path) -> None:
    (change,) = changes(tmp_path, result(run_of(latencies(0, 39))), result(run_of(2 * latencies(0, 39))))
    assert change.speed_ratio == pytest.approx(0.5)
    assert change.speed_ratio_ci95 is None
    assert change.judgement == "cannot tell"


def test_constant_times_need_no_interval(tmp_path: Path) -> None:
    (change,) = changes(tmp_path, result(run_of(np.full(40, 2.0))), result(run_of(np.full(40, 1.0))))
    assert change.speed_ratio_ci95 == pytest.approx((2, 2))
    assert change.judgement == "faster"


def searched(rate: float, failed: float) -> Run:
    trials = (Trial(rate, 1.0, 10.0, True), Trial(failed, 2.0, 30.0, False))
    return replace(run_of(latencies(0), "server"), server=ServerLoad(20.0, rate, trials))


@pytest.mark.parametrize(
    ("after", "judgement"),
    [((51, 52), "cannot tell"), ((60, 61), "faster"), ((40, 41), "slower"), ((50, 51), "cannot tell")],
)
def test_rates_that_were_looked_for_lie_between_two_trials(
    after: tuple[float, float], judgement: str, tmp_path: Path
) -> None:
    (change,) = changes(tmp_path, result(searched(50, 52)), result(searched(*after)))
    assert (change.measure, change.before, change.after) == ("images/s", 50, after[0])
    assert change.speed_ratio == pytest.approx(after[0] / 50)
    assert change.speed_ratio_ci95 == pytest.approx((after[0] / 52, after[1] / 50))
    assert change.judgement == judgement


def test_server_at_a_given_rate_is_compared_by_its_latency(tmp_path: Path) -> None:
    given = ServerLoad(20.0, 30.0, ())
    before, after = (
        replace(run_of(latencies(seed, mean_ms=mean), "server"), server=given)
        for seed, mean in ((0, 10), (1, 11))
    )
    (change,) = changes(tmp_path, result(before), result(after))
    assert (change.measure, change.judgement) == ("p50 ms", "slower")


def test_an_incomplete_result_is_told(tmp_path: Path) -> None:
    one = written(tmp_path / "one.json", result(run_of(latencies(0))))
    cut = written(tmp_path / "cut.json", result(run_of(latencies(0)), complete=False))
    assert "the second result is incomplete: its run ended early" in compare_benchmarks(one, cut).warnings


def test_a_result_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        read_result(written(tmp_path / "empty.json", result()))


def test_runs_are_matched_and_differences_are_said(tmp_path: Path) -> None:
    before = result(run_of(latencies(0)), run_of(latencies(1), "offline", 8))
    after = result(
        run_of(latencies(2), "offline", 4),
        run_of(latencies(3), "offline", 8),
        environment=replace(MACHINE, cpu="another"),
        threads=1,
        warnings=("it was busy",),
    )
    found = compare_benchmarks(written(tmp_path / "a.json", before), written(tmp_path / "b.json", after))
    assert [(change.scenario, change.batch_size) for change in found.changes] == [("offline", 8)]
    assert found.warnings == (
        "the processor differs: a processor, then another",
        "the number of threads differs: 2, then 1",
        "the second result: it was busy",
    )


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medimg.benchmarks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_regression_fails_a_job(tmp_path: Path) -> None:
    before = written(tmp_path / "before.json", result(run_of(latencies(0))))
    after = written(tmp_path / "after.json", result(run_of(latencies(1, mean_ms=11))))
    told = bench("compare", before, after)
    assert told.returncode == 0
    assert max(map(len, told.stdout.splitlines())) <= 80
    assert told.stdout.splitlines()[1].endswith("slower")
    assert bench("compare", before, after, "--max-slowdown", "0.2").returncode == 0
    failed = bench("compare", before, after, "--max-slowdown", "0.05", "--json", "-")
    assert failed.returncode == 1
    assert "single-stream, batch 1: slower by more than 5.0%" in failed.stderr
    assert json.loads(failed.stdout)["changes"][0]["judgement"] == "slower"
    assert bench("compare", after, before, "--max-slowdown", "0.05").returncode == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a result of medimg-bench run"),
        ('{"schema": 99}', "its schema is 99"),
        ('{"schema": 1, "model": 5}', "expected str"),
        ('{"schema": 1}', "missing"),
    ],
)
def test_a_file_that_is_no_result_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    odd = tmp_path / "odd.json"
    if content is not None:
        odd.write_text(content)
    good = written(tmp_path / "good.json", result(run_of(latencies(0))))
    found = bench("compare", good, odd)
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: {odd}")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_result_without_an_end_is_refused(tmp_path: Path) -> None:
    endless = tmp_path / "endless.json"
    endless.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"endless\.json: is a device or a pipe, and no result"):
        read_result(endless)


@pytest.mark.parametrize("time_ms", ["0.0", "-1.0", "NaN", "Infinity"])
def test_impossible_times_are_refused(time_ms: str, tmp_path: Path) -> None:
    run = run_of(latencies(0))
    odd = written(tmp_path / "odd.json", result(replace(run, raw_ms=(*run.raw_ms[:-1], 123456.0))))
    odd.write_text(odd.read_text().replace("123456.0", time_ms))
    with pytest.raises(DataError, match="above 0 and finite"):
        read_result(odd)


def test_results_without_a_common_run_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "one.json", result(run_of(latencies(0))))
    other = written(tmp_path / "other.json", result(run_of(latencies(0), "offline", 8)))
    found = bench("compare", one, other)
    assert found.returncode == 2
    assert "no scenario with the same batch size in common" in found.stderr
