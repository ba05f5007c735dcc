"""Calibration beside scikit-learn's figures, and temperatures that are known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as peer

from medimg.runtime.errors import DataError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import Intensity, ModelSpec
from medimg.runtime.statistics.bootstrap import Resamples
from medimg.runtime.tasks import task_named
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.reliability import BINS, Reliability, fit_temperature, measure_reliability

Made = Callable[..., Answers]


def measured(answers: Answers, draws: int = 100) -> Reliability:
    return measure_reliability(answers, Resamples(answers.patients, draws))


@pytest.mark.parametrize("classes", [2, 3])
def test_losses_are_those_of_scikit_learn(classes: int, made: Made) -> None:
    answers = made(classes, 200, seed=1)
    truth, exact = answers.shown.argmax(axis=1), answers.probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    found = measured(answers)
    brier = peer.brier_score_loss(truth, exact[:, 1] if classes == 2 else exact)
    assert found.brier.value == pytest.approx(brier, abs=1e-6)
    assert found.nll.value == pytest.approx(peer.log_loss(truth, exact), abs=1e-6)


def test_losses_of_several_labels_are_those_of_scikit_learn(made: Made) -> None:
    answers = made(3, 200, seed=1, task="multilabel")
    found, columns = measured(answers), range(3)
    brier = [peer.brier_score_loss(answers.shown[:, n], answers.probabilities[:, n]) for n in columns]
    nll = [peer.log_loss(answers.shown[:, n], answers.probabilities[:, n].astype(float)) for n in columns]
    assert found.brier.value == pytest.approx(np.mean(brier), abs=1e-6)
    assert found.nll.value == pytest.approx(np.mean(nll), abs=1e-5)


def test_the_calibration_error_follows_its_definition(made: Made) -> None:
    answers = made(3, 500, seed=2, sharpness=2.0)
    confidence, right = (
        answers.probabilities.max(axis=1),
        np.asarray((answers.shown & answers.decided).any(axis=1)),
    )
    expected = 0.0
    for place in range(BINS):
        inside = (confidence > place / BINS) & (confidence <= (place + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = measured(answers)
    assert found.ece.value == pytest.approx(expected, abs=1e-6)
    assert sum(item.images for item in found.bins) == 500
    shares = np.array([item.images * item.accuracy.value for item in found.bins if item.images])
    assert shares.sum() == pytest.approx(right.sum())


def test_answers_that_know_the_odds_have_an_error_that_reaches_down_to_nothing(made: Made) -> None:
    honest, boastful = (measured(made(3, 1500, seed=3, sharpness=sharpness)) for sharpness in (1.0, 3.0))
    assert honest.ece.low < 0.01
    assert max(honest.ece.value, honest.adaptive_ece.value) < 0.05
    assert min(boastful.ece.low, boastful.adaptive_ece.low) > 0.1


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_the_temperature_is_what_sharpened_the_answers(sharpness: float, task: str, made: Made) -> None:
    answers = made(3, 4000, seed=5, task=task, sharpness=sharpness)
    temperature = fit_temperature(answers)
    assert temperature == pytest.approx(sharpness, rel=0.08)
    tempered = replace(
        answers, probabilities=task_named(answers.task).tempered(answers.probabilities, temperature)
    )
    assert measured(tempered).nll.value <= measured(answers).nll.value
    assert fit_temperature(tempered) == pytest.approx(1, abs=1e-3)


def test_answers_that_are_always_right_tell_no_temperature(made: Made) -> None:
    answers = made(3, 50, seed=6)
    with pytest.raises(DataError, match="these 50 images cannot tell a temperature"):
        fit_temperature(replace(answers, shown=answers.decided))


def test_a_certain_and_wrong_answer_is_a_large_loss_and_no_infinity(made: Made) -> None:
    answers = made(2, 4, seed=7)
    certain = replace(answers, probabilities=(~answers.shown).astype(np.float32))
    found = measured(certain)
    assert 80 < found.nll.value < 100
    assert (found.brier.value, found.ece.value) == (1, 1)


@pytest.mark.real
def test_a_real_model_is_better_calibrated_on_images_that_chose_nothing(
    regression: tuple[Answers, Answers],
) -> None:
    validation, test = regression
    temperature = fit_temperature(validation)
    spec = ModelSpec(test.labels, ImageRule(28, 28), Intensity.named("unit"), temperature=temperature)
    after = measured(
        replace(test, probabilities=task_named(spec.task).tempered(test.probabilities, spec.temperature))
    )
    before = measured(test)
    assert temperature > 1
    assert after.nll.value < before.nll.value
    assert after.ece.value < before.ece.value
