"""The choice among INT8 methods."""

import numpy as np
from numpy.typing import NDArray

from medimg.export.ranges import score


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def test_images_of_which_the_network_is_sure_tell_methods_apart() -> None:
    sure = np.array([[20.0, 0.0, -5.0], [0.0, 25.0, 3.0], [1.0, 0.0, 0.5]])
    reference = softmax(sure)
    coarse = softmax(sure * [[1.5], [1.5], [1.0]])
    fine = softmax(sure + np.array([[0.0, 0.1, 0.0], [0.0, 0.1, 0.0], [0.1, 0.0, 0.0]]))
    assert np.abs(coarse - reference).mean() < np.abs(fine - reference).mean()
    assert score("fine", fine, reference).log_rms < 0.1 < score("coarse", coarse, reference).log_rms


def test_a_probability_of_zero_leaves_the_difference_finite() -> None:
    zero = np.array([[1.0, 0.0]], np.float32)
    assert score("same", zero, zero).log_rms == 0
    assert np.isfinite(score("other", np.array([[0.5, 0.5]], np.float32), zero).log_rms)
