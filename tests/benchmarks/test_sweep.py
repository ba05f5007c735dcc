"""A folder's artefacts on every back end: the table, the front and what is recommended."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import browse, result, run_of, write_images

from medimg.benchmarks import BenchmarkOptions, SweepOptions, run_benchmark
from medimg.benchmarks.recommendation import recommend
from medimg.benchmarks.results import Benchmark
from medimg.benchmarks.sweep import find_artefacts, run_sweep
from medimg.benchmarks.sweep_exports import render, show_sweep, to_csv, to_markdown
from medimg.benchmarks.sweep_results import MeasuredAccuracy, Skipped, Sweep, SweepRow
from medimg.runtime.errors import UsageError
from medimg.runtime.model.containers import embed_in_onnx, open_onnx
from medimg.runtime.model.spec import Verification

BENCHMARK = result(run_of(np.full(50, 1.0)))


def row(artefact: str, backend: str, p50_ms: float, accuracy: float | None, **changes: Any) -> SweepRow:
    known = None if accuracy is None else MeasuredAccuracy(accuracy, 400, "data", (), None)
    precision = "int8" if "int8" in artefact else "fp32"
    made = SweepRow(
        *(artefact, precision, precision, backend, "cpu", p50_ms, 1.1 * p50_ms, 1000 / p50_ms, 8),
        *(known, (-0.01, 0.01), False, BENCHMARK),
    )
    return replace(made, **changes)


ROWS = (
    row("m.int8.onnx", "openvino", 19.0, 0.97),
    row("m.int8.onnx", "onnxruntime", 106.0, 0.971),
    row("m.onnx", "openvino", 60.0, 0.98),
    row("m.onnx", "onnxruntime", 61.0, 0.98),
)


def said(rows: tuple[SweepRow, ...], budget_ms: float | None = None) -> str:
    return " ".join(recommend(rows, budget_ms))


def test_the_fastest_that_is_not_surely_less_accurate_is_taken() -> None:
    assert said(ROWS).startswith(
        "Take m.int8.onnx on openvino (cpu, int8): one image takes 19 ms (p99 20.9 ms)"
    )
    worse = (replace(ROWS[0], accuracy_drop_ci95=(0.002, 0.03)), *ROWS[1:])
    assert said(worse).startswith("Take m.onnx on openvino")


def test_the_budget_is_for_p99_and_nothing_within_it_is_said() -> None:
    assert "within the budget of 21 ms" in said(ROWS, 21)
    assert said(ROWS, 20).startswith(
        "Nothing answers within 20 ms: the fastest, m.int8.onnx on openvino (cpu, int8), takes up to 20.9 ms"
    )
    # Within the budget all are less accurate: still the best of what is possible.
    worse = (replace(ROWS[0], accuracy_drop_ci95=(0.002, 0.03)), *ROWS[1:])
    assert said(worse, 21).startswith("Take m.int8.onnx on openvino")


def test_a_back_end_that_is_much_slower_is_named() -> None:
    words = said(ROWS)
    assert "m.int8.onnx is 5.6 times slower on onnxruntime (106 ms) than on openvino (19 ms)." in words
    assert "On onnxruntime m.int8.onnx gains no speed: 106 ms in int8 against 61 ms of m.onnx." in words
    assert "m.onnx is 1.0 times" not in words


def test_an_accuracy_that_is_not_known_is_said_with_the_way_to_know_it() -> None:
    assert "Its accuracy is not known: give labelled images with --data" in said(
        (row("m.onnx", "a", 5.0, None),)
    )


@pytest.fixture(scope="module")
def folder(tiny_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two artefacts, one of them with a verification, and files that are none."""
    import onnx

    made = tmp_path_factory.mktemp("sweep")
    shutil.copy(tiny_artefact, made / "tiny.onnx")
    artefact = open_onnx(tiny_artefact)
    verification = Verification(30, "validation", 0.0, 1.0, "proven", 0.9, 0.9, 0.0, (-0.01, 0.01))
    model = onnx.ModelProto.FromString(artefact.content)
    del model.metadata_props[:]
    spec = artefact.spec.with_(verification=verification)
    (made / "verified.onnx").write_bytes(embed_in_onnx(model.SerializeToString(), spec))
    (made / "foreign.onnx").write_bytes(model.SerializeToString())
    (made / "notes.txt").touch()
    (made / "broken.onnx").write_bytes((made / "tiny.onnx").read_bytes()[:-1])
    return made


