"""Dividing a labelled data set in two: stratified by class, whole patients together."""

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data.dataset import DataSet
from medimg.runtime.errors import DataError
from medimg.runtime.statistics.draws import Group
from medimg.runtime.tasks import task_named


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
    second = np.zeros(len(dataset), bool)
    second[task_named(dataset.task).draw(_patients(dataset), targets, fraction, random)] = True
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


def _require_every_class(dataset: DataSet, targets: NDArray[np.float32], second: NDArray[np.bool_]) -> None:
    for label, shown in zip(dataset.labels, targets.T.astype(bool), strict=True):
        chosen = second[shown]
        if chosen.all() or not chosen.any():
            raise DataError(
                f"class {label!r} has {len(chosen)} image(s), too few (or all of one patient) to be in both "
                "parts of a split: add images, or put them into train/ and val/ yourself"
            )
