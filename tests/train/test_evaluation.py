import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from medimg.runtime.data import read_data
from medimg.runtime.errors import DataError, ModelError, NoSpecError, UsageError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import Intensity, ModelSpec
from medimg.train import EvaluateOptions, FitResult, evaluate
from medimg.train.evaluation.answers import ask
from medimg.train.keras_files import load_float32, save
from medimg.train.progress import Progress

pytestmark = pytest.mark.long


def test_the_test_part_is_measured(scratch: FitResult, simulated: Path) -> None:
    figures = evaluate(scratch.output, simulated)
    assert (figures.part, figures.backend, figures.precision) == ("test", "keras", "fp32")
    assert figures.simulated_data
    assert figures.scores.images == 8
    assert [row.images for row in figures.scores.per_class] == [2, 2, 2, 2]
    assert np.sum(figures.evaluation.confusion) == 8


def test_accuracy_is_that_of_an_independent_count(scratch: FitResult, simulated: Path) -> None:
    import keras

    data = read_data(simulated).part("train")
    model = keras.models.load_model(scratch.output)
    right = 0
    for sample in data.samples:
        image = sample.load(scratch.options.image).astype(np.float32) / 255
        right += int(model(image[None]).numpy().argmax() == sample.label)
    figures = evaluate(scratch.output, simulated, EvaluateOptions(split="train", batch_size=5))
    assert figures.scores.accuracy.value == right / len(data)


def test_undivided_data_are_used_whole(scratch: FitResult, simulated: Path) -> None:
    assert evaluate(scratch.output, simulated / "test").part == "all"


def test_batch_size_does_not_matter(fine_tuned: FitResult, simulated: Path) -> None:
    one, many = (evaluate(fine_tuned.output, simulated, EvaluateOptions(batch_size=size)) for size in (1, 8))
    assert one.evaluation.confusion == many.evaluation.confusion


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
        evaluate(scratch.output, simulated, EvaluateOptions(split="val"))
    with pytest.raises(DataError, match="has no part named test; it is not divided"):
        evaluate(scratch.output, simulated / "test", EvaluateOptions(split="test"))


def test_labels_that_are_not_the_models(small_model: Path, simulated: Path) -> None:
    with pytest.raises(DataError, match="'calcification' of the data is not one of the model's: cyst"):
        evaluate(small_model, simulated)


def test_labels_are_matched_by_name(small_model: Path, tmp_path: Path) -> None:
    _write_noise(tmp_path, ("solid", "normal"))
    images = {row.label: row.images for row in evaluate(small_model, tmp_path).scores.per_class}
    assert images == {"cyst": 0, "normal": 3, "solid": 3}


def test_patients_are_drawn_and_subgroups_measured_apart(colored_model: Path, colored: Path) -> None:
    figures = evaluate(colored_model, colored, EvaluateOptions(subgroups=("sex",)))
    data = read_data(colored).part("test")
    patients = {sample.patient for sample in data.samples}
    assert (figures.resampling.unit, figures.resampling.units) == ("patients", len(patients))
    assert [group.value for group in figures.subgroups] == ["F", "M"]
    assert sum(group.images for group in figures.subgroups) == len(data) == 144
    for group in figures.subgroups:
        chosen = [sample for sample in data.samples if sample.attributes["sex"] == group.value]
        right = [
            sample.load(ImageRule(8, 8)).mean(axis=(0, 1)).argmax() == ("red", "green", "blue").index(name)
            for sample in chosen
            for name in [data.labels[sample.label or 0]]
        ]
        assert group.images == len(chosen)
        assert group.scores.accuracy.value == pytest.approx(np.mean(right))
        assert group.small == (len(chosen) < 30 or min(row.images for row in group.scores.per_class) < 10)


def test_a_column_that_cannot_divide(colored_model: Path, colored: Path, simulated: Path) -> None:
    with pytest.raises(DataError, match="no column 'age' to group by; they have sex"):
        evaluate(colored_model, colored, EvaluateOptions(subgroups=("age",)))
    lines = colored.read_text().splitlines()
    many = colored.with_name("many.csv")
    many.write_text("\n".join([f"{lines[0]},age", *(f"{line},{n}" for n, line in enumerate(lines[1:]))]))
    with pytest.raises(DataError, match="'age' has 144 values: make a column of at most 50"):
        evaluate(colored_model, many, EvaluateOptions(subgroups=("age",)))


