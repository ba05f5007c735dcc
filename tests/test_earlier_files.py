"""Files that an earlier version wrote are read: artefacts, Keras files and results of commit 6fd6c12.

Databases of the node are in `runtime/node/test_schema.py`. The model is tiny, trained on simulated images.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.benchmarks.comparison import read_result
from medimg.runtime.classifier import Classifier
from medimg.runtime.model.spec import ModelSpec

FILES = Path(__file__).parent / "earlier_files"
ANSWERS = json.loads((FILES / "answers.json").read_text())
LIMITS = {"model.onnx": 1e-6, "model.fp16.onnx": 1e-3, "model.int8.onnx": 1e-3}


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("name", sorted([*LIMITS, "model.h5", "model.keras"]))
def test_their_spec_is_read(name: str) -> None:
    spec = ModelSpec.read(FILES / name)
    assert spec.labels == ("calcification", "cyst", "normal", "solid")
    assert (spec.task, spec.head, spec.image.rows) == ("multiclass", "softmax", 32)
    assert spec.simulated_data


@pytest.mark.parametrize(
    ("backend", "name"), [*(("onnxruntime", name) for name in LIMITS), ("openvino", "model.onnx")]
)
def test_artefacts_answer_as_they_did(backend: str, name: str, images: NDArray[np.uint8]) -> None:
    with Classifier(FILES / name, backend=backend, device="cpu") as classifier:
        np.testing.assert_allclose(classifier.probabilities(images), ANSWERS[name], atol=LIMITS[name])


@pytest.mark.long
@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_keras_files_are_exported_and_answer(
    name: str, tmp_path: Path, images: NDArray[np.uint8], run: Any
) -> None:
    model = shutil.copy(FILES / name, tmp_path)
    done = run("medimg-export", model)
    assert done.returncode == 0, done.stderr
    with Classifier(tmp_path / "model.onnx", device="cpu") as classifier:
        found = classifier.probabilities(images)
    if name == "model.h5":
        np.testing.assert_allclose(found, ANSWERS["model.onnx"], atol=1e-5)
    assert ModelSpec.read(tmp_path / "model.onnx").labels == ModelSpec.read(FILES / name).labels


def test_results_are_read_and_compared(run: Any) -> None:
    assert read_result(FILES / "bench-a.json").precision == "fp32"
    done = run("medimg-bench", "compare", FILES / "bench-a.json", FILES / "bench-b.json")
    assert done.returncode in (0, 1), done.stderr
    assert "single-stream" in done.stdout
