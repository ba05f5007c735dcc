"""medimg-export as its users run it."""

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from medimg.runtime.classifier import Classifier
from medimg.runtime.containers import write_spec
from medimg.runtime.spec import ImageRule, Intensity, ModelSpec

Run = Callable[..., "subprocess.CompletedProcess[str]"]
LABELS = ("cyst", "normal", "solid")


def saved(path: Path, *layers: Any, size: tuple[int, int, int] = (32, 32, 3)) -> Path:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Input(size), *layers])
    model.save(path)
    return path


def head(units: int, activation: str | None) -> tuple[Any, ...]:
    layers = keras.layers
    return layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(units, activation=activation)


def test_all_precisions_are_written_verified_and_described(
    run: Run, small_model: Path, pictures: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    precisions = [option for name in ("fp32", "fp16", "int8") for option in ("--precision", name)]
    done = run(
        *("medimg-export", small_model, *precisions, "--output", tmp_path / "out", "--json", report),
        *("--calibration", pictures, "--validation", pictures, "--max-drop", "0.3"),
    )
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["small.fp16.onnx", "small.int8.onnx", "small.onnx"]
    found = json.loads(report.read_text())
    assert found["schema"] == 1
    for item in found["artefacts"]:
        spec = ModelSpec.read(item["path"])
        assert spec.precision == item["precision"]
        assert spec.verification is not None
        assert (spec.verification.images, spec.verification.images_from) == (24, "validation")
        assert item["verification"]["verdict"] == spec.verification.verdict == "proven"
        assert Path(item["path"]).stat().st_size == item["bytes"]
    assert found["artefacts"][0]["verification"]["max_abs_diff"] <= 1e-5


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_model_trained_in_mixed_precision_exports_in_float32(
    run: Run, tmp_path: Path, suffix: str, policy: str
) -> None:
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = saved(tmp_path / f"mixed{suffix}", *head(3, "softmax"))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    write_spec(model, ModelSpec(LABELS, ImageRule(32, 32), Intensity.named("unit")))
    done = run("medimg-export", model)
    assert done.returncode == 0, done.stderr
    spec = ModelSpec.read(tmp_path / "mixed.onnx")
    assert spec.verification is not None
    assert spec.verification.max_abs_diff <= 1e-5
    with Classifier(tmp_path / "mixed.onnx") as classifier:
        assert classifier.backend.precision == "fp32"


@pytest.mark.parametrize(
    ("units", "activation", "classes", "task", "said"),
    [
        (3, "softmax", 3, "multiclass", ""),
        (1, "sigmoid", 2, "multiclass", ""),
        (3, "sigmoid", 3, "multilabel", ""),
        (4, None, 4, "multiclass", "a softmax is added"),
    ],
)
def test_every_head_gives_probabilities(
    run: Run, tmp_path: Path, units: int, activation: str | None, classes: int, task: str, said: str
) -> None:
    model = saved(tmp_path / "head.keras", *head(units, activation))
    done = run("medimg-export", model, "--preprocessing", "unit")
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    with Classifier(tmp_path / "head.onnx") as classifier:
        images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        found = classifier.probabilities(images)
        assert classifier.spec.task == task
    assert found.shape == (5, classes)
    if task == "multiclass":
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_a_grey_network_takes_the_same_three_channels(run: Run, tmp_path: Path) -> None:
    model = saved(tmp_path / "grey.keras", *head(2, "softmax"), size=(24, 20, 1))
    done = run("medimg-export", model, "--preprocessing", "unit", "--labels", "normal,pneumonia")
    assert done.returncode == 0, done.stderr
    with Classifier(tmp_path / "grey.onnx") as classifier:
        assert classifier.spec.intensity.channels == 1
        assert classifier.probabilities(np.zeros((1, 24, 20, 3), np.uint8)).shape == (1, 2)


def test_unknown_preprocessing_is_said_and_predict_refuses(run: Run, tmp_path: Path, pictures: Path) -> None:
    model = saved(tmp_path / "foreign.keras", *head(3, "softmax"))
    done = run("medimg-export", model, "--labels", ",".join(LABELS))
    assert done.returncode == 0, done.stderr
    assert "the preprocessing is unknown" in done.stderr
    assert "synthetic arrays only" in done.stderr
    refused = run("medimg-run", "predict", tmp_path / "foreign.onnx", pictures)
    assert refused.returncode == 2
    assert "--preprocessing" in refused.stderr


def test_a_spec_file_sets_any_field(run: Run, small_model: Path, tmp_path: Path) -> None:
    fields = tmp_path / "fields.toml"
    fields.write_text(
        'intended_use = "triage"\n[allowed]\nmodality = ["US"]\n[image]\nresize = "letterbox"\n'
    )
    done = run("medimg-export", small_model, "--output", tmp_path, "--spec", fields)
    assert done.returncode == 0, done.stderr
    spec = ModelSpec.read(tmp_path / "small.onnx")
    assert (spec.intended_use, spec.allowed.modality, spec.image.resize) == ("triage", ("US",), "letterbox")
    assert spec.image.rows == 32


def bad_inputs() -> dict[str, tuple[Callable[[Path], list[Any]], str]]:
    def damaged(folder: Path) -> list[Any]:
        model = saved(folder / "whole.keras", *head(2, "softmax"))
        (folder / "half.keras").write_bytes(model.read_bytes()[: model.stat().st_size // 2])
        model.unlink()
        return [folder / "half.keras"]

    def with_file(name: str, content: bytes) -> Callable[[Path], list[Any]]:
        def make(folder: Path) -> list[Any]:
            (folder / name).write_bytes(content)
            return [folder / name]

        return make

    def with_model(*options: str, units: int = 3, activation: str = "softmax") -> Callable[[Path], list[Any]]:
        return lambda folder: [saved(folder / "model.keras", *head(units, activation)), *options]

    def weights_only(folder: Path) -> list[Any]:
        model = keras.Sequential([keras.layers.Input((8, 8, 3)), *head(2, "softmax")])
        model.save_weights(folder / "only.weights.h5")
        return [folder / "only.weights.h5"]

    def pickled(folder: Path) -> list[Any]:
        with zipfile.ZipFile(folder / "bomb.keras", "w") as archive:
            archive.writestr("data.pkl", b"cos\nsystem\n(S'true'\ntR.")
        return [folder / "bomb.keras"]

    return {
        "absent": (lambda folder: [folder / "absent.keras"], "absent.keras: no such file"),
        "half": (damaged, "half.keras: not a .keras archive"),
        "empty": (with_file("empty.h5", b""), "empty.h5: not an HDF5 file"),
        "text": (with_file("text.h5", b"hello"), "text.h5: not an HDF5 file"),
        "other": (with_file("model.pb", b"hello"), "not a Keras file"),
        "pickle": (pickled, "bomb.keras: not a .keras archive"),
        "weights": (weights_only, "only.weights.h5: holds weights only"),
        "labels": (with_model("--labels", "a,b"), "--labels names 2 classes (a, b); the model has 3"),
        "head": (with_model(activation="relu"), "--head softmax|sigmoid|multilabel|logits"),
        "int8": (with_model("--precision", "int8"), "--calibration DATA"),
        "mean": (with_model("--mean", "1,2,3"), "--mean and --std go together"),
        "folder": (with_model("--output", "/proc/none"), "artefacts cannot be written there"),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_is_exit_2_with_its_own_message(run: Run, tmp_path: Path, name: str) -> None:
    make, message = bad_inputs()[name]
    arguments = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = run("medimg-export", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_an_artefact_that_fails_is_not_written_unless_forced(
    run: Run, small_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.export import export_model, verify

    monkeypatch.setattr(verify, "FP32_LIMIT", 0.0)
    result = export_model(small_model, output=tmp_path, validation=pictures)
    assert [item.verification.verdict for item in result.failed] == ["failed"]
    assert list(tmp_path.iterdir()) == []
    forced = export_model(small_model, output=tmp_path, validation=pictures, force=True)
    assert forced.artefacts[0].written
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
