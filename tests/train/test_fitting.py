import dataclasses
from pathlib import Path

import numpy as np
import pytest

from medimg.runtime.data import read_data
from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.model.spec import ModelSpec
from medimg.train import FitOptions, FitResult, fit
from medimg.train.data.division import divide
from medimg.train.errors import DivergedError, WeightsError
from medimg.train.evaluation.answers import keras_answer
from medimg.train.fitting.options import Arch
from medimg.train.fitting.summary import fit_lines
from medimg.train.keras_files import load_float32

pytestmark = pytest.mark.long


@pytest.fixture(params=["scratch", "fine_tuned", pytest.param("wide", marks=pytest.mark.soak)])
def result(request: pytest.FixtureRequest) -> FitResult:
    """Each of the trained models."""
    made = request.getfixturevalue(request.param)
    assert isinstance(made, FitResult)
    return made


def test_the_file_says_what_it_is(result: FitResult) -> None:
    spec = ModelSpec.read(result.output)
    assert spec.labels == result.labels == ("calcification", "cyst", "normal", "solid")
    assert (spec.image.rows, spec.image.columns) == (32, 32)
    assert spec.intensity.rule == ("caffe" if result.options.arch == "vgg16" else "unit")
    assert spec.head == "softmax"
    assert spec.simulated_data
    assert spec.source is None
    assert {"medimg", "keras", "tensorflow"} <= spec.tools.keys()


def test_the_saved_model_is_float32_throughout(result: FitResult) -> None:
    import keras

    model = keras.models.load_model(result.output)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert {str(weight.dtype) for weight in model.weights} == {"float32"}


def test_printed_figures_are_those_of_the_saved_model(result: FitResult, simulated: Path) -> None:
    validation = divide(read_data(simulated), result.options).validation
    images = np.stack([sample.load(result.options.image) for sample in validation.samples])
    spec = ModelSpec.read(result.output)
    answer = keras_answer(load_float32(Path(result.output)), spec.intensity)
    predicted = answer(images).argmax(axis=1)
    assert result.validation.accuracy == np.mean(predicted == validation.truth)
    assert result.validation.images == len(validation) == result.validation_images


def test_training_moves_what_each_phase_may_move(fine_tuned: FitResult, base_weights: Path) -> None:
    from medimg.train.networks.build import build
    from medimg.train.networks.weights import load_weights

    before = build(fine_tuned.options, 4, "float32")
    load_weights(before, base_weights)
    after = load_float32(Path(fine_tuned.output))
    assert [phase.name for phase in fine_tuned.phases] == ["head", "last block"]
    for layer in before.layers:
        pairs = zip(layer.get_weights(), after.get_layer(layer.name).get_weights(), strict=True)
        changed = [not np.array_equal(old, new) for old, new in pairs]
        tuned = fine_tuned.phases[1].best_epoch > 0
        if layer.name == "probabilities" or (layer.name.startswith("block5_conv") and tuned):
            assert all(changed), layer.name
        else:
            assert not any(changed), layer.name


