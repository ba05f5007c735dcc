import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import run_of, write_images

from medimg.benchmarks import Benchmark, BenchmarkOptions, run_benchmark
from medimg.benchmarks.benchmark import choose_driver, find_knee
from medimg.benchmarks.cold_start import measure_cold_start
from medimg.benchmarks.results import STAGES
from medimg.benchmarks.table import show
from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import BackendError, DataError, MissingDependencyError, ModelError, UsageError
from medimg.runtime.files.plain import to_plain
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import embed_in_onnx, open_onnx
from medimg.runtime.model.spec import Intensity, ModelSpec

RUN_KEYS = [
    "scenario",
    "batch_size",
    "samples",
    "throughput_per_s",
    "latency_ms",
    "stages_ms",
    "cold_start_s",
    "raw_ms",
]


def run_short(model: Path, **options: Any) -> Benchmark:
    chosen = BenchmarkOptions(**{"duration_s": 0.3, "driver": "native", **options})
    return run_benchmark(model, chosen, threads=1)


@pytest.fixture(scope="module")
def synthetic(tiny_artefact: Path) -> Benchmark:
    return run_short(tiny_artefact, batch_sizes=(1, 4), backend="onnxruntime")


def test_the_json_has_the_layout_of_the_contract(synthetic: Benchmark) -> None:
    plain = json.loads(json.dumps(to_plain(synthetic), allow_nan=False))
    assert {"model", "precision", "backend", "device", "environment", "runs", "images_from"} <= set(plain)
    for run in plain["runs"]:
        assert [key for key in run if key in RUN_KEYS] == RUN_KEYS
        assert list(run["latency_ms"]) == ["p50", "p90", "p95", "p99", "p99.9", "max", "mean"]
        assert list(run["stages_ms"]) == list(STAGES)
        assert len(run["raw_ms"]) * run["batch_size"] == run["samples"]
        assert len(run["at_s"]) == len(run["raw_ms"])
        assert max(run["raw_ms"]) == run["latency_ms"]["max"]


def test_single_stream_is_run_once_and_offline_at_every_batch_size(synthetic: Benchmark) -> None:
    found = [(run.scenario, run.batch_size) for run in synthetic.runs]
    assert found == [("single-stream", 1), ("offline", 1), ("offline", 4)]


def test_a_run_lasts_as_long_as_was_asked(synthetic: Benchmark) -> None:
    for run in synthetic.runs:
        assert 0.3 <= sum(run.raw_ms) / 1000 < 0.6
        assert run.throughput_per_s == pytest.approx(run.samples / (sum(run.raw_ms) / 1000), rel=1e-6)


def test_made_images_are_called_synthetic_and_have_no_decoding(synthetic: Benchmark) -> None:
    assert synthetic.images_from == "synthetic"
    assert {run.stages_ms["decode"] for run in synthetic.runs} == {None}


def test_the_first_answer_is_timed_in_parts(synthetic: Benchmark) -> None:
    for run in synthetic.runs:
        assert run.cold_start is not None
        parts: dict[str, float] = to_plain(run.cold_start)
        assert list(parts) == ["import_s", "load_s", "first_inference_s", "peak_memory_mib"]
        assert min(parts.values()) > 0
        assert 20 < parts.pop("peak_memory_mib") < 1000
        assert run.cold_start_s == pytest.approx(sum(parts.values()))
        assert 0.05 < sum(parts.values()) < 60


def test_the_environment_names_what_the_figures_depend_on(synthetic: Benchmark) -> None:
    environment = synthetic.environment
    assert environment.cores >= len(environment.affinity) >= 1
    assert {"onnxruntime", "numpy"} <= set(environment.packages)
    assert len(environment.load_average) == 3
    assert "model name" not in environment.cpu


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_images_from_disk_are_decoded_within_each_query(
    tiny_artefact: Path, image_folder: Path, backend: str
) -> None:
    found = run_short(tiny_artefact, data=image_folder, backend=backend)
    assert (found.images_from, found.images, found.backend) == ("files", 6, backend)
    for run in found.runs:
        assert (run.stages_ms["decode"] or 0) > 0
    single = found.runs[0]
    total = sum(value for value in single.stages_ms.values() if value is not None)
    # A network of nothing takes tens of microseconds; VGG16's stages add up within 5 % (test_exported).
    assert 0.5 * single.latency_ms["mean"] < total <= single.latency_ms["mean"]


