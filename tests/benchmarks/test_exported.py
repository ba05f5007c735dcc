"""Measuring what medimg-export writes."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.long
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_exported_model_is_measured_by_each_back_end(
    small_artefact: Path, run_here: Any, backend: str
) -> None:
    done = run_here(
        "medimg-bench", "run", small_artefact, "--backend", backend, "--duration", "0.3", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["backend"], found["precision"], found["images_from"]) == (backend, "fp32", "synthetic")
    assert [run["scenario"] for run in found["runs"]] == ["single-stream", "offline"]


@pytest.mark.real
@pytest.mark.parametrize("backend", [pytest.param("onnxruntime", marks=pytest.mark.soak), "openvino"])
def test_a_fine_tuned_vgg16_is_measured_in_int8_from_real_files(
    brain_artefacts: dict[str, Path], brain_mri: Path, run: Any, backend: str, tmp_path: Path
) -> None:
    result = tmp_path / "bench.json"
    done = run(
        *("medimg-bench", "run", brain_artefacts["int8"], "--data", brain_mri / "test", "--backend", backend),
        *("--duration", "3", "--batch-size", "4", "--json", result),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert (found["precision"], found["images_from"], found["images"]) == ("int8", "files", 394)
    single = found["runs"][0]
    stages = [value for value in single["stages_ms"].values() if value is not None]
    assert sum(stages) == pytest.approx(single["latency_ms"]["mean"], rel=0.05)
    assert single["stages_ms"]["infer"] > single["stages_ms"]["decode"] > 0
