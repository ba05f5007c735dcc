"""The scripts of the peers run, and the table is written in its place."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackend, FakeClock

import driver_figures
from driver_figures import ratio_of
from medimg.benchmarks.load import Load
from medimg.benchmarks.pipeline import Measurement, Pipeline
from medimg.benchmarks.queries import make_queries
from medimg.benchmarks.results import ScenarioName
from medimg.benchmarks.system import System
from medimg.runtime.model.spec import ModelSpec
from peers import table


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 16, 16, 3), np.uint8)
    (tmp_path / "npy").mkdir()
    for number, image in enumerate(pixels):
        np.save(tmp_path / "npy" / f"{number}.npy", image[None])
    np.save(tmp_path / "images.npy", pixels)
    return tmp_path


def test_onnxruntime_alone_and_benchmark_app_are_run_and_read(
    tiny_artefact: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "SECONDS", 0.2)
    for found in (
        table._script("onnxruntime_alone", tiny_artefact, images / "images.npy"),
        table._benchmark_app(tiny_artefact, images / "npy", "f32"),
    ):
        assert (found["p50_ms"] or 0) > 0
        assert (found["throughput_per_s"] or 0) > 0


def test_trtexecs_words_are_read(
    tiny_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text(
        "#!/bin/sh\n"
        "echo '[I] Throughput: 1523.4 qps'\n"
        "echo '[I] Latency: min = 0.6 ms, max = 0.9 ms, mean = 0.66 ms, median = 0.65 ms'\n"
        "echo '[I] GPU Compute Time: min = 0.5 ms, max = 0.8 ms, mean = 0.6 ms, median = 0.6 ms'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert table._trtexec(tiny_artefact) == {"p50_ms": 0.65, "throughput_per_s": 1523.4}
    assert [peer.name for peer in table._peers(tmp_path, ["openvino"])][-3:] == ["trtexec"] * 3


def test_the_table_takes_its_place_and_the_text_around_it_stays(tmp_path: Path) -> None:
    docs = tmp_path / "benchmarks.md"
    docs.write_text(f"before\n\n{table.START}\nold\n{table.END}\n\nafter\n")
    ours = [
        {"p50_ms": 20.0, "throughput_per_s": 50.0, "ran_in": "fp32"},
        {"p50_ms": 22.0, "throughput_per_s": 52.0, "ran_in": "fp32"},
    ]
    theirs = [{"p50_ms": 42.0, "throughput_per_s": 25.5}]
    rows = [
        table._row("medimg, openvino", "fp16", ours, None, ""),
        table._row("a peer", "int8", theirs, ours, "openvino"),
    ]
    result = {"rounds": 2, "seconds_a_run": 1.0, "images": 8, "batch": 8, "rows": rows}
    for _ in range(2):
        table.write_docs(result, docs)
    text = docs.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| medimg, openvino | fp16 (runs in fp32) | 21 | 51 |  |  |" in text
    assert "| a peer | int8 | 42 | 25.5 | 2.00 (openvino) | 2.00 (openvino) |" in text
    assert text.count(table.START) == 1


def test_the_documentation_has_a_place_for_the_table() -> None:
    text = table.DOCS.read_text()
    assert text.index(table.START) < text.index(table.END)


def test_a_ratio_has_an_interval_that_holds_it() -> None:
    found = ratio_of([10.0, 10.2, 9.9, 10.1], [10.0, 10.0, 10.0, 10.0])
    assert found["ratio"] == pytest.approx(1.005)
    assert found["ratio_ci95"][0] <= found["ratio"] <= found["ratio_ci95"][1]


@pytest.mark.parametrize("name", list(driver_figures.DRIVERS))
@pytest.mark.parametrize(
    ("scenario", "batch_size"), [("single-stream", 1), ("multi-stream", 4), ("offline", 4)]
)
def test_both_drivers_measure_what_the_system_takes(
    tiny_spec: ModelSpec, name: str, scenario: ScenarioName, batch_size: int
) -> None:
    """The short form of the figure `driver-agreement`: LoadGen's 60 s a scenario are shortened to 0.5.

    What a sleep really took on a busy machine is in the stages: neither driver may claim less.
    """

    def infer(images: np.ndarray) -> np.ndarray:
        time.sleep(0.005)
        return np.full((len(images), 3), 1 / 3, np.float32)

    samples = make_queries(tiny_spec.image).samples
    with System(Pipeline(infer, tiny_spec), samples, 2) as system:
        load = Load(batch_size, 0.5, len(samples), expected_query_s=0.005)
        found = driver_figures.DRIVERS[name](scenario, system, load)
    queries = len(found.latencies_ns)
    assert found.images >= batch_size * (queries - 1) + 1
    inferring_ns = found.stages_ns["infer"]
    assert sum(found.latencies_ns) >= inferring_ns
    assert found.elapsed_ns >= inferring_ns


def test_drivers_are_run_in_turn_and_their_figures_paired(
    tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def drive_as(name: str, latency_ns: int) -> Any:
        def drive(*_: object) -> Measurement:
            order.append(name)
            return Measurement(latencies_ns=[latency_ns] * 10, images=10, elapsed_ns=10 * latency_ns)

        return drive

    drivers = {"native": drive_as("native", 5_100_000), "loadgen": drive_as("loadgen", 5_000_000)}
    monkeypatch.setattr(driver_figures, "DRIVERS", drivers)
    clock = FakeClock()
    backend = FakeBackend(clock, lambda call: 5.0)
    with System(
        Pipeline(backend.infer, tiny_spec, clock), make_queries(tiny_spec.image).samples, 1
    ) as system:
        found = driver_figures.compare_drivers(system, "single-stream", 1, 64, rounds=4)
    assert order == ["loadgen", "native", "native", "loadgen"] * 2
    assert found["p90_ms"]["ratio"] == pytest.approx(1.02)
    assert found["p90_ms"]["ratio_ci95"] == pytest.approx([1.02, 1.02])
    assert found["throughput_per_s"]["ratio"] == pytest.approx(1 / 1.02)
