"""Thresholds on one class's probability: chosen on validation images, measured on others."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.model.spec import OperatingPoint
from medimg.runtime.statistics.bootstrap import Estimate, Resamples
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.scores import class_rates

_CHOSEN_FOR = re.compile(r"sensitivity ([0-9.]+) on ")


@dataclass(frozen=True)
class PointScores:
    """What deciding for a class from a threshold on achieves on some images."""

    point: OperatingPoint
    images: int
    """Images that truly show the class."""
    sensitivity: Estimate
    specificity: Estimate
    precision: Estimate


def choose_point(answers: Answers, label: str, sensitivity: float, chosen_on: str) -> OperatingPoint:
    """Choose the highest threshold at which at least the wanted share of a class's images is found.

    The sensitivity is never below what is wanted, on these images. The threshold stands half-way to the next
    lower probability, so that rounding in another precision changes no decision that need not change.

    Args:
        answers: on validation images.
        label: the class.
        sensitivity: what is wanted, above 0 and at most 1.
        chosen_on: the images, in words.

    Raises:
        UsageError: there is no such class, or no such sensitivity.
        DataError: the images do not show the class, or show nothing else.
    """
    require_wanted(answers.labels, label, sensitivity)
    column = answers.labels.index(label)
    shown, scores = answers.shown[:, column], answers.probabilities[:, column].astype(np.float64)
    if not shown.any() or shown.all():
        which = "no image shows" if not shown.any() else "every image shows"
        raise DataError(f"no threshold can be chosen: {which} {label!r}")
    positives = np.sort(scores[shown])[::-1]
    # 1e-9: 0.95 of 20 images is 19 of them, whatever the product rounds to.
    needed = max(1, math.ceil(sensitivity * len(positives) - 1e-9))
    last = positives[needed - 1]
    below = scores[scores < last]
    threshold = float((last + (below.max() if len(below) else 0)) / 2)
    return OperatingPoint(label, threshold, f"sensitivity {sensitivity:g} on {chosen_on}")


def wanted_sensitivities(points: Sequence[OperatingPoint]) -> dict[str, float]:
    """Read of points that `choose_point` made which sensitivity each class was to have."""
    found = {point.label: _CHOSEN_FOR.match(point.chosen_for) for point in points}
    return {label: float(match[1]) for label, match in found.items() if match}


def require_wanted(labels: tuple[str, ...], label: str, sensitivity: float) -> None:
    """Check that a sensitivity can be asked for.

    Raises:
        UsageError: there is no such class, or no such sensitivity.
    """
    if label not in labels:
        raise UsageError(f"class {label!r} is not one of the model's: {', '.join(labels)}")
    if not 0 < sensitivity <= 1:
        raise UsageError(f"sensitivity {sensitivity:g} of {label!r} is not above 0 and at most 1")


def measure_point(answers: Answers, point: OperatingPoint, resamples: Resamples) -> PointScores:
    """Measure a threshold.

    Args:
        answers: what a model gave; its labels hold the point's.
        point: the threshold.
        resamples: the draws that intervals come from.

    Raises:
        DataError: the model has no such class.
    """
    if point.label not in answers.labels:
        raise DataError(f"the operating point's class {point.label!r} is not one of the model's")
    column = answers.labels.index(point.label)
    shown = answers.shown[:, [column]]
    decided = answers.probabilities[:, [column]] >= point.threshold
    rates = resamples.estimate(lambda weights: class_rates(weights, shown, decided))
    return PointScores(point, int(shown.sum()), *(rates[0, rate] for rate in range(3)))
