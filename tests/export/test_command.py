"""medimg-export as its users run it."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest

from medimg.runtime.classifier import Classifier
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import write_spec
from medimg.runtime.model.spec import HeldOut, Intensity, ModelSpec
from medimg.train.keras_files import rewrite_spec

Run = Callable[..., "subprocess.CompletedProcess[str]"]
LABELS = ("cyst", "normal", "solid")
ALL_PRECISIONS = [option for name in ("fp32", "fp16", "int8") for option in ("--precision", name)]
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("kept_workers")]


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
    done = run(
        *("medimg-export", small_model, *ALL_PRECISIONS, "--output", tmp_path / "out", "--json", report),
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
@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.soak)])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_model_trained_in_mixed_precision_exports_in_float32(
    run_here: Run, tmp_path: Path, suffix: str, policy: str
) -> None:
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = saved(tmp_path / f"mixed{suffix}", *head(3, "softmax"))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    write_spec(model, ModelSpec(LABELS, ImageRule(32, 32), Intensity.named("unit")))
    done = run_here("medimg-export", model)
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
    run_here: Run, tmp_path: Path, units: int, activation: str | None, classes: int, task: str, said: str
) -> None:
    model = saved(tmp_path / "head.keras", *head(units, activation))
    done = run_here("medimg-export", model, "--preprocessing", "unit")
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    with Classifier(tmp_path / "head.onnx") as classifier:
        images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        found = classifier.probabilities(images)
        assert classifier.spec.task == task
    assert found.shape == (5, classes)
    if task == "multiclass":
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_a_grey_network_takes_the_same_three_channels(run_here: Run, tmp_path: Path) -> None:
    model = saved(tmp_path / "grey.keras", *head(2, "softmax"), size=(24, 20, 1))
    done = run_here("medimg-export", model, "--preprocessing", "unit", "--labels", "normal,pneumonia")
    assert done.returncode == 0, done.stderr
    with Classifier(tmp_path / "grey.onnx") as classifier:
        assert classifier.spec.intensity.channels == 1
        assert classifier.probabilities(np.zeros((1, 24, 20, 3), np.uint8)).shape == (1, 2)


def test_unknown_preprocessing_is_said_and_predict_refuses(
    run_here: Run, tmp_path: Path, pictures: Path
) -> None:
    model = saved(tmp_path / "foreign.keras", *head(3, "softmax"))
    done = run_here("medimg-export", model, "--labels", ",".join(LABELS))
    assert done.returncode == 0, done.stderr
    assert "the preprocessing is unknown" in done.stderr
    assert "synthetic arrays only" in done.stderr
    refused = run_here("medimg-run", "predict", tmp_path / "foreign.onnx", pictures)
    assert refused.returncode == 2
    assert "--preprocessing" in refused.stderr


def test_a_spec_file_sets_any_field(run_here: Run, small_model: Path, tmp_path: Path) -> None:
    fields = tmp_path / "fields.toml"
    fields.write_text(
        'intended_use = "triage"\n[allowed]\nmodality = ["US"]\n[image]\nresize = "letterbox"\n'
    )
    done = run_here("medimg-export", small_model, "--output", tmp_path, "--spec", fields)
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


@dataclass(frozen=True)
class BadCalibration:
    """Calibration images that do not serve, in three precisions, and what is said of them."""

    message: str
    images: tuple[str, ...]
    options: tuple[str, ...] = ("--preprocessing", "unit")
    broken: str | None = None


BAD_CALIBRATIONS = {
    "no images": BadCalibration("holds no images (PNG, JPEG, TIFF, BMP or DICOM)", ()),
    "how many": BadCalibration("about 300 images of the kind that the model will see", ()),
    "only a test split": BadCalibration("outside its test split; about 300", ("test/a/0.png",)),
    "unreadable": BadCalibration(
        "images/9.png: a truncated PNG: take it out of the calibration images",
        ("0.png", "1.png"),
        broken="9.png",
    ),
    "wrong classes": BadCalibration(
        "its class 'cat' is not one of the model's (a, b, c): give images of the model's classes; if its "
        "folders are not classes, give a folder that holds the images itself",
        ("b/0.png", "cat/0.png"),
        ("--preprocessing", "unit", "--labels", "a,b,c"),
    ),
    "no classes": BadCalibration(
        "names 2 classes (patient1, patient2); the model has 3: if its folders are not classes",
        ("patient1/0.png", "patient2/0.png"),
    ),
    "unknown scaling": BadCalibration("labelled images with --validation tell it", ("0.png",), ()),
}


def calibration_folder(folder: Path, bad: BadCalibration) -> Path:
    folder.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name in bad.images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), picture)
    if bad.broken:
        (folder / bad.broken).write_bytes((folder / bad.images[0]).read_bytes()[:200])
    return folder


@pytest.mark.parametrize("name", BAD_CALIBRATIONS)
def test_bad_calibration_images_are_named_before_anything_is_written(
    run_here: Run, tmp_path: Path, name: str
) -> None:
    bad = BAD_CALIBRATIONS[name]
    model = saved(tmp_path / "model.keras", *head(3, "softmax"))
    folder = calibration_folder(tmp_path / "images", bad)
    before = sorted(tmp_path.rglob("*"))
    done = run_here("medimg-export", model, *ALL_PRECISIONS, "--calibration", folder, *bad.options)
    assert done.returncode == 2
    assert bad.message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_is_exit_2_with_its_own_message(run_here: Run, tmp_path: Path, name: str) -> None:
    make, message = bad_inputs()[name]
    arguments = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = run_here("medimg-export", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_difference_beyond_what_keras_itself_rounds_off_fails(
    small_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.export import ExportOptions, export_model, pipeline, verify

    monkeypatch.setattr(verify, "FP32_LIMIT", 0.0)
    real = verify.own_rounding
    rounding = []

    def measured(*arguments: Any) -> float:
        rounding.append(real(*arguments))
        return rounding[0] / 1000

    monkeypatch.setattr(pipeline, "own_rounding", measured)
    result = export_model(small_model, ExportOptions(output=tmp_path, validation=pictures))
    assert [item.verification.verdict for item in result.failed] == ["failed"]
    assert 1e-9 < rounding[0] < 1e-6
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_that_fails_is_not_written_unless_forced(
    small_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medimg.export import ExportOptions, export_model, verify

    monkeypatch.setattr(verify, "FP32_LIMIT", 0.0)
    monkeypatch.setattr(verify, "ROUNDING_CEILING", 0.0)
    result = export_model(small_model, ExportOptions(output=tmp_path, validation=pictures))
    assert [item.verification.verdict for item in result.failed] == ["failed"]
    assert list(tmp_path.iterdir()) == []
    forced = export_model(small_model, ExportOptions(output=tmp_path, validation=pictures, force=True))
    assert forced.artefacts[0].written
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


@pytest.mark.parametrize(
    ("pattern", "warning"),
    [
        (r"(\d+)\.png", "8 patients with labelled images cannot prove a drop of at most 0.01"),
        (r"patient-(\d+)", "intervals take every image for a patient of its own"),
    ],
)
def test_patients_count_as_training_told_them_apart(
    small_model: Path, pictures: Path, tmp_path: Path, pattern: str, warning: str
) -> None:
    from medimg.export import ExportOptions, export_model

    model = tmp_path / "model.keras"
    spec = ModelSpec.read(small_model).with_(held_out=HeldOut(0.3, 0, pattern))
    rewrite_spec(small_model, spec, model)
    result = export_model(model, ExportOptions(output=tmp_path, validation=pictures))
    assert [text for text in result.warnings if warning in text]


FULL_DISK = """
mount -t tmpfs -o size="$1" none "$2" || exit 99
shift
disk=$1 copied=$2
shift 2
"$@"
status=$?
cp -a "$disk/." "$copied"
exit $status
"""
"""Runs a command beside a small file system that it alone sees, and copies what is left on that."""


@pytest.fixture
def with_full_disk(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a command; `disk` below the test's folder is a file system of so many KiB."""
    for name in ("disk", "left"):
        (tmp_path / name).mkdir()

    def call(size_kib: int, *command: str | Path) -> "subprocess.CompletedProcess[str]":
        program = Path(sys.executable).with_name(str(command[0]))
        words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh"]
        words += [f"{size_kib}k", str(tmp_path / "disk"), str(tmp_path / "left"), str(program)]
        words += map(str, command[1:])
        environment = {**os.environ, "TMPDIR": str(tmp_path / "disk")} if "--output" not in command else None
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if done.returncode in (1, 99) and "error:" not in done.stderr:
            pytest.skip("needs user namespaces, for a small file system")
        return done

    return call


