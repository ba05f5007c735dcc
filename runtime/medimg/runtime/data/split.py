"""Dividing a labelled data set in two: stratified by class, whole patients together."""

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data.dataset import DataSet
from medimg.runtime.errors import DataError

Group = list[int]
"""Indices of the images of one patient."""


def stratified_split(dataset: DataSet, fraction: float = 0.3, seed: int = 0) -> tuple[DataSet, DataSet]:
    """Divide a labelled data set in two, each class in the same proportion.

    Images of one patient stay together: patients are drawn, not images, among those whose images show the
    same classes, so that the shares are as near to `fraction` as whole patients allow. An image without a
    patient counts as a patient of its own. Both parts keep the order of the data set. A multi-label set is
    divided class by class, the rarest first.

    Args:
        dataset: labelled images.
        fraction: the second part's share of each class, between 0 and 1.
        seed: the same seed gives the same parts.

    Returns:
        The part with `1 - fraction` of the images, and the part with `fraction`.

    Raises:
        DataError: a class has too few images or patients to be in both parts.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the share {fraction} of a split is not between 0 and 1")
    targets = dataset.targets
    random = np.random.default_rng(seed)
    draw = _draw_by_class if dataset.task == "multilabel" else _draw_by_stratum
    second = np.zeros(len(dataset), bool)
    second[draw(_patients(dataset), targets, fraction, random)] = True
    _require_every_class(dataset, targets, second)
    pairs = list(zip(dataset.samples, second, strict=True))
    first = [sample for sample, drawn in pairs if not drawn]
    return dataset.with_samples(first), dataset.with_samples(sample for sample, drawn in pairs if drawn)


def _patients(dataset: DataSet) -> list[Group]:
    patients: dict[tuple[str, str | int], Group] = {}
    for index, sample in enumerate(dataset.samples):
        key = ("image", index) if sample.patient is None else ("patient", sample.patient)
        patients.setdefault(key, []).append(index)
    return list(patients.values())


def _draw_by_stratum(
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


def _draw_by_class(
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


def _require_every_class(dataset: DataSet, targets: NDArray[np.float32], second: NDArray[np.bool_]) -> None:
    for label, shown in zip(dataset.labels, targets.T.astype(bool), strict=True):
        chosen = second[shown]
        if chosen.all() or not chosen.any():
            raise DataError(
                f"class {label!r} has {len(chosen)} image(s), too few (or all of one patient) to be in both "
                "parts of a split: add images, or put them into train/ and val/ yourself"
            )