def test_unreadable_files_are_left_out_and_told(tiny_artefact: Path, image_folder: Path) -> None:
    (image_folder / "broken.png").write_bytes(b"not an image")
    found = run_short(tiny_artefact, data=image_folder, scenarios=["single-stream"])
    assert found.images == 6
    assert any("1 images are left out" in warning and "broken.png" in warning for warning in found.warnings)


def test_no_readable_image_is_an_error_that_names_the_data(tiny_artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=str(tmp_path)):
        run_short(tiny_artefact, data=tmp_path)


def test_the_precision_that_ran_is_told_if_it_is_not_the_files(
    tiny_artefact: Path, tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    content = open_onnx(tiny_artefact).content
    artefact = tmp_path / "tiny.int8.onnx"
    artefact.write_bytes(embed_in_onnx(_without_entry(content), tiny_spec.with_(precision="int8")))
    found = run_short(artefact, backend="openvino", scenarios=["single-stream"])
    assert (found.file_precision, found.precision) == ("int8", "fp32")
    assert any("openvino ran it in fp32" in warning for warning in found.warnings)


def test_an_artefact_of_unknown_preprocessing_is_refused(tiny_artefact: Path, tmp_path: Path) -> None:
    spec = ModelSpec(("a", "b", "c"), ImageRule(16, 16), Intensity("unspecified"))
    artefact = tmp_path / "unknown.onnx"
    artefact.write_bytes(embed_in_onnx(_without_entry(open_onnx(tiny_artefact).content), spec))
    with pytest.raises(ModelError, match="--preprocessing"):
        run_short(artefact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenarios": ["sometimes"]}, "no scenario 'sometimes'"),
        ({"scenarios": []}, "at least one"),
        ({"batch_sizes": []}, "at least one"),
        ({"batch_sizes": [0]}, "from 1 up"),
        ({"duration_s": 0}, "duration 0 s"),
        ({"scenarios": ["server"]}, "--latency-bound"),
        ({"scenarios": ["server"], "latency_bound_ms": 5, "rate_per_s": 0}, "rate of 0"),
        ({"percentile": "p42"}, "no percentile 'p42'"),
        ({"accuracy": True}, "--data"),
        ({"images_from": "arrays"}, "--data"),
    ],
)
def test_wrong_options_are_refused_when_they_are_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BenchmarkOptions(**options)


def test_a_first_answer_that_fails_gives_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"missing\.onnx.*failed in a new process"):
        measure_cold_start(tmp_path / "missing.onnx", 1, backend="onnxruntime", device="cpu", threads=1)


def test_decoding_before_the_clock_is_started_is_said(tiny_artefact: Path, image_folder: Path) -> None:
    found = run_short(tiny_artefact, data=image_folder, images_from="arrays", scenarios=["single-stream"])
    assert (found.images_from, found.runs[0].stages_ms["decode"]) == ("arrays", None)


