"""What a narrower network is trained to answer."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr, softmax

from medimg.runtime.model.spec import Intensity
from medimg.train.compression.distillation import (
    LABELS_COUNT,
    TEMPERATURE,
    distil,
    make_loss,
    make_metric,
    targets,
)
from medimg.train.data.array_store import ArrayStore
from medimg.train.data.balance import CountsOfClasses, image_weights
from medimg.train.data.parts import Part, Parts
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.phases import Plan
from medimg.train.progress import Progress

TEACHER = np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]], np.float32)
STUDENT = np.array([[1.0, 1.5, -1.0], [0.3, 0.1, 2.0]], np.float32)
TRUTH = np.array([0, 2])


def test_the_loss_is_the_divergence_at_a_temperature_and_a_share_of_the_labels() -> None:
    wanted = targets(TEACHER, TRUTH)
    soft, given = softmax(TEACHER / TEMPERATURE, axis=1), softmax(STUDENT / TEMPERATURE, axis=1)
    labels = -log_softmax(STUDENT, axis=1)[[0, 1], TRUTH]
    expected = TEMPERATURE**2 * rel_entr(soft, given).sum(axis=1) + LABELS_COUNT * labels
    found = make_loss(exclusive=True, distilled=True)(wanted, STUDENT)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)
    alone = make_loss(exclusive=True, distilled=False)(wanted, STUDENT)
    np.testing.assert_allclose(np.asarray(alone), labels, rtol=1e-5)
    assert np.asarray(make_metric(exclusive=True)(wanted, STUDENT)).tolist() == [0, 1]


@pytest.mark.parametrize("truth", [np.array([[1, 0, 1], [0, 0, 1]]), np.array([1, 0])])
def test_each_unit_may_be_a_question_of_its_own(truth: np.ndarray) -> None:
    units = truth.shape[1] if truth.ndim == 2 else 1
    teacher, student = TEACHER[:, :units], STUDENT[:, :units]
    wanted = targets(teacher, truth)
    shown = truth.reshape(2, units)
    soft, given = expit(teacher / TEMPERATURE), expit(student / TEMPERATURE)
    apart = (rel_entr(soft, given) + rel_entr(1 - soft, 1 - given)).mean(axis=1)
    odds = expit(student)
    labels = -(shown * np.log(odds) + (1 - shown) * np.log(1 - odds)).mean(axis=1)
    found = make_loss(exclusive=False, distilled=True)(wanted, student)
    expected = TEMPERATURE**2 * apart + LABELS_COUNT * labels
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4)
    right = ((student > 0) == (shown > 0)).mean(axis=1)
    np.testing.assert_allclose(np.asarray(make_metric(exclusive=False)(wanted, student)), right, rtol=1e-6)


@pytest.mark.parametrize("original_is_right", [True, False])
def test_the_labels_choose_the_epoch_and_not_the_original(original_is_right: bool) -> None:
    """Following an original that says the opposite of the labels is learnt, and not kept."""
    import keras

    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    truth = np.arange(32) % 2
    images = np.random.default_rng(0).integers(0, 100, (32, 4, 4, 3)).astype(np.uint8)
    images[truth == 1] += 150
    said = 8 * np.eye(2, dtype=np.float32)[truth if original_is_right else 1 - truth]
    part = Part(images, targets(said, truth), np.ones(32, np.float32))
    plan = Plan("4x", 8, 8, 0.05, may_keep_start=True)
    job = Job(ArrayStore(Path()), 1, Progress(), FitOptions(batch_size=8))
    intensity = Intensity.named("unit")
    phase = distil(network, Parts(part, part), intensity, plan, job, exclusive=True, distilled=True)
    assert phase.epochs[-1].loss < phase.epochs[0].loss
    # The rate rises over the first quarter, and falls to nothing.
    rates = [epoch.learning_rate for epoch in phase.epochs]
    assert rates[:2] == pytest.approx([0.025, 0.05], abs=1e-8)
    assert rates[2:] == pytest.approx(
        [0.025 * (1 + np.cos(np.pi * epoch / 6)) for epoch in range(1, 7)], abs=1e-8
    )
    assert (phase.best_epoch > 0) == original_is_right


@pytest.mark.parametrize("balance", ["weights", "none"])
def test_a_class_of_many_images_gains_no_advantage(balance: CountsOfClasses) -> None:
    """How often a class comes is all that these images teach, and no gain where validation counts classes."""
    import keras

    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2, kernel_initializer="zeros")]
    )
    truth = np.repeat([0, 1], [8, 24])
    wanted = targets(np.zeros((32, 2), np.float32), truth)
    train, validation = (
        Part(np.full((32, 4, 4, 3), 100, np.uint8), wanted, image_weights(truth, truth, 2, counts))
        for counts in ("none", balance)
    )
    plan = Plan("4x", 3, 3, 0.01, may_keep_start=True)
    job = Job(ArrayStore(Path()), 1, Progress(), FitOptions(batch_size=8))
    intensity = Intensity.named("unit")
    phase = distil(network, Parts(train, validation), intensity, plan, job, exclusive=True, distilled=False)
    assert (phase.best_epoch == 0) == (balance == "weights")
