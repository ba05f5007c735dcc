"""`calibrate`: what it writes into a Keras file, and that an export answers as that file says."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.model.containers import write_spec
from medimg.runtime.model.spec import Allowed, HeldOut, ModelSpec, OperatingPoint
from medimg.train import EvaluateOptions, FitResult, Usage, calibrate, evaluate
from medimg.train.evaluation.summary import WIDTH, calibration_lines
from medimg.train.keras_files import load_float32, rewrite_spec

pytestmark = pytest.mark.long

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def model(colored_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(colored_model, tmp_path))


def test_a_model_that_is_twice_as_sure_as_it_should_be_gets_the_temperature_two(
    model: Path, colored: Path
) -> None:
    found = calibrate(model, colored, sensitivities={"red": 0.9})
    assert (found.chosen_on, found.images) == ("the part val", 144)
    assert found.temperature == pytest.approx(2, rel=0.25)
    assert found.after.nll.value < found.before.nll.value
    assert found.after.ece.value < found.before.ece.value
    (point,) = found.operating_points
    assert point.sensitivity.value >= 0.9
    spec = ModelSpec.read(model)
    assert spec.temperature == found.temperature
    assert spec.operating_points == (point.point,)
    again = evaluate(model, colored, EvaluateOptions(split="val"))
    assert again.reliability.nll.value == pytest.approx(found.after.nll.value, abs=1e-6)
    assert again.operating_points == (point,)
    assert not list(model.parent.glob(".*"))


def test_calibrating_twice_changes_nothing(model: Path, colored: Path) -> None:
    first = calibrate(model, colored, sensitivities={"red": 0.9}).temperature
    found = calibrate(model, colored)
    assert found.temperature == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_only_the_spec_changes(suffix: str, colored_model: Path, tmp_path: Path) -> None:
    network = load_float32(colored_model)
    spec = ModelSpec.read(colored_model)
    source, copy = tmp_path / f"model{suffix}", tmp_path / f"copy{suffix}"
    network.save(source)
    write_spec(source, spec)
    before = source.read_bytes()
    changed = spec.with_(temperature=1.5, intended_use="tests")
    rewrite_spec(source, changed, copy)
    rewrite_spec(copy, changed.with_(temperature=2.5), copy)
    assert source.read_bytes() == before
    assert ModelSpec.read(copy) == changed.with_(temperature=2.5)
    for old, new in zip(network.get_weights(), load_float32(copy).get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_intended_use_and_what_is_allowed_go_into_the_spec(model: Path, colored: Path) -> None:
    rewrite_spec(model, ModelSpec.read(model).with_(allowed=Allowed(body_part=("HEAD",))), model)
    calibrate(model, colored, usage=Usage("research only", modality=("DX", "CR")))
    spec = ModelSpec.read(model)
    assert spec.intended_use == "research only"
    assert spec.allowed == Allowed(("DX", "CR"), ("HEAD",), ())
    with pytest.raises(UsageError, match="'chest' is no DICOM code"):
        Usage(body_part=("chest",))


def test_fit_writes_the_intended_use_and_what_it_held_out(scratch: FitResult) -> None:
    spec = ModelSpec.read(scratch.output)
    assert (spec.intended_use, spec.allowed) == ("tests", Allowed(("US",)))
    assert spec.held_out == HeldOut(0.3, scratch.options.seed)


def test_points_of_another_temperature_are_dropped_and_said(model: Path, colored: Path) -> None:
    old = (OperatingPoint("red", 0.4, "before"), OperatingPoint("blue", 0.3, "before"))
    rewrite_spec(model, ModelSpec.read(model).with_(operating_points=old), model)
    kept = calibrate(model, colored, fit_the_temperature=False, sensitivities={"red": 0.8})
    assert kept.dropped_points == ()
    assert [point.label for point in ModelSpec.read(model).operating_points] == ["red", "blue"]
    assert ModelSpec.read(model).operating_points[1] == old[1]
    found = calibrate(model, colored, sensitivities={"red": 0.8})
    assert found.dropped_points == (old[1],)
    assert "dropped: the threshold of blue" in "\n".join(calibration_lines(found))


def test_the_test_part_chooses_nothing_unless_told(model: Path, colored: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(UsageError, match="figure on it too good"):
        calibrate(model, colored, part="test")
    with pytest.raises(UsageError, match="have a part named test"):
        calibrate(model, colored, part="all")
    assert model.read_bytes() == before
    assert calibrate(model, colored, part="test", use_test=True).chosen_on == "the part test"


def test_without_a_part_val_the_images_are_those_that_fit_held_out(model: Path, colored: Path) -> None:
    from medimg.runtime.data import read_data
    from medimg.train import FitOptions
    from medimg.train.data.division import divide

    lines = [line for line in colored.read_text().splitlines() if ",val," not in line]
    table = colored.with_name("without-val.csv")
    table.write_text("\n".join(lines))
    found = calibrate(model, table, seed=5, validation_fraction=0.5)
    held_out = divide(read_data(table), FitOptions(seed=5, validation_fraction=0.5)).validation
    assert found.images == len(held_out)
    assert found.chosen_on == "validation images held out with seed 5"


def test_the_model_says_what_fit_held_out(model: Path, colored: Path) -> None:
    rewrite_spec(model, ModelSpec.read(model).with_(held_out=HeldOut(0.5, 7)), model)
    table = _undivided(colored)
    assert calibrate(model, table).chosen_on == "validation images held out with seed 7"
    assert calibrate(model, table, seed=7).images == calibrate(model, table, validation_fraction=0.5).images
    with pytest.raises(UsageError, match="seed 8 is not what the model was trained with, 7"):
        calibrate(model, table, seed=8)


def test_what_cannot_be_calibrated(model: Path, colored: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(UsageError, match="calibrate the Keras file, and export it again"):
        calibrate(tmp_path / "model.onnx", colored)
    with pytest.raises(UsageError, match=r"saved_model: not a Keras file \(\.keras, \.h5, \.hdf5 are\)"):
        calibrate(tmp_path / "saved_model", colored)
    with pytest.raises(UsageError, match=r"must end in \.keras"):
        calibrate(model, colored, output=tmp_path / "other.h5")
    with pytest.raises(UsageError, match="class 'grey' is not one"):
        calibrate(model, colored, sensitivities={"grey": 0.9})
    with pytest.raises(DataError, match="have no part named test"):
        calibrate(model, _undivided(colored), part="test", use_test=True)
    assert model.read_bytes() == before


@pytest.mark.soak  # that export divides the logits is tested with export
def test_an_export_answers_as_the_calibrated_file(model: Path, colored: Path, run: Run) -> None:
    done = run(
        *("medimg-train", "calibrate", model, colored, "--sensitivity", "red=0.9", "--json", "cal.json"),
        *("--intended-use", "tests", "--allow-modality", "DX"),
        cwd=model.parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "medimg-export" in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:12])) <= WIDTH
    assert json.loads((model.parent / "cal.json").read_text())["temperature"] > 1.4
    done = run("medimg-export", model, "--heatmap")
    assert done.returncode == 0, done.stdout + done.stderr
    artefact = model.with_suffix(".onnx")
    keras, exported = (
        evaluate(path, colored, EvaluateOptions(report=path.with_suffix(".html"), with_images=True))
        for path in (model, artefact)
    )
    assert exported.backend in ("onnxruntime", "openvino")
    assert exported.evaluation == keras.evaluation
    assert exported.reliability.nll.value == pytest.approx(keras.reliability.nll.value, abs=1e-5)
    assert exported.operating_points == keras.operating_points
    assert keras.operating_points[0].point.chosen_for == "sensitivity 0.9 on the part val"
    for path in (model, artefact):
        page = path.with_suffix(".html").read_text()
        assert "class activation map" in page
        assert page.count("data:image/png") == 12
    (point,) = ModelSpec.read(artefact).operating_points
    assert replace(point, threshold=0) == OperatingPoint("red", 0, "sensitivity 0.9 on the part val")


def _undivided(table: Path) -> Path:
    rows = [line.split(",") for line in table.read_text().splitlines()]
    target = table.with_name("undivided.csv")
    target.write_text("\n".join(",".join((*row[:3], row[4])) for row in rows))
    return target
