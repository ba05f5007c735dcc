"""Whether probabilities mean what they say, and the temperature that makes them.

Source:
    C. Guo, G. Pleiss, Y. Sun, K. Weinberger, On calibration of modern neural networks, arXiv:1706.04599:
    expected calibration error in 15 equal bins, reliability diagrams, temperature scaling.
    K. Nguyen, B. O'Connor, Posterior calibration and exploratory analysis for natural language processing
    models, arXiv:1508.05154: adaptive bins, each with the same number of images.
    G. Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78 (1950).
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError
from medimg.runtime.optional import require
from medimg.runtime.statistics.bootstrap import Estimate, Resamples, Values, Weights
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.scores import share
from medimg.train.tasks import train_task

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Where a temperature is looked for; a minimum at an end is none."""
SMALLEST = float(np.finfo(np.float32).tiny)
"""A probability of 0 in float32 counts as this."""


@dataclass(frozen=True)
class Bin:
    """The decisions of about one confidence."""

    low: float
    high: float
    images: int
    """With several labels an image: decisions."""
    confidence: float
    """Their mean; NaN in an empty bin."""
    accuracy: Estimate
    """Share of them that are right."""


@dataclass(frozen=True)
class Reliability:
    """How far probabilities are from frequencies.

    The confidence of a decision is the probability of the decided class; with several labels an image, each
    is a decision of its own. Noise makes a calibration error larger, and resampling adds as much again: its
    interval reaches as far below the value as the draws lie above.
    """

    ece: Estimate
    """Expected calibration error: mean distance of confidence and accuracy over equally wide bins."""
    adaptive_ece: Estimate
    """The same over bins with equally many decisions."""
    brier: Estimate
    """Mean squared distance of probabilities and truth: 0 to 1, or 0 to 2 with three classes or more."""
    nll: Estimate
    """Mean negative logarithm of the true class's probability."""
    bins: tuple[Bin, ...]


def measure_reliability(answers: Answers, resamples: Resamples) -> Reliability:
    """Compare probabilities with what came true.

    Args:
        answers: what a model gave.
        resamples: the draws that intervals come from.
    """
    confidence, right = _decisions(answers)
    equal = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    ranks = confidence.ravel().argsort(kind="stable").argsort(kind="stable").reshape(confidence.shape)
    sums, adaptive = (_bin_sums(confidence, right, bins) for bins in (equal, ranks * BINS // confidence.size))
    losses = np.stack([_squared_distances(answers), _nll(answers)], axis=1)
    means = resamples.estimate(lambda weights: share(weights @ losses, weights.sum(axis=1, keepdims=True)))
    return Reliability(
        ece=_downwards_too(resamples.estimate(partial(_ece, sums=sums))[0]),
        adaptive_ece=_downwards_too(resamples.estimate(partial(_ece, sums=adaptive))[0]),
        brier=means[0],
        nll=means[1],
        bins=_bins(sums, resamples),
    )


def fit_temperature(answers: Answers) -> float:
    """Find the temperature with the least negative log-likelihood.

    Args:
        answers: of a model at temperature 1, on images that it was not trained on.

    Raises:
        DataError: the images cannot tell, as where every one is right: the sharper, the likelier.
    """
    minimize_scalar = require("scipy.optimize", "train").minimize_scalar
    bounds = tuple(map(math.log, TEMPERATURES))
    found = minimize_scalar(
        lambda log_temperature: _nll(answers, math.exp(log_temperature)).mean(),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = math.exp(float(found.x))
    if min(abs(found.x - bound) for bound in bounds) < 1e-3:
        raise DataError(
            f"these {len(answers.shown)} images cannot tell a temperature (best at {temperature:.2g}, the "
            "end of the range): give more images, with wrong answers among them, or --no-temperature"
        )
    return temperature


def _decisions(answers: Answers) -> tuple[Values, NDArray[np.bool_]]:
    """Give each decision's confidence and whether it is right, `(images, decisions)`."""
    probabilities = answers.probabilities.astype(np.float64)
    right = answers.shown == answers.decided
    return train_task(answers.task).decisions(probabilities, right)


def _bin_sums(confidence: Values, right: NDArray[np.bool_], bins: NDArray[np.int64]) -> Values:
    """Add up an image's decisions by bin: how many, their confidence, how many right; `(3, images, BINS)`."""
    inside = bins[..., None] == np.arange(BINS)
    return np.stack(
        [(inside * value[..., None]).sum(axis=1) for value in (np.ones_like(confidence), confidence, right)]
    )


def _ece(weights: Weights, sums: Values) -> Values:
    decisions, confidence, right = weights @ sums
    return share(np.abs(confidence - right).sum(axis=1), decisions.sum(axis=1))[:, None]


def _bins(sums: Values, resamples: Resamples) -> tuple[Bin, ...]:
    def right_share(weights: Weights) -> Values:
        decisions, _, right = weights @ sums
        return share(right, decisions)

    accuracy = resamples.estimate(right_share)
    decisions, confidence, _ = sums.sum(axis=1)
    mean = share(confidence, decisions)
    return tuple(
        Bin(place / BINS, (place + 1) / BINS, int(decisions[place]), float(mean[place]), accuracy[place])
        for place in range(BINS)
    )


def _downwards_too(found: Estimate) -> Estimate:
    return replace(found, low=max(0.0, min(found.low, 2 * found.value - found.high)))


def _squared_distances(answers: Answers) -> Values:
    """Give each image's part of the Brier score."""
    squares = (answers.probabilities.astype(np.float64) - answers.shown) ** 2
    return train_task(answers.task).squared_distances(squares)


def _nll(answers: Answers, temperature: float = 1.0) -> Values:
    """Give each image's negative log-likelihood, with its logits divided by a temperature."""
    probabilities = answers.probabilities.astype(np.float64)
    return train_task(answers.task).log_losses(probabilities, answers.shown, temperature, SMALLEST)
