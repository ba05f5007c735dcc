"""Agreement, accuracy and what they are worth: the figures that every room reports."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.statistics.bootstrap import Resamples
from medimg.runtime.statistics.verdict import Verdict

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""

Labels: TypeAlias = NDArray[np.int64]
Probabilities: TypeAlias = NDArray[np.float32]
"""`(images, classes)` float32."""


@dataclass(frozen=True)
class ClassMetrics:
    """How one class fared."""

    label: str
    images: int
    """Images that truly show it."""
    recall: float
    """Share of those that were found (sensitivity); NaN without any."""
    precision: float
    """Share of its predictions that are right; NaN without any."""
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """A classifier's figures on one labelled set."""

    images: int
    accuracy: float
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """`confusion[true][predicted]` counts images; empty where an image may show several classes."""


def accuracy(truth: Labels, predicted: Labels) -> float:
    """Share of images whose predicted class is the true one."""
    return float(np.mean(truth == predicted))


def top1_agreement(first: Probabilities, second: Probabilities) -> float:
    """Share of images to which two models give the same first class; both `(images, classes)`."""
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


def confusion_matrix(truth: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """Count images: `matrix[true, predicted]`."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def evaluate(truth: Labels, predicted: Labels, labels: tuple[str, ...]) -> Evaluation:
    """Compute accuracy, and recall, precision and F1 a class.

    Args:
        truth: `(images,)` true class indices.
        predicted: `(images,)` predicted class indices.
        labels: the classes' names.
    """
    matrix = confusion_matrix(truth, predicted, len(labels))
    per_class = tuple(
        ClassMetrics(
            label,
            int(matrix[index].sum()),
            _share(matrix[index, index], matrix[index].sum()),
            _share(matrix[index, index], matrix[:, index].sum()),
            _share(2 * matrix[index, index], matrix[index].sum() + matrix[:, index].sum()),
        )
        for index, label in enumerate(labels)
    )
    rows = tuple(tuple(int(count) for count in row) for row in matrix)
    return Evaluation(len(truth), accuracy(truth, predicted), per_class, rows)


def evaluate_labels(
    shown: NDArray[np.bool_], found: NDArray[np.bool_], labels: tuple[str, ...]
) -> Evaluation:
    """Compute the same where an image may show several classes, or none; there is no confusion matrix.

    Args:
        shown: `(images, classes)` which classes an image shows.
        found: `(images, classes)` which were found in it.
        labels: the classes' names.

    Returns:
        Figures whose accuracy is the share of images of which every class was judged rightly.
    """
    both, true, said = (shown & found).sum(axis=0), shown.sum(axis=0), found.sum(axis=0)
    per_class = tuple(
        ClassMetrics(
            label,
            int(true[index]),
            _share(both[index], true[index]),
            _share(both[index], said[index]),
            _share(2 * both[index], true[index] + said[index]),
        )
        for index, label in enumerate(labels)
    )
    return Evaluation(len(shown), float(np.mean((shown == found).all(axis=1))), per_class, ())


def paired_drop_ci95(
    reference_right: NDArray[np.bool_], right: NDArray[np.bool_], patients: Sequence[str | None] = ()
) -> tuple[float, float]:
    """Bound the drop in accuracy between two models on the same images.

    The score interval for the difference of paired proportions keeps its width when the two never disagree:
    with none among 381 images its upper end is 0.01. But images of one patient are not independent: where
    there are such, the interval reaches as far as the bootstrap's over patients, too.

    Args:
        reference_right: `(images,)` whether the reference was right.
        right: `(images,)` whether the other model was.
        patients: whose image each is, None where that is not known; none at all if none is.

    Returns:
        The 95 % interval of `accuracy(reference) - accuracy(other)`.

    Source:
        T. Tango, Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design, Statistics in Medicine 17 (1998), 891-908.
    """
    low, high = _tango_ci95(reference_right, right)
    resamples = Resamples(patients)
    if resamples.resampling.units < len(patients):
        lost = reference_right.astype(np.float64) - right
        drawn = resamples.estimate(lambda weights: (weights @ lost / weights.sum(axis=1))[:, None])[0]
        low, high = min(low, drawn.low), max(high, drawn.high)
    return low, high


def _tango_ci95(reference_right: NDArray[np.bool_], right: NDArray[np.bool_]) -> tuple[float, float]:
    images = len(right)
    lost = int(np.sum(reference_right & ~right))
    gained = int(np.sum(~reference_right & right))

    def score(difference: float) -> float:
        a = 2 * images
        b = -lost - gained + (2 * images - lost + gained) * difference
        c = -gained * difference * (1 - difference)
        gained_share = (math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
        variance = images * (2 * gained_share + difference * (1 - difference))
        distance = lost - gained - images * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    estimate = (lost - gained) / images
    return _crossing(score, -1.0, estimate, Z95), _crossing(score, estimate, 1.0, -Z95)


def judge_drop(drop: float, high: float, max_drop: float) -> Verdict:
    """Judge a measured loss by its interval: `proven` small enough, `failed`, or neither.

    Args:
        drop: the loss that was measured.
        high: the upper end of its 95 % interval.
        max_drop: the largest loss that is accepted.
    """
    if high <= max_drop:
        return "proven"
    # Four of 400 images are a drop of 0.01, though their difference in floating point is a little more.
    return "failed" if drop > max_drop and not math.isclose(drop, max_drop) else "not proven"


def images_needed(max_drop: float) -> int:
    """How many images without any disagreement prove a drop of at most `max_drop` (Tango 1998)."""
    z2 = Z95**2
    return math.ceil(z2 * (1 - max_drop) / max_drop)


def _crossing(score: Callable[[float], float], low: float, high: float, target: float) -> float:
    """Find by bisection where a decreasing function takes a value."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > target else (low, middle)
    return (low + high) / 2


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else math.nan
