"""Drawing whole patients for one side of a split, so that each class has its share."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Group: TypeAlias = list[int]
"""Indices of the images of one patient."""


def draw_by_stratum(
    patients: list[Group], targets: NDArray[np.float32], fraction: float, random: "np.random.Generator"
) -> Group:
    """Draw patients from among those whose images show the same classes."""
    strata: dict[tuple[int, ...], list[Group]] = {}
    for indices in patients:
        classes = tuple(np.flatnonzero(targets[indices].any(axis=0)).tolist())
        strata.setdefault(classes, []).append(indices)
    drawn: Group = []
    for classes in sorted(strata):
        groups = strata[classes]
        drawn += _draw([groups[index] for index in random.permutation(len(groups))], fraction)
    return drawn


def _draw(groups: list[Group], fraction: float) -> Group:
    """Take groups in order while that brings the count nearer to the target; of several, some but not all."""
    target = fraction * sum(map(len, groups))
    taken: list[Group] = []
    for group in groups:
        if sum(map(len, taken)) + len(group) / 2 <= target:
            taken.append(group)
    if not taken and len(groups) > 1:
        taken = [min(groups, key=len)]
    elif len(taken) == len(groups):
        taken = taken[:-1]
    return [index for group in taken for index in group]


def draw_by_class(
    patients: list[Group], targets: NDArray[np.float32], fraction: float, random: "np.random.Generator"
) -> Group:
    """Share out patients class by class, the rarest first, each to the part that lacks the most of it.

    Source:
        K. Sechidis, G. Tsoumakas and I. Vlahavas, On the stratification of multi-label data, ECML PKDD 2011,
        Lecture Notes in Computer Science 6913, 145-158, algorithm 1; here with patients in place of images.
    """
    # The last column counts images, so that those without any class are shared out too.
    counts = np.array([[*targets[indices].sum(axis=0), len(indices)] for indices in patients])
    lacking = np.outer((1 - fraction, fraction), counts.sum(axis=0))
    waiting = [int(index) for index in random.permutation(len(patients))]
    drawn: Group = []
    while waiting:
        left = counts[waiting].sum(axis=0)
        rarest = int(np.where(left > 0, left, np.inf).argmin())
        for patient in [index for index in waiting if counts[index, rarest]]:
            part = max((0, 1), key=lambda side: (lacking[side, rarest], lacking[side, -1]))
            lacking[part] -= counts[patient]
            drawn += patients[patient] if part else []
        waiting = [index for index in waiting if not counts[index, rarest]]
    return drawn
