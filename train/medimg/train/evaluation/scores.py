"""How good answers are: rates of a decision, areas under curves, confusion; each with its interval.

One class an image and several are measured alike: `shown` says which classes an image truly shows, `decided`
which were decided for it, both `(images, classes)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.statistics.bootstrap import Estimate, Resamples, Values, Weights
from medimg.runtime.tasks import task_named
from medimg.train.evaluation.answers import Answers
from medimg.train.tasks import train_task

Flags: TypeAlias = NDArray[np.bool_]


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
    """Share of images whose class was found; with several labels, of which all were judged rightly."""
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
    positive = (positive or answers.labels[-1]) if _is_binary(answers) else None
    column = answers.labels.index(positive) if positive else None
    rates = resamples.estimate(lambda weights: class_rates(weights, shown, decided))
    overall = resamples.estimate(lambda weights: _overall(weights, answers))
    areas = resamples.estimate(partial(_areas, rankings=_rankings(answers), positive=column))
    per_class = tuple(
        ClassScores(
            label,
            int(shown[:, place].sum()),
            recall=rates[place, 0],
            specificity=rates[place, 1],
            precision=rates[place, 2],
            f1=rates[place, 3],
            roc_auc=areas[place, 0],
            pr_auc=areas[place, 1],
        )
        for place, label in enumerate(answers.labels)
    )
    return Scores(
        len(shown),
        overall[0],
        overall[1],
        areas[-1, 0],
        areas[-1, 1],
        positive,
        per_class,
        _confusion(answers, resamples),
    )


def area_difference(first: Answers, second: Answers, resamples: Resamples) -> Estimate:
    """Measure by how much the first answers' area under the ROC curve is the larger, draw by draw.

    Args:
        first: of two classes the last is the positive one; else areas are means over the classes.
        second: answers on the same images.
        resamples: the draws that the interval comes from.
    """
    positive = len(first.labels) - 1 if _is_binary(first) else None
    rankings = [_rankings(answers) for answers in (first, second)]

    def difference(weights: Weights) -> Values:
        one, other = (_areas(weights, ranked, positive)[:, -1, :1] for ranked in rankings)
        return one - other

    return resamples.estimate(difference)[0]


def _is_binary(answers: Answers) -> bool:
    return task_named(answers.task).exclusive and len(answers.labels) == 2


def _rankings(answers: Answers) -> list["Ranking"]:
    return [Ranking.of(*columns) for columns in zip(answers.shown.T, answers.probabilities.T, strict=True)]


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


@dataclass(frozen=True)
class Ranking:
    """Images by one class's score, sorted once for all draws."""

    order: NDArray[np.int64]
    """`(images,)`, lowest score first."""
    starts: NDArray[np.int64]
    """`(scores,)`, where in the order each different score begins."""
    positive: Flags
    """`(images,)` in the order: whether each shows the class."""

    @classmethod
    def of(cls, shown: Flags, scores: NDArray[np.floating]) -> "Ranking":
        """Sort images, `(images,)` flags and scores."""
        order = np.argsort(scores, kind="stable")
        starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
        return cls(order, starts, shown[order])

    def areas(self, weights: Weights) -> Values:
        """Compute the areas under the ROC curve and under precision over recall, `(draws, 2)`.

        The first is how often a positive image outscores a negative one, equal scores counting half; the
        second is the average precision of scikit-learn.
        """
        ranked = weights[:, self.order]
        positives = np.add.reduceat(ranked * self.positive, self.starts, axis=1)
        both = np.add.reduceat(ranked, self.starts, axis=1)
        below = (both - positives).cumsum(axis=1)
        all_positives, all_negatives = positives.sum(axis=1), below[:, -1]
        wins = (positives * (below - (both - positives) / 2)).sum(axis=1)
        found = positives[:, ::-1].cumsum(axis=1)
        precision = found / np.maximum(both[:, ::-1].cumsum(axis=1), 1)
        precise = (positives[:, ::-1] * precision).sum(axis=1)
        return np.stack([share(wins, all_positives * all_negatives), share(precise, all_positives)], axis=1)


def share(part: Values, whole: Values) -> Values:
    """Divide; NaN where there is nothing to take a share of."""
    part, whole = np.broadcast_arrays(part, whole)
    shares: Values = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return shares


def _areas(weights: Weights, rankings: Sequence[Ranking], positive: int | None) -> Values:
    """Compute the areas of each class, and last what stands for all, `(draws, classes + 1, 2)`."""
    each = np.stack([ranking.areas(weights) for ranking in rankings], axis=1)
    chosen = _mean(each) if positive is None else each[:, positive]
    return np.concatenate([each, chosen[:, None]], axis=1)


def _overall(weights: Weights, answers: Answers) -> Values:
    """Compute accuracy and balanced accuracy, `(draws, 2)`."""
    right = answers.right
    rates = class_rates(weights, answers.shown, answers.decided)
    balanced = _mean(train_task(answers.task).recalls(rates))
    return np.stack([share(weights @ right, weights.sum(axis=1)), balanced], axis=1)


def _confusion(answers: Answers, resamples: Resamples) -> tuple[tuple[Estimate, ...], ...]:
    if not task_named(answers.task).exclusive:
        return ()
    classes = len(answers.labels)
    cells = (answers.shown[:, :, None] & answers.decided[:, None, :]).reshape(len(answers.shown), -1)

    def shares(weights: Weights) -> Values:
        counts = (weights @ cells).reshape(len(weights), classes, classes)
        return share(counts, counts.sum(axis=2, keepdims=True))

    found = resamples.estimate(shares)
    return tuple(tuple(found[row, column] for column in range(classes)) for row in range(classes))


def _mean(values: Values) -> Values:
    """Average over the classes that are defined, `(draws, classes, …)` to `(draws, …)`."""
    defined = np.isfinite(values)
    return share(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1))
