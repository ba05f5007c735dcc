"""The same figures for each value of a column: a mean can hide a group that a model fails."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medimg.runtime.data import Sample
from medimg.runtime.errors import DataError
from medimg.runtime.model.spec import OperatingPoint
from medimg.runtime.statistics.bootstrap import Resamples, Resampling
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.operating_points import PointScores, measure_point
from medimg.train.evaluation.scores import Scores, score

MOST_GROUPS = 50
SMALL_GROUP = 30
"""A group of fewer images is small, and so is one in which a class has fewer than `SMALL_CLASS`."""
SMALL_CLASS = 10
NOT_SAID = "not said"


@dataclass(frozen=True)
class Subgroup:
    """The figures of the images that share a value."""

    column: str
    value: str
    """`not said` where the table leaves it empty."""
    images: int
    small: bool
    """Whether it has too few images, or too few of a class, for its figures to tell much."""
    resampling: Resampling
    scores: Scores
    operating_points: tuple[PointScores, ...]


def measure_subgroups(
    answers: Answers, column: str, points: Sequence[OperatingPoint], positive: str | None = None
) -> tuple[Subgroup, ...]:
    """Measure each group of a column, sorted by its value.

    Args:
        answers: what a model gave.
        column: of the table that the images came from.
        points: the model's operating points.
        positive: the positive class of two; by default the last.

    Raises:
        DataError: see `require_groups`.
    """
    values = require_groups(answers.samples, column)
    name, groups = _key(column), sorted(set(values))
    places = {group: np.flatnonzero(np.array(values) == group) for group in groups}
    return tuple(_measure(answers.chosen(places[group]), name, group, points, positive) for group in groups)


def require_groups(samples: Sequence[Sample], column: str) -> list[str]:
    """Give each image's value in a column.

    Raises:
        DataError: the data have no such column, or it has more than 50 values.
    """
    name = _key(column)
    if not any(name in sample.attributes for sample in samples):
        known = sorted({key for sample in samples for key in sample.attributes})
        has = f"they have {', '.join(known)}" if known else "only a CSV with further columns has any"
        raise DataError(f"the data have no column {column!r} to group by; {has}")
    values = [sample.attributes.get(name) or NOT_SAID for sample in samples]
    if (groups := len(set(values))) > MOST_GROUPS:
        raise DataError(
            f"column {column!r} has {groups} values: make a column of at most {MOST_GROUPS} groups"
        )
    return values


def _key(column: str) -> str:
    """Give the name of a column as the reader of tables keeps it."""
    return column.strip().lower()


def _measure(
    answers: Answers, column: str, value: str, points: Sequence[OperatingPoint], positive: str | None
) -> Subgroup:
    resamples = Resamples(answers.patients)
    images = len(answers.shown)
    small = images < SMALL_GROUP or bool((answers.shown.sum(axis=0) < SMALL_CLASS).any())
    return Subgroup(
        column,
        value,
        images,
        small,
        resamples.resampling,
        score(answers, resamples, positive),
        tuple(measure_point(answers, point, resamples) for point in points),
    )
