"""Thresholds: what is wanted is had on the images that chose, and nearly on others."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.model.spec import OperatingPoint
from medimg.runtime.statistics.bootstrap import Resamples
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.operating_points import choose_point, measure_point

Made = Callable[..., Answers]


@pytest.mark.parametrize("wanted", [0.01, 0.5, 0.8, 0.95, 1.0])
def test_the_threshold_is_the_highest_that_finds_enough(wanted: float, made: Made) -> None:
    answers = made(3, 400, seed=1)
    point = choose_point(answers, "solid", wanted, "the part val")
    shown, scores = answers.shown[:, 2], answers.probabilities[:, 2]
    assert (scores[shown] >= point.threshold).mean() >= wanted
    higher = scores[scores >= point.threshold].min()
    assert (scores[shown] > higher).mean() < wanted
    assert point.threshold < higher
    assert point.chosen_for == f"sensitivity {wanted:g} on the part val"


def test_95_percent_of_20_images_are_19() -> None:
    scores = np.linspace(0.01, 0.4, 40)
    shown = np.zeros((40, 2), bool)
    shown[:20, 0] = shown[20:, 1] = True
    probabilities = np.stack([1 - scores, scores], axis=1).astype(np.float32)
    answers = Answers(("a", "b"), "multiclass", shown, probabilities, (), "keras", "fp32")
    threshold = choose_point(answers, "b", 0.95, "val").threshold
    assert (scores[20:] >= threshold).sum() == 19


def test_a_point_is_measured_with_intervals(made: Made) -> None:
    answers = made(2, 300, seed=2)
    found = measure_point(answers, OperatingPoint("normal", 0.3, "tests"), Resamples(answers.patients, 200))
    shown, decided = answers.shown[:, 1], answers.probabilities[:, 1] >= 0.3
    assert found.images == shown.sum()
    assert found.sensitivity.value == pytest.approx(decided[shown].mean())
    assert found.specificity.value == pytest.approx((~decided[~shown]).mean())
    assert found.precision.value == pytest.approx(shown[decided].mean())
    for estimate in (found.sensitivity, found.specificity, found.precision):
        assert estimate.low < estimate.value < estimate.high


def test_what_cannot_be_chosen(made: Made) -> None:
    answers = made(3, 30, seed=3)
    with pytest.raises(UsageError, match="class 'tumour' is not one of the model's: cyst, normal, solid"):
        choose_point(answers, "tumour", 0.9, "val")
    with pytest.raises(UsageError, match=r"sensitivity 1\.5 of 'cyst'"):
        choose_point(answers, "cyst", 1.5, "val")
    with pytest.raises(DataError, match="no image shows 'solid'"):
        choose_point(replace(answers, shown=answers.shown & [True, True, False]), "solid", 0.9, "val")
    with pytest.raises(DataError, match="every image shows 'solid'"):
        choose_point(replace(answers, shown=answers.shown | [False, False, True]), "solid", 0.9, "val")


@pytest.mark.real
def test_on_real_images_the_sensitivity_holds_within_its_interval(
    regression: tuple[Answers, Answers],
) -> None:
    validation, test = regression
    point = choose_point(validation, "pneumonia", 0.95, "the part val")
    there = measure_point(validation, point, Resamples(validation.patients))
    assert there.sensitivity.low < 0.95 <= there.sensitivity.value
    found = measure_point(test, point, Resamples(test.patients))
    assert found.sensitivity.high >= 0.95
    assert found.specificity.low > 0.2
