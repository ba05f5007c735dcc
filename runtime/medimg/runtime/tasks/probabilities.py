"""What probabilities, `(images, classes)`, have in common."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ModelError, NoNumberError
from medimg.runtime.statistics.metrics import Probabilities

if TYPE_CHECKING:
    from medimg.runtime.model.spec import ModelSpec

SUM_TOLERANCE, RANGE_TOLERANCE = 1e-3, 1e-5
NO_NUMBER = "the model gives no number for it (NaN, as after a division by zero)"


def answered(probabilities: Probabilities) -> NDArray[np.bool_]:
    """Tell for which images, `(images,)`, a model gave numbers, of `(images, classes)`."""
    return np.asarray(np.isfinite(probabilities).all(axis=1))


def require_numbers(probabilities: Probabilities, names: Iterable[str]) -> None:
    """Refuse answers, `(images, classes)`, that are no numbers.

    Args:
        probabilities: of all classes.
        names: what the images are called.

    Raises:
        NoNumberError: names the first image without a number.
    """
    for name, is_number in zip(names, answered(probabilities), strict=True):
        if not is_number:
            raise NoNumberError(f"{name}: {NO_NUMBER}")


def require_columns(probabilities: Probabilities, spec: "ModelSpec", name: str) -> Probabilities:
    """Count the columns that a model gives against the classes that its spec names.

    Raises:
        ModelError: they differ, so that nobody knows which column is which class.
    """
    if probabilities.shape[1:] != (spec.classes,):
        raise ModelError(
            f"{name}: answers with the shape {probabilities.shape[1:]} an image, and its spec names "
            f"{spec.classes} classes: export it again"
        )
    return probabilities


def lie_within(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which rows, `(images, classes)`, hold values from 0 to 1 alone; gives `(images,)`."""
    within = (values >= -RANGE_TOLERANCE) & (values <= 1 + RANGE_TOLERANCE)
    return np.asarray(within.all(axis=1))


def sum_to_one(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which rows, `(images, classes)`, hold values from 0 to 1 that sum to 1; gives `(images,)`."""
    return np.asarray(lie_within(values) & (np.abs(values.sum(axis=1) - 1) < SUM_TOLERANCE))
