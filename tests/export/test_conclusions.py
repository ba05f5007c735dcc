"""What export concludes from data and folders: class names, images without a number, others' artefacts."""

from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from keras import layers, ops
from numpy.typing import NDArray

from medimg.export import ExportOptions, export_model
from medimg.export.errors import CalibrationError, SourceError
from medimg.export.label_choice import decide_order, doubts, labels_of
from medimg.export.sources.base import Origin
from medimg.runtime.archive.worker import numbered
from medimg.runtime.classifier import Classifier, InputError, Prediction
from medimg.runtime.data import read_data
from medimg.runtime.errors import UsageError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import Intensity, ModelSpec

NUMBERS = tuple(str(number) for number in range(12))
TEXT = tuple(sorted(NUMBERS))
pytestmark = pytest.mark.usefixtures("kept_workers")
SPEC = ModelSpec(TEXT, ImageRule(16, 16), Intensity.named("raw"))


def lit(label: str) -> NDArray[np.uint8]:
    """A picture of which one of twelve fields is lit."""
    picture = np.full((16, 16, 3), 20, np.uint8)
    row, column = divmod(int(label), 4)
    picture[5 * row : 5 * row + 5, 4 * column : 4 * column + 4] = 220
    return picture


@pytest.fixture(scope="module")
def numbered_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, named 0 to 11."""
    folder = tmp_path_factory.mktemp("numbers")
    for label in NUMBERS:
        (folder / label).mkdir()
        for place in range(4):
            cv2.imwrite(str(folder / label / f"{place}.png"), lit(label))
    return folder


class Reader:
    """A network that tells which field is lit, its outputs in the order of its training."""

    input_shape, units, input_dtype = (16, 16, 3), 12, "float32"

    def __init__(self, order: tuple[str, ...] | None) -> None:
        self._order = order
        self.origin = Origin(Path("model.keras"), ".keras", "0" * 64)

    def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._order is None:
            return np.full((len(network_input), 12), 1 / 12, np.float32)
        lights = [network_input[:, 5 * (n // 4) + 2, 4 * (n % 4) + 2, 0] for n in map(int, self._order)]
        return np.asarray(np.stack(lights, axis=1) > 100, np.float32)


@pytest.mark.parametrize("order", [TEXT, NUMBERS])
def test_the_order_of_numbers_is_the_one_that_keras_is_right_with(
    order: tuple[str, ...], numbered_folder: Path
) -> None:
    data = read_data(numbered_folder)
    found = labels_of(data)
    assert (found.names, found.as_numbers) == (TEXT, NUMBERS)
    source: Any = Reader(order)
    spec, (said,) = decide_order(source, SPEC, found, data, 1)
    assert spec.labels == order
    assert "Keras is right on 1.000 of 48 images" in said


def test_an_order_that_nothing_shows_is_asked_for(numbered_folder: Path) -> None:
    data = read_data(numbered_folder)
    source: Any = Reader(None)
    with pytest.raises(UsageError, match="say the order with --labels"):
        decide_order(source, SPEC, labels_of(data), data, 1)
    unknown = SPEC.with_(intensity=Intensity("unspecified"))
    with pytest.raises(UsageError, match="say the order with --labels"):
        decide_order(Reader(TEXT), unknown, labels_of(data), data, 1)  # type: ignore[arg-type]  # a fake


def test_names_in_a_wrong_order_are_doubted() -> None:
    spec = ModelSpec(("a", "b", "c"), ImageRule(8, 8), Intensity.named("raw"))
    truth = np.arange(60) % 3
    answers = np.eye(3, dtype=np.float32)[(truth + 1) % 3]
    (said,) = doubts(spec, answers, truth)
    assert "--labels c,a,b" in said
    assert doubts(spec, np.eye(3, dtype=np.float32)[truth], truth) == []


def network(path: Path, *, blank: bool = False, trained: bool = True) -> Path:
    """Save a classifier; one that scales each image by its own range has no answer to a blank one."""
    keras.utils.set_random_seed(2)
    taken = keras.Input((16, 16, 3))
    values = taken / 255.0
    if blank:
        axes = {"axis": (1, 2, 3), "keepdims": True}
        low, high = ops.amin(taken, **axes), ops.amax(taken, **axes)
        values = (taken - low) / (high - low)
    seen = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(values))
    end = layers.Dense(3, activation="softmax", kernel_initializer="glorot_uniform" if trained else "zeros")
    keras.Model(taken, end(seen * 20.0)).save(path)
    return path


@pytest.fixture(scope="module")
def with_blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blank")
    for place in range(5):
        cv2.imwrite(str(folder / f"{place}.png"), np.random.default_rng(place).integers(0, 256, (20, 20, 3)))
    cv2.imwrite(str(folder / "black.png"), np.zeros((20, 20, 3), np.uint8))
    return folder


@pytest.mark.long
def test_an_image_without_a_number_is_named_and_is_an_error_of_its_own(
    tmp_path: Path, with_blank: Path
) -> None:
    model = network(tmp_path / "minmax.keras", blank=True)
    result = export_model(
        model, ExportOptions(preprocessing="raw", labels=("a", "b", "c"), validation=with_blank)
    )
    (item,) = result.artefacts
    assert item.written
    assert item.verification.max_abs_diff <= 1e-5
    (said,) = [text for text in result.warnings if "no number" in text]
    assert said.endswith("1 of 6 images, and so do the artefacts: black.png")
    for backend in ("onnxruntime", "openvino"):
        with Classifier(item.path, backend=backend) as classifier:
            answers = list(classifier.predict([with_blank / "0.png", with_blank / "black.png"]))
        assert answers[0].error is None
        assert answers[1].top_k == ()
        assert answers[1].error is not None
        assert answers[1].error.type == "NoNumberError"
    with pytest.raises(CalibrationError, match=r"black\.png: the model gives no number"):
        export_model(
            model,
            ExportOptions(
                output=tmp_path / "int8",
                preprocessing="raw",
                labels=("a", "b", "c"),
                precisions=("int8",),
                calibration=with_blank,
            ),
        )
    assert list((tmp_path / "int8").iterdir()) == []
    only_blank = tmp_path / "only"
    only_blank.mkdir()
    (only_blank / "black.png").write_bytes((with_blank / "black.png").read_bytes())
    with pytest.raises(SourceError, match="no number for any of 1 trial images"):
        export_model(model, ExportOptions(output=tmp_path / "no", preprocessing="raw", validation=only_blank))


@pytest.mark.long
def test_one_answer_to_all_images_proves_nothing_and_no_other_models_artefact_is_lost(tmp_path: Path) -> None:
    model = network(tmp_path / "m.keras", trained=False)
    result = export_model(model, ExportOptions(labels=("a", "b", "c")))
    assert result.artefacts[0].verification.verdict == "not proven"
    assert any("this proves nothing" in text for text in result.warnings)
    assert export_model(model, ExportOptions(labels=("a", "b", "c"))).artefacts[0].written
    before = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.h5").write_bytes(b"another model")
    (tmp_path / "m2.onnx").write_bytes(b"no artefact")
    for name, message in (("m.h5", "was made from m.keras"), ("m2.keras", "is no artefact")):
        with pytest.raises(UsageError, match=message):
            export_model(tmp_path / name)
    assert (tmp_path / "m.onnx").read_bytes() == before
    assert (tmp_path / "m2.onnx").read_bytes() == b"no artefact"


def test_frames_without_a_number_leave_the_others_of_their_file_in_place() -> None:
    failed = InputError("NoNumberError", "a.dcm: the model gives no number for it")
    answers = [
        Prediction("a.dcm", 0, (), failed),
        Prediction("a.dcm", 1),
        Prediction("b.dcm", None, (), InputError("ImageError", "b.dcm: damaged")),
        Prediction("c.dcm", 0),
    ]
    assert [place for place, _ in numbered(answers)] == [0, 0, 1, 2]