def test_several_labels_an_image(tmp_path: Path) -> None:
    import keras

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 8, 8, 3), np.uint8)
    labels = (images.mean(axis=(1, 2)) > 127).astype(np.uint8)
    np.savez(tmp_path / "set.npz", test_images=images, test_labels=labels)
    dense = keras.layers.Dense(3, activation="sigmoid")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(), dense])
    dense.set_weights([400 * np.eye(3), np.full(3, -200.0)])
    spec = ModelSpec(
        ("0", "1", "2"), ImageRule(8, 8), Intensity.named("unit"), task="multilabel", head="multilabel"
    )
    save(model, spec, tmp_path / "model.keras")
    figures = evaluate(
        tmp_path / "model.keras", tmp_path / "set.npz", EvaluateOptions(report=tmp_path / "page.html")
    )
    assert figures.evaluation.confusion == ()
    assert figures.scores.roc_auc.value == 1
    assert figures.scores.accuracy.value == figures.evaluation.accuracy
    assert "Confusion" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("head", ["sigmoid", "logits"])
def test_every_head_is_measured_as_probabilities(head: str, tmp_path: Path) -> None:
    import keras

    units = 1 if head == "sigmoid" else 2
    dense = keras.layers.Dense(units, activation="sigmoid" if head == "sigmoid" else None)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(), dense])
    spec = ModelSpec(("a", "b"), ImageRule(8, 8), Intensity.named("unit"), head=head)  # type: ignore[arg-type]  # one of them
    save(model, spec.with_(temperature=3.0), tmp_path / "model.keras")
    for name, label in (("x", "a"), ("y", "b")):
        (tmp_path / label).mkdir()
        noise = np.random.default_rng(len(name)).integers(0, 256, (8, 8, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / label / f"{name}.png"), noise)
    found = ask(
        tmp_path / "model.keras",
        spec.with_(temperature=3.0),
        read_data(tmp_path),
        batch_size=2,
        backend="auto",
        threads=1,
        progress=Progress(),
    )
    images = np.stack([sample.load(spec.image) for sample in found.samples]).astype(np.float32) / 255
    kernel, bias = dense.get_weights()
    logits = images.mean(axis=(1, 2)) @ kernel + bias
    logits = np.hstack([np.zeros_like(logits), logits]) if units == 1 else logits
    expected = np.exp(logits / 3) / np.exp(logits / 3).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_wrong_use(colored_model: Path, colored: Path) -> None:
    with pytest.raises(UsageError, match="name one with --report"):
        evaluate(colored_model, colored, EvaluateOptions(with_images=True))
    with pytest.raises(UsageError, match="no regular expression"):
        evaluate(colored_model, colored, EvaluateOptions(group_by="("))
    with pytest.raises(UsageError, match="there is no such folder"):
        evaluate(colored_model, colored, EvaluateOptions(report="absent/page.html"))
    with pytest.raises(UsageError, match="class 'grey' is not one of the model's: red, green, blue"):
        evaluate(colored_model, colored, EvaluateOptions(positive="grey"))


def test_a_keras_file_without_a_spec(simulated: Path, tmp_path: Path) -> None:
    import keras

    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "foreign.keras")
    with pytest.raises(NoSpecError, match="carries no medimg entry"):
        evaluate(tmp_path / "foreign.keras", simulated)


def test_a_file_that_keras_cannot_load(tmp_path: Path) -> None:
    import keras

    (tmp_path / "broken.keras").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ModelError, match=r"broken\.keras: not a \.keras archive.*breaks off"):
        load_float32(tmp_path / "broken.keras")
    layers = keras.layers
    keras.Sequential([layers.Input((4,)), layers.Dense(2)]).save(tmp_path / "other.keras")
    with (
        zipfile.ZipFile(tmp_path / "other.keras") as old,
        zipfile.ZipFile(tmp_path / "wide.keras", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"units": 2', b'"units": 3'))
    with pytest.raises(ModelError, match=r"wide\.keras: Keras cannot open it: .*can be saved anew"):
        load_float32(tmp_path / "wide.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float32"])
def test_any_policy_is_read_back_in_float32(policy: str, suffix: str, tmp_path: Path) -> None:
    import keras

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
    import keras

    spec = ModelSpec(("a", "b"), ImageRule(8, 8), Intensity.named("unit"), tools={"keras": "3"})
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    save(model, spec, tmp_path / f"model{suffix}")
    assert ModelSpec.read(tmp_path / f"model{suffix}") == spec
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"]


def _write_noise(folder: Path, labels: tuple[str, ...]) -> None:
    random = np.random.default_rng(0)
    for label in labels:
        (folder / label).mkdir()
        for index in range(3):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            assert cv2.imwrite(str(folder / label / f"{index}.png"), pixels)
