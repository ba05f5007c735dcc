"""From a Keras model's outputs to the probabilities that its artefact gives."""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ModelError, NoNumberError
from medimg.runtime.model.spec import Head, ModelSpec

Probabilities: TypeAlias = NDArray[np.float32]
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


def require_columns(probabilities: Probabilities, spec: ModelSpec, name: str) -> Probabilities:
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


def as_probabilities(outputs: NDArray[np.float32], head: Head) -> Probabilities:
    """Turn the last layer's outputs, `(batch, units)`, into `(batch, classes)` as an artefact gives them."""
    if head == "logits" and outputs.shape[1] == 1:
        outputs, head = np.asarray(1 / (1 + np.exp(-outputs)), np.float32), "sigmoid"
    if head == "sigmoid":
        return np.concatenate([1 - outputs, outputs], axis=1)
    if head == "logits":
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)
    return outputs


def with_temperature(probabilities: Probabilities, spec: ModelSpec) -> Probabilities:
    """Divide the logits behind probabilities by the spec's temperature."""
    if spec.temperature == 1:
        return probabilities
    raised = probabilities.astype(np.float64) ** (1 / spec.temperature)
    if spec.task == "multilabel":
        others = (1 - probabilities.astype(np.float64)) ** (1 / spec.temperature)
        return np.asarray(raised / (raised + others), np.float32)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)
