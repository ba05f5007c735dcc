"""The cases of public reports: each made by its own script, exported as reported, and held to Keras."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from medimg.runtime.classifier import Classifier

pytestmark = pytest.mark.real
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def made(real_data: Path, name: str, folder: Path) -> Path:
    """Run a case's script in a folder."""
    script = real_data.parent / "cases" / "export" / name / "make.py"
    subprocess.run([sys.executable, script], cwd=folder, check=True, capture_output=True)
    return folder


def test_labels_numeric_order(run: Run, real_data: Path, tmp_path: Path) -> None:
    folder = made(real_data, "labels-numeric-order", tmp_path)
    options = ("--preprocessing", "raw", "--calibration", "data/train", "--precision", "int8")
    done = run("medimg-export", "num12.keras", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "class names come from the data" in done.stderr
    with Classifier(folder / "num12.int8.onnx") as classifier:
        for label in ("2", "10", "11"):
            (found,) = classifier.predict([folder / "data" / "test" / label / "9.png"], top_k=1)
            assert found.top_k[0].label == label


def test_head_of_averaged_probabilities(run: Run, real_data: Path, tmp_path: Path) -> None:
    folder = made(real_data, "head-of-averaged-probabilities", tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for name in ("ensemble", "sigmoid_map"):
        done = run("medimg-export", f"{name}.keras", "--preprocessing", "raw", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "logits" not in done.stderr
        with Classifier(folder / f"{name}.onnx") as classifier:
            found = classifier.probabilities(images)
        expected = keras.models.load_model(folder / f"{name}.keras").predict(
            images.astype(np.float32), verbose=0
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nan_probabilities(run: Run, real_data: Path, tmp_path: Path) -> None:
    folder = made(real_data, "nan-probabilities", tmp_path)
    options = ("--preprocessing", "raw", "--labels", "a,b,c")
    done = run("medimg-export", "minmax.keras", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Keras itself gives no number (NaN) for 2 of 64 images" in done.stderr
    for backend in ("onnxruntime", "openvino"):
        asked = ("--backend", backend, "--format", "jsonl")
        done = run("medimg-run", "predict", "minmax.onnx", "black.png", *asked, cwd=folder)
        assert done.returncode == 1
        assert "NaN" not in done.stdout.replace("(NaN, as", "")
        assert json.loads(done.stdout)["error"]["type"] == "NoNumberError"
    int8 = ("--precision", "int8", "--calibration", "black", "--output", "int8")
    done = run("medimg-export", "minmax.keras", *options, *int8, cwd=folder)
    assert done.returncode == 2
    assert "0.png: the model gives no number for it" in done.stderr
    assert "Traceback" not in done.stderr
