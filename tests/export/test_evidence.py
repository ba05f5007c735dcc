"""Preprocessing by evidence: the rule of decision on made-up networks, and the whole on a real VGG16."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.export.errors import PreprocessingError
from medimg.export.evidence import SCALINGS, Evidence, find_preprocessing
from medimg.runtime.data import DataSet, Sample
from medimg.runtime.images.rule import ImageRule, ResizeRule
from medimg.runtime.model.spec import ColorOrder, Intensity, IntensityName

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CLASSES = 5
STEP = 40
"""Class k is shown by the value 20 + 40 k."""


class FakeSource:
    """A network that undoes one rule, and tells the class from the red in a corner."""

    input_shape = (8, 8, 3)

    def __init__(self, trained_with: Intensity) -> None:
        self._rule = trained_with

    def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        values = (network_input * np.array(self._rule.std) + np.array(self._rule.mean)) * self._rule.divisor
        red = values[:, 0, 0, 0 if self._rule.color_order == "rgb" else 2]
        classes = np.rint((red - 20) / STEP).astype(int)
        return np.asarray(np.eye(CLASSES, dtype=np.float32)[np.clip(classes, 0, CLASSES - 1)])


def picture(label: int, *, grey: bool, size: int = 8) -> NDArray[np.uint8]:
    red = 20 + STEP * label
    return np.full((size, size, 3), red if grey else (red, 100, 200 - red), np.uint8)


def data_of(pictures: list[tuple[NDArray[np.uint8], int]]) -> DataSet:
    samples = (Sample(f"{place}.png", pixels, label) for place, (pixels, label) in enumerate(pictures))
    return DataSet(tuple("abcde"), tuple(samples))


def data(images: int, *, grey: bool = False) -> DataSet:
    return data_of([(picture(place % CLASSES, grey=grey), place % CLASSES) for place in range(images)])


def found(source: Any, images: DataSet, *, resize_is_known: bool = True) -> Evidence:
    return find_preprocessing(
        source, "softmax", ImageRule(8, 8), images, resize_is_known=resize_is_known, threads=1
    )


@pytest.mark.parametrize("rule", SCALINGS)
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_each_scaling_in_each_colour_order_is_tried_and_found(rule: IntensityName, order: ColorOrder) -> None:
    trained_with = Intensity.named(rule, color_order=order)
    evidence = found(FakeSource(trained_with), data(60))
    assert evidence.intensity == trained_with
    tried = {attempt.rule: attempt for attempt in evidence.attempts}
    assert set(tried) == {f"{name} {way}" for name in SCALINGS for way in ("rgb", "bgr")}
    assert tried[f"{rule} {order}"].accuracy == 1
    others = [attempt.accuracy for attempt in evidence.attempts if not attempt.same_as_winner]
    assert evidence.margin is not None
    assert evidence.margin == pytest.approx(1 - max(others))
    assert evidence.margin > 0.3


def test_colour_order_is_immaterial_on_grey_images() -> None:
    evidence = found(FakeSource(Intensity.named("unit")), data(60, grey=True))
    assert (evidence.intensity.rule, evidence.intensity.color_order) == ("unit", "rgb")
    assert "unit bgr gives the same predictions on these images: immaterial" in evidence.notes
    assert [attempt.rule for attempt in evidence.attempts if attempt.same_as_winner] == [
        "unit rgb",
        "unit bgr",
    ]


def test_keras_is_asked_once_for_what_is_the_same_input(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    predict = FakeSource.predict

    def counted(self: FakeSource, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(network_input.tobytes())
        return predict(self, network_input)

    monkeypatch.setattr(FakeSource, "predict", counted)
    found(FakeSource(Intensity.named("unit")), data(48, grey=True))
    assert len(set(asked)) == len(asked)


class Undecided(FakeSource):
    """As good with `tf` as with `unit` but for some images."""

    def __init__(self, wrong_with_tf: int) -> None:
        super().__init__(Intensity.named("unit"))
        self._tf, self._wrong_with_tf = FakeSource(Intensity.named("tf")), wrong_with_tf

    def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        # A grey of 100 is what `tf` makes negative and `unit` leaves.
        if network_input.min() >= 0 and network_input.max() <= 1:
            return super().predict(network_input)
        answers = self._tf.predict(network_input)
        if np.abs(network_input).max() > 1:
            return answers
        lit = np.flatnonzero(answers.argmax(axis=1) == CLASSES - 1)[: self._wrong_with_tf]
        self._wrong_with_tf -= len(lit)
        answers[lit] = np.eye(CLASSES)[0]
        return answers


def test_a_near_tie_between_different_predictions_is_an_error() -> None:
    with pytest.raises(PreprocessingError) as raised:
        found(Undecided(wrong_with_tf=1), data(60, grey=True))
    assert "do not tell how the model's images were prepared" in str(raised.value)
    assert "unit rgb 1.000" in str(raised.value)
    assert "tf rgb 0.9" in str(raised.value)
    assert "--preprocessing" in str(raised.value)


def test_rules_that_differ_in_no_prediction_count_as_one() -> None:
    evidence = found(Undecided(wrong_with_tf=0), data(60, grey=True))
    assert evidence.intensity.rule == "tf"
    assert "unit rgb gives the same predictions on these images: immaterial" in evidence.notes


def test_a_network_that_is_never_right_tells_nothing() -> None:
    class Constant(FakeSource):
        def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.eye(CLASSES, dtype=np.float32)[np.zeros(len(network_input), int)]

    with pytest.raises(PreprocessingError, match=r"commonest class is \(0\.200\)"):
        found(Constant(Intensity.named("unit")), data(60))


def striped(label: int) -> NDArray[np.uint8]:
    """Class by the odd columns; in every second class the even ones mislead whoever averages."""
    pixels = picture(label, grey=False, size=16)
    if label % 2:
        pixels[:, ::2] = 255
    return pixels


def test_another_resize_rule_wins_only_beyond_chance() -> None:
    images = data_of([(striped(place % CLASSES), place % CLASSES) for place in range(120)])
    evidence = found(FakeSource(Intensity.named("raw")), images, resize_is_known=False)
    assert evidence.resize == "stretch-nearest"
    tried = {attempt.rule for attempt in evidence.attempts}
    assert tried >= set(get_args(ResizeRule)) - {"stretch-linear"}
    assert "resize stretch-nearest is better than stretch-linear beyond chance" in evidence.notes


def test_the_resize_rule_stays_where_the_images_do_not_tell() -> None:
    evidence = found(FakeSource(Intensity.named("unit")), data(60), resize_is_known=False)
    assert evidence.resize == "stretch-linear"
    said = evidence.notes[-1]
    assert all(rule in said for rule in get_args(ResizeRule))
    assert "--resize decides" in said


@pytest.mark.real
def test_a_real_network_tells_its_scaling(run: Run, real_data: Path, brain_mri: Path, tmp_path: Path) -> None:
    table = tmp_path / "labelled.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for folder in sorted((brain_mri / "train").iterdir()):
            rows.writerows([image, folder.name] for image in sorted(folder.iterdir())[:8])
    model = real_data / "models" / "k3_vgg16_brain_mri_240_softmax4.h5"
    done = run(
        *("medimg-export", model, "--output", tmp_path, "--validation", table, "--resize", "stretch-linear"),
        *("--json", tmp_path / "found.json"),
    )
    assert done.returncode == 0, done.stderr
    assert "preprocessing found: unit rgb" in done.stderr
    evidence = json.loads((tmp_path / "found.json").read_text())["evidence"]
    assert evidence["intensity"]["rule"] == "unit"
    assert evidence["margin"] > 0.1
    assert "unit bgr gives the same predictions on these images: immaterial" in evidence["notes"]