def test_artefacts_are_found_and_other_files_are_not(folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in find_artefacts(folder)] == ["broken.onnx", "tiny.onnx", "verified.onnx"]
    with pytest.raises(UsageError, match="holds no artefact"):
        find_artefacts(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        find_artefacts(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def swept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, list[Sweep]]:
    data = tmp_path_factory.mktemp("data")
    for label in ("dark", "grey"):
        (data / label).mkdir()
        write_images(data / label, 4)
    seen: list[Sweep] = []
    options = SweepOptions(data=data, batch_sizes=(1,), duration_s=0.2, driver="native")
    found = run_sweep(folder, options, threads=1, on_row=seen.append)
    return found, seen


def test_every_artefact_runs_on_every_back_end_and_the_rest_is_told(swept: tuple[Sweep, list[Sweep]]) -> None:
    found, seen = swept
    assert {(item.artefact, item.backend) for item in found.rows} == {
        (name, backend) for name in ("tiny.onnx", "verified.onnx") for backend in ("openvino", "onnxruntime")
    }
    assert {(item.artefact, item.backend) for item in found.skipped} == {
        ("broken.onnx", "openvino"),
        ("broken.onnx", "onnxruntime"),
    }
    assert [item.complete for item in seen] == [*[False] * 4, True]
    assert list(found.rows) == sorted(found.rows, key=lambda item: item.p99_ms)


def test_accuracy_is_counted_on_labelled_data(swept: tuple[Sweep, list[Sweep]]) -> None:
    for item in swept[0].rows:
        assert item.accuracy is not None
        assert (item.accuracy.images, item.accuracy.source) == (8, "data")
        assert item.accuracy.accuracy == np.mean(item.accuracy.right)
        # The same model everywhere: the drop's interval holds zero.
        assert item.accuracy_drop_ci95 is not None
        assert item.accuracy_drop_ci95[0] <= 0 <= item.accuracy_drop_ci95[1]
    assert [item.on_front for item in swept[0].rows] == [True, False, False, False]


def test_a_duration_too_short_for_one_leaves_it_out_with_the_one_that_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SweepOptions(backends=("openvino",), driver="native")
    with pytest.raises(UsageError, match="none of its artefacts can run here"):
        run_sweep(folder, replace(options, duration_s=1e-6), threads=1)

    def too_short_for_tiny(model: Path, options: BenchmarkOptions, **others: Any) -> Benchmark:
        duration_s = 1e-6 if model.name == "tiny.onnx" else 0.2
        return run_benchmark(model, replace(options, duration_s=duration_s), **others)

    monkeypatch.setattr("medimg.benchmarks.sweep.run_benchmark", too_short_for_tiny)
    found = run_sweep(folder, options, threads=1)
    assert [item.artefact for item in found.rows] == ["verified.onnx"]
    assert any("is too short" in item.reason for item in found.skipped)


def test_without_labels_accuracy_is_that_of_the_verification(folder: Path, image_folder: Path) -> None:
    options = SweepOptions(data=image_folder, backends=("openvino",), duration_s=0.2, driver="native")
    found = run_sweep(folder, options, threads=1)
    accuracies = {item.artefact: item.accuracy for item in found.rows}
    assert accuracies["tiny.onnx"] is None
    assert accuracies["verified.onnx"] == MeasuredAccuracy(0.9, 30, "verification", (), (-0.01, 0.01))
    assert any("not labelled with its classes" in warning for warning in found.warnings)


def test_the_table_fits_80_columns(swept: tuple[Sweep, list[Sweep]]) -> None:
    wide = replace(swept[0], rows=(row("a" * 40 + "\x1b[31m.int8.onnx", "onnxruntime", 1234.5, 0.9712),))
    for item in (swept[0], wide):
        lines = show_sweep(item)
        assert max(map(len, lines)) <= 80
        assert "\x1b" not in "".join(lines)


def test_the_exports_hold_every_row_and_escape_names(
    swept: tuple[Sweep, list[Sweep]], tmp_path: Path
) -> None:
    hostile = "<img src=x onerror=document.title='owned'>$\\frac$.onnx"
    skipped = (Skipped(hostile, "openvino", "<b>refused</b>"),)
    found = replace(swept[0], rows=(*swept[0].rows, row(hostile, "openvino", 3.0, 0.9)), skipped=skipped)
    assert len(to_csv(found).splitlines()) == 1 + len(found.rows)
    assert "\\<img" in to_markdown(found)
    page = tmp_path / "sweep.html"
    page.write_text(render(found))
    shown = browse(page)
    assert "<title>Sweep of " in shown
    assert 'alt="Accuracy against latency' in shown
    assert not re.search(r"(src|href)=\"(?!data:)", page.read_text())
    assert hostile not in page.read_text()
    assert "&lt;b&gt;refused" in shown


def test_the_command_writes_json_and_recommends(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "sweep.json"
    command = [sys.executable, "-m", "medimg.benchmarks", "sweep", str(folder), "--duration", "0.2"]
    options = [
        "--backend",
        "onnxruntime",
        "--batch-size",
        "1",
        "--json",
        str(output),
        "--latency-budget",
        "1000",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "within the budget of 1000 ms" in " ".join(done.stdout.split())
    plain = json.loads(output.read_text())
    assert list(plain)[:2] == ["schema", "folder"]
    assert plain["complete"] is True
    assert len(plain["rows"][0]["benchmark"]["runs"][0]["raw_ms"]) > 10
