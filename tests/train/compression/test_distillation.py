"""What a narrower network is trained to answer."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr, softmax

from medimg.train.compression.distillation import (
    LABELS_COUNT,
    TEMPERATURE,
    make_loss,
    make_metric,
    targets,
)

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