def test_loadgen_is_taken_where_it_is_installed(
    tiny_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_driver("auto") == "loadgen"
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    monkeypatch.setattr("medimg.benchmarks.with_loadgen.installed", lambda: False)
    assert choose_driver("auto") == "native"
    with pytest.raises(MissingDependencyError, match=r"mlperf_loadgen.*medimg\[bench\]"):
        run_short(tiny_artefact, driver="loadgen")
    with pytest.raises(UsageError, match="--driver loadgen"):
        run_short(tiny_artefact, driver="auto", logs=tmp_path)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_model_that_the_back_end_refuses_is_named(
    tiny_artefact: Path, tiny_spec: ModelSpec, tmp_path: Path, backend: str
) -> None:
    import onnx

    model = onnx.ModelProto.FromString(_without_entry(open_onnx(tiny_artefact).content))
    model.graph.node[-1].op_type = "NoSuchOperation"
    artefact = tmp_path / "odd.onnx"
    artefact.write_bytes(embed_in_onnx(model.SerializeToString(), tiny_spec))
    with pytest.raises(BackendError, match=r"odd\.onnx: .*refuses it"):
        run_short(artefact, backend=backend)


def test_the_machine_is_watched(synthetic: Benchmark) -> None:
    # The kernel brings its own figure up to date now and then.
    peak_of_this_process_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + 1
    for run in synthetic.runs:
        assert run.machine is not None
        assert 20 < (run.machine.peak_memory_mib or 0) <= peak_of_this_process_mib
        assert 0 < run.machine.own_cores < 64


@pytest.mark.parametrize("driver", ["native", "loadgen"])
def test_server_finds_the_highest_rate_that_holds_the_bound(tiny_artefact: Path, driver: str) -> None:
    found = run_short(tiny_artefact, scenarios=["server"], latency_bound_ms=200, driver=driver)
    (run,) = found.runs
    assert run.server is not None
    held = [trial.rate_per_s for trial in run.server.trials if trial.held]
    assert held
    assert 0 < run.server.rate_per_s <= max(held)
    assert run.latency_ms["max"] > 0


def test_a_bound_that_cannot_be_held_is_told(tiny_artefact: Path) -> None:
    with pytest.raises(UsageError, match=r"no rate holds a latency bound of 1e-06 ms.*raise --latency-bound"):
        run_short(tiny_artefact, scenarios=["server"], latency_bound_ms=1e-6)


def test_what_was_measured_is_given_after_each_run(tiny_artefact: Path) -> None:
    seen: list[Benchmark] = []
    options = BenchmarkOptions(duration_s=0.3, driver="native", batch_sizes=(1, 4))
    found = run_benchmark(tiny_artefact, options, threads=1, on_run=seen.append)
    assert [len(item.runs) for item in seen] == [1, 2, 3]
    assert [item.complete for item in seen] == [False, False, True]
    assert seen[-1] is found


@pytest.mark.parametrize("driver", ["native", "loadgen"])
def test_accuracy_mode_counts_right_answers(tiny_artefact: Path, tmp_path: Path, driver: str) -> None:
    with Classifier(tiny_artefact) as classifier:
        for label in classifier.spec.labels:
            (tmp_path / label).mkdir()
        write_images(tmp_path / "dark", 5)
        write_images(tmp_path / "grey", 3)
        files = sorted(tmp_path.rglob("*.png"))
        answers = [item.top_k[0].label for item in classifier.predict(files)]
    expected = sum(path.parent.name == answer for path, answer in zip(files, answers, strict=True))
    found = run_short(tiny_artefact, data=tmp_path, accuracy=True, batch_sizes=(3,), driver=driver)
    for run in found.runs:
        assert run.accuracy is not None
        assert (run.accuracy.images, run.accuracy.correct) == (8, expected)


@pytest.mark.parametrize(("rates", "size"), [((100, 190, 200), 4), ((100, 110, 200), 8), ((200, 100, 90), 1)])
def test_the_knee_is_the_smallest_batch_that_is_nearly_best(rates: tuple[float, ...], size: int) -> None:
    runs = [
        replace(run_of(np.full(50, 1.0), "offline", batch), throughput_per_s=rate)
        for batch, rate in zip((1, 4, 8), rates, strict=True)
    ]
    knee = find_knee(runs)
    assert knee is not None
    assert knee.batch_size == size
    assert find_knee(runs[:2]) is None


def test_the_table_fits_80_columns_and_says_where_the_images_come_from(synthetic: Benchmark) -> None:
    lines = show(synthetic)
    assert max(map(len, lines)) <= 80
    text = " ".join(line.strip() for line in lines)
    for words in ("synthetic", "queries sent by medimg", "VALID", "energy", "cold start, batch 4"):
        assert words in text, words


def _without_entry(content: bytes) -> bytes:
    import onnx

    model = onnx.ModelProto.FromString(content)
    del model.metadata_props[:]
    return bytes(model.SerializeToString())