@pytest.mark.parametrize(
    ("size_kib", "left"), [pytest.param(96, [], marks=pytest.mark.soak), (184, ["small.onnx"])]
)
def test_a_disk_that_fills_up_half_way_leaves_no_partial_file(
    with_full_disk: Run,
    small_model: Path,
    small_artefact: Path,
    tmp_path: Path,
    size_kib: int,
    left: list[str],
) -> None:
    precisions = ("--precision", "fp32", "--precision", "fp16")
    done = with_full_disk(size_kib, "medimg-export", small_model, *precisions, "--output", tmp_path / "disk")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "cannot be written (No space left on device)" in done.stderr
    assert sorted(path.name for path in (tmp_path / "left").iterdir()) == left
    for name in left:
        assert (tmp_path / "left" / name).read_bytes() == small_artefact.read_bytes()


def test_a_full_temporary_folder_is_not_taken_for_a_damaged_model(
    with_full_disk: Run, small_model: Path, tmp_path: Path
) -> None:
    before = sorted(small_model.parent.iterdir())
    done = with_full_disk(64, "medimg-export", small_model)
    assert done.returncode == 2
    assert f"{tmp_path / 'disk'}: no room for a working copy of {small_model}" in done.stderr
    assert sorted(small_model.parent.iterdir()) == before
    assert list((tmp_path / "left").iterdir()) == []
