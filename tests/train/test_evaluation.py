from pathlib import Path

import keras
import numpy as np
import pytest

from medimg.runtime.data import read_data
from medimg.runtime.errors import DataError, ModelError, NoSpecError
from medimg.runtime.spec import ImageRule, Intensity, ModelSpec
from medimg.train import FitResult, evaluate
from medimg.train.keras_files import load_float32, save


def test_the_test_part_is_measured(scratch: FitResult, simulated: Path) -> None:
    figures = evaluate(scratch.output, simulated)
    assert (figures.part, figures.backend, figures.precision) == ("test", "keras", "fp32")
    assert figures.simulated_data
    assert figures.evaluation.images == 8
    assert [row.images for row in figures.evaluation.per_class] == [2, 2, 2, 2]
    assert np.sum(figures.evaluation.confusion) == 8


def test_accuracy_is_that_of_an_independent_count(scratch: FitResult, simulated: Path) -> None:
    data = read_data(simulated).part("train")
    model = keras.models.load_model(scratch.output)
    right = 0
    for sample in data.samples:
        image = sample.load(scratch.options.image).astype(np.float32) / 255
        right += int(model(image[None]).numpy().argmax() == sample.label)
    figures = evaluate(scratch.output, simulated, split="train", batch_size=5)
    assert figures.evaluation.accuracy == right / len(data)


def test_undivided_data_are_used_whole(scratch: FitResult, simulated: Path) -> None:
    assert evaluate(scratch.output, simulated / "test").part == "all"


def test_batch_size_does_not_matter(fine_tuned: FitResult, simulated: Path) -> None:
    one, many = (evaluate(fine_tuned.output, simulated, batch_size=size).evaluation for size in (1, 8))
    assert one.confusion == many.confusion


def test_an_exported_artefact_runs_through_the_runtime(small_artefact: Path, tmp_path: Path) -> None:
    labels = ModelSpec.read(small_artefact).labels
    _write_noise(tmp_path, labels)
    exported, trained = (
        evaluate(path, tmp_path) for path in (small_artefact, small_artefact.with_suffix(".keras"))
    )
    assert exported.backend in ("onnxruntime", "openvino")
    assert exported.evaluation == trained.evaluation


def test_a_part_that_is_not_there(scratch: FitResult, simulated: Path) -> None:
    with pytest.raises(DataError, match="has no part named val; it has test and train"):
        evaluate(scratch.output, simulated, split="val")
    with pytest.raises(DataError, match="has no part named test; it is not divided"):
        evaluate(scratch.output, simulated / "test", split="test")


def test_labels_that_are_not_the_models(small_model: Path, simulated: Path) -> None:
    with pytest.raises(DataError, match="'calcification' of the data is not one of the model's: cyst"):
        evaluate(small_model, simulated)


def test_labels_are_matched_by_name(small_model: Path, tmp_path: Path) -> None:
    _write_noise(tmp_path, ("solid", "normal"))
    figures = evaluate(small_model, tmp_path).evaluation
    counts = {row.label: row.images for row in figures.per_class}
    assert counts == {"cyst": 0, "normal": 3, "solid": 3}


def test_a_keras_file_without_a_spec(simulated: Path, tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "foreign.keras")
    with pytest.raises(NoSpecError, match="carries no medimg entry"):
        evaluate(tmp_path / "foreign.keras", simulated)


def test_a_file_that_keras_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "broken.keras").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ModelError, match=r"broken\.keras: Keras cannot load it"):
        load_float32(tmp_path / "broken.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float32"])
def test_any_policy_is_read_back_in_float32(policy: str, suffix: str, tmp_path: Path) -> None:
    layers = keras.layers
    inner = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3, dtype=policy), layers.Flatten(dtype=policy)]
    )
    image = keras.Input((8, 8, 3))
    hidden = layers.BatchNormalization(dtype=policy)(inner(image))
    model = keras.Model(image, layers.Dense(2, activation="softmax", dtype="float32")(hidden))
    model.save(tmp_path / f"model{suffix}")
    loaded = load_float32(tmp_path / f"model{suffix}")
    assert {layer.compute_dtype for layer in loaded.layers} == {"float32"}
    assert {layer.compute_dtype for layer in loaded.layers[1].layers} == {"float32"}
    for old, new in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_a_saved_spec_is_read_back(suffix: str, tmp_path: Path) -> None:
    spec = ModelSpec(("a", "b"), ImageRule(8, 8), Intensity.named("unit"), tools={"keras": "3"})
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    save(model, spec, tmp_path / f"model{suffix}")
    assert ModelSpec.read(tmp_path / f"model{suffix}") == spec
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"]


def _write_noise(folder: Path, labels: tuple[str, ...]) -> None:
    import cv2

    random = np.random.default_rng(0)
    for label in labels:
        (folder / label).mkdir()
        for index in range(3):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            assert cv2.imwrite(str(folder / label / f"{index}.png"), pixels)
