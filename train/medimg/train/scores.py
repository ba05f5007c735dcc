"""How good answers are: rates of a decision, areas under curves, confusion; each with its interval.

One class an image and several are measured alike: `shown` says which classes an image truly shows, `decided`
which were decided for it, both `(images, classes)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.train.answers import Answers
from medimg.train.bootstrap import Estimate, Resamples, Values, Weights

Flags: TypeAlias = NDArray[np.bool_]
Area: TypeAlias = Callable[[Weights, Flags, NDArray[np.floating]], Values]
"""From weights, `(images,)` flags and `(images,)` scores to `(draws,)`."""


@dataclass(frozen=True)
class ClassScores:
    """How one class fared against all others."""

    label: str
    images: int
    """Images that truly show it."""
    recall: Estimate
    """Share of those that were found (sensitivity)."""
    specificity: Estimate
    """Share of the images that do not show it, and for which it was not decided."""
    precision: Estimate
    """Share of its decisions that are right."""
    f1: Estimate
    roc_auc: Estimate
    pr_auc: Estimate
    """Average precision: the area under precision over recall, by steps, not interpolated."""


@dataclass(frozen=True)
class Scores:
    """A classifier's figures on one labelled set."""

    images: int
    accuracy: Estimate
    """Share of images whose class was found; with several labels an image, of decisions that are right."""
    balanced_accuracy: Estimate
    """Mean recall of the classes; with several labels, mean of recall and specificity over the classes."""
    roc_auc: Estimate
    """Of the positive class where there are two, else the mean over the classes, each against the others."""
    pr_auc: Estimate
    """Likewise."""
    positive: str | None
    """The positive class of two; None where the areas are means over the classes."""
    per_class: tuple[ClassScores, ...]
    confusion: tuple[tuple[Estimate, ...], ...]
    """`confusion[true][predicted]` of the true class's images; empty with several labels an image."""


def score(answers: Answers, resamples: Resamples, positive: str | None = None) -> Scores:
    """Measure answers against the truth.

    Args:
        answers: what a model gave.
        resamples: the draws that intervals come from.
        positive: the positive class of two; by default the last.
    """
    shown, decided = answers.shown, answers.decided
    binary = answers.task == "multiclass" and len(answers.labels) == 2
    positive = (positive or answers.labels[-1]) if binary else None
    column = answers.labels.index(positive) if positive else None
    rates = resamples.estimate(lambda weights: class_rates(weights, shown, decided))
    overall = resamples.estimate(lambda weights: _overall(weights, answers))
    roc, pr = (
        resamples.estimate(partial(_areas, area=area, answers=answers, positive=column))
        for area in (roc_auc, average_precision)
    )
    per_class = tuple(
        ClassScores(
            label,
            int(shown[:, place].sum()),
            *(rates[place, rate] for rate in range(4)),
            roc_auc=roc[place],
            pr_auc=pr[place],
        )
        for place, label in enumerate(answers.labels)
    )
    return Scores(
        len(shown),
        overall[0],
        overall[1],
        roc[-1],
        pr[-1],
        positive,
        per_class,
        _confusion(answers, resamples),
    )


def class_rates(weights: Weights, shown: Flags, decided: Flags) -> Values:
    """Compute recall, specificity, precision and F1 of each class, `(draws, classes, 4)`."""
    found, missed = weights @ (shown & decided), weights @ (shown & ~decided)
    false, left = weights @ (~shown & decided), weights @ (~shown & ~decided)
    return np.stack(
        [
            share(found, found + missed),
            share(left, left + false),
            share(found, found + false),
            share(2 * found, 2 * found + false + missed),
        ],
        axis=-1,
    )


def roc_auc(weights: Weights, shown: Flags, scores: NDArray[np.floating]) -> Values:
    """Area under the ROC curve of one class, `(draws,)`: how often a positive image outscores a negative one.

    Args:
        weights: `(draws, images)`.
        shown: `(images,)` whether each is positive.
        scores: `(images,)`; equal ones count half.
    """
    positives, negatives = _by_score(weights, shown, scores)
    below = negatives.cumsum(axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    return share(wins, positives.sum(axis=1) * negatives.sum(axis=1))


def average_precision(weights: Weights, shown: Flags, scores: NDArray[np.floating]) -> Values:
    """Area under precision over recall of one class, `(draws,)`, as scikit-learn's average precision."""
    positives, negatives = (side[:, ::-1] for side in _by_score(weights, shown, scores))
    found = positives.cumsum(axis=1)
    precision = np.nan_to_num(share(found, found + negatives.cumsum(axis=1)))
    return share((positives * precision).sum(axis=1), positives.sum(axis=1))


def share(part: Values, whole: Values) -> Values:
    """Divide; NaN where there is nothing to take a share of."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _by_score(weights: Weights, shown: Flags, scores: NDArray[np.floating]) -> tuple[Values, Values]:
    """Add up the weights of positive and negative images at each score, lowest first."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    sorted_weights, positive = weights[:, order], shown[order]
    positives = np.add.reduceat(sorted_weights * positive, starts, axis=1)
    return positives, np.add.reduceat(sorted_weights * ~positive, starts, axis=1)


def _areas(weights: Weights, area: Area, answers: Answers, positive: int | None) -> Values:
    """Compute an area of each class, and last the one that stands for all, `(draws, classes + 1)`."""
    each = np.stack(
        [
            area(weights, answers.shown[:, place], answers.probabilities[:, place])
            for place in range(len(answers.labels))
        ],
        axis=1,
    )
    chosen = _mean(each) if positive is None else each[:, positive]
    return np.concatenate([each, chosen[:, None]], axis=1)


def _overall(weights: Weights, answers: Answers) -> Values:
    """Compute accuracy and balanced accuracy, `(draws, 2)`."""
    right = answers.shown == answers.decided
    several = answers.task == "multilabel"
    share_right = right.mean(axis=1) if several else right.all(axis=1)
    rates = class_rates(weights, answers.shown, answers.decided)
    balanced = _mean(rates[..., :2].mean(axis=-1) if several else rates[..., 0])
    return np.stack([share(weights @ share_right, weights.sum(axis=1)), balanced], axis=1)


def _confusion(answers: Answers, resamples: Resamples) -> tuple[tuple[Estimate, ...], ...]:
    if answers.task == "multilabel":
        return ()
    classes = len(answers.labels)
    cells = (answers.shown[:, :, None] & answers.decided[:, None, :]).reshape(len(answers.shown), -1)

    def shares(weights: Weights) -> Values:
        counts = (weights @ cells).reshape(len(weights), classes, classes)
        return share(counts, counts.sum(axis=2, keepdims=True))

    found = resamples.estimate(shares)
    return tuple(tuple(found[row, column] for column in range(classes)) for row in range(classes))


def _mean(values: Values) -> Values:
    """Average over the classes that are defined, `(draws, classes)` to `(draws,)`."""
    defined = np.isfinite(values)
    return share(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1))