def test_the_same_seed_gives_the_same_model(scratch: FitResult, simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    again = fit(simulated, tmp_path / "again.h5", scratch.options, cache_dir=tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.h5", "cache"]
    assert len(list((tmp_path / "cache").glob("*.array"))) == 2
    assert [phase.epochs for phase in again.phases] == [phase.epochs for phase in scratch.phases]
    models = (load_float32(Path(made.output)).get_weights() for made in (scratch, again))
    for old, new in zip(*models, strict=True):
        np.testing.assert_array_equal(old, new)


def test_division_is_stratified_seeded_and_leaves_the_test_part_alone(simulated: Path) -> None:
    data = read_data(simulated)
    first, again, other = (divide(data, FitOptions(seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert first.validation_from == "split"
    assert np.bincount(first.validation.truth).tolist() == [2, 2, 2, 2]
    names = [sample.name for part in (first.train, first.validation) for sample in part.samples]
    assert len(names) == len(set(names)) == 32
    assert all(name.startswith("train") for name in names)


def test_a_validation_part_is_used_as_it_is(simulated: Path) -> None:
    data = read_data(simulated)
    samples = tuple(
        dataclasses.replace(sample, split="val") if sample.split == "test" else sample
        for sample in data.samples
    )
    division = divide(dataclasses.replace(data, samples=samples), FitOptions())
    assert (len(division.train), len(division.validation), division.validation_from) == (32, 8, "val")


def test_data_without_a_training_part(simulated: Path) -> None:
    with pytest.raises(DataError, match="no training part"):
        divide(read_data(simulated).part("test"), FitOptions())


def test_a_validation_part_that_lacks_a_class(simulated: Path) -> None:
    data = read_data(simulated)
    samples = tuple(
        dataclasses.replace(sample, split="val") if sample.split == "test" else sample
        for sample in data.samples
        if sample.split == "train" or sample.label != 2
    )
    with pytest.raises(DataError, match="class 'normal' has no image in the part val"):
        divide(dataclasses.replace(data, samples=samples), FitOptions())


def test_one_class_only(simulated: Path, tmp_path: Path, tiny: FitOptions) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cyst").symlink_to(simulated / "train" / "cyst")
    with pytest.raises(DataError, match="class"):
        fit(tmp_path / "data", tmp_path / "model.h5", tiny)


def test_a_class_with_one_image(simulated: Path, tmp_path: Path, tiny: FitOptions) -> None:
    for kind, count in (("cyst", 3), ("normal", 1)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for path in sorted((simulated / "train" / kind).iterdir())[:count]:
            (tmp_path / "data" / kind / path.name).symlink_to(path)
    with pytest.raises(DataError, match=r"class 'normal' has 1 image"):
        fit(tmp_path / "data", tmp_path / "model.h5", tiny)


def linked(simulated: Path, folder: Path) -> Path:
    """The training part, undivided, of links that a test may replace."""
    for path in sorted((simulated / "train").rglob("*.png")):
        target = folder / path.relative_to(simulated / "train")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return folder


def test_too_many_unreadable_images_are_named(simulated: Path, tmp_path: Path, tiny: FitOptions) -> None:
    data = linked(simulated, tmp_path / "data")
    (data / "cyst" / "notes.png").write_text("not an image")
    with pytest.raises(DataError, match=r"cyst/notes\.png: not an image that can be read"):
        fit(data, tmp_path / "model.h5", tiny)
    assert not (tmp_path / "model.h5").exists()


def test_what_is_wrong_with_the_data_is_in_the_result(
    simulated: Path, tmp_path: Path, tiny: FitOptions
) -> None:
    """Every image stands in its class twice, and some copies, whatever the split, are in both parts."""
    data = linked(simulated, tmp_path / "data")
    for path in sorted(data.rglob("*.png")):
        path.with_name(f"copy-of-{path.name}").symlink_to(path)
    (data / "cyst" / "notes.png").write_text("not an image")
    result = fit(
        data, tmp_path / "model.h5", dataclasses.replace(tiny, max_unreadable="1", balance="sampling")
    )
    assert result.unreadable == (
        "cyst/notes.png: not an image that can be read: PNG, JPEG, TIFF, BMP and DICOM are",
    )
    assert result.train_images + result.validation_images == 64
    assert 0 < result.duplicates.exact == result.duplicates.images <= result.validation_images
    assert (result.duplicates.part, result.duplicates.other) == ("val", "train")
    lines = fit_lines(result, str(data))
    assert "1 unreadable image(s) left out:" in lines
    found = result.duplicates.exact
    assert f"{found} image(s) of val repeat an image of train ({found} to the pixel, 0 nearly):" in lines


def test_a_class_that_loses_its_last_image(simulated: Path, tmp_path: Path, tiny: FitOptions) -> None:
    data = tmp_path / "data"
    for part in ("train", "val"):
        linked(simulated, data / part)
    for path in (data / "val" / "solid").iterdir():
        path.unlink()
        path.write_text("not an image")
    with pytest.raises(DataError, match="class 'solid' has no image in the part val"):
        fit(data, tmp_path / "model.h5", dataclasses.replace(tiny, max_unreadable="50%"))


@pytest.mark.parametrize("name", ["model.onnx", "model", "absent/model.h5", "file/model.keras", "folder.h5"])
def test_an_unwritable_output_is_found_before_the_data_are_read(
    name: str, tmp_path: Path, tiny: FitOptions
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(UsageError, match=name.rpartition("/")[2]):
        fit(tmp_path / "no data here", tmp_path / name, tiny)


def test_a_cache_that_cannot_be_kept(simulated: Path, tmp_path: Path, tiny: FitOptions) -> None:
    with pytest.raises(UsageError, match="no cache can be kept there"):
        fit(simulated, tmp_path / "model.h5", tiny, cache_dir=tmp_path / "absent")


def test_a_cache_without_space(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: FitOptions
) -> None:
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(UsageError, match="the cache needs"):
        fit(simulated, tmp_path / "model.h5", tiny, cache_dir=tmp_path)


def test_missing_weights_are_found_before_keras_starts(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_given: object) -> None:
        raise AssertionError

    monkeypatch.setattr("medimg.train.fitting.preparation.start_keras", started)
    options = FitOptions(weights=str(tmp_path / "absent.h5"), image_size=32)
    with pytest.raises(WeightsError, match=r"absent\.h5: no such file"):
        fit(simulated, tmp_path / "model.h5", options)


def test_a_loss_that_is_no_number(simulated: Path, tmp_path: Path, tiny: FitOptions) -> None:
    options = dataclasses.replace(tiny, learning_rate=1e30)
    with pytest.raises(DivergedError, match="learning rate of 1e\\+30"):
        fit(simulated, tmp_path / "model.h5", options)
    assert not (tmp_path / "model.h5").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 16}, "image size 16 is not within 32 to 1024"),
        ({"arch": "resnet"}, "arch 'resnet' is not one of vgg16, vgg-bn"),
        ({"arch": "vgg-bn", "weights": "imagenet"}, "vgg-bn trains from scratch"),
        ({"validation_fraction": 1.0}, "not between 0 and 1"),
        ({"epochs": 0}, "at least one"),
        ({"fine_tune_epochs": -1}, "-1 epochs of fine-tuning"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"batch_size": 0}, "batch size 0"),
        ({"dense_units": 0}, "0 dense units"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_options_that_make_no_sense(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FitOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("arch", "pretrained"), [("vgg16", "imagenet"), ("vgg-bn", None)])
def test_default_weights(arch: Arch, pretrained: str | None) -> None:
    assert FitOptions(arch=arch).pretrained == pretrained
    assert FitOptions(arch=arch, weights="none").pretrained is None
