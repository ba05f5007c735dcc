"""What is done about classes of different sizes."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

CountsOfClasses: TypeAlias = Literal["weights", "none"]
"""Whether every class counts alike in a loss, or every image."""
Balance: TypeAlias = Literal["weights", "sampling", "none"]


def class_weights(truth: NDArray[np.int64], classes: int, balance: Balance) -> NDArray[np.float32]:
    """Decide what an image of each class counts in the loss.

    Args:
        truth: `(images,)` classes of the training part.
        classes: number of labels.
        balance: with `weights` every class counts alike, else every image.

    Returns:
        `(classes,)`, with a mean of 1 over the images.
    """
    if balance != "weights":
        return np.ones(classes, np.float32)
    images = np.bincount(truth, minlength=classes)
    return (len(truth) / (classes * images)).astype(np.float32)


def image_weights(
    truth: NDArray[np.int64], train_truth: NDArray[np.int64], classes: int, balance: Balance
) -> NDArray[np.float32]:
    """Let every image count as its class does in the training part; several classes have no one count.

    Args:
        truth: `(images,)` classes, or `(images, labels)` 0 and 1.
        train_truth: the same of the training part.
        classes: number of labels.
        balance: as in `class_weights`.

    Returns:
        `(images,)`.
    """
    if truth.ndim > 1:
        return np.ones(len(truth), np.float32)
    return class_weights(train_truth, classes, balance)[truth]


def balanced_order(truth: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw the images of one epoch, as many as there are, from all classes alike.

    Images of a small class come several times, each as often as any other of its class or once more; of a
    large class each comes once at most.

    Args:
        truth: `(images,)` their classes.
        random: where chance comes from.

    Returns:
        `(images,)` indices in random order.
    """
    classes = random.permutation(np.unique(truth))
    shares = np.diff(np.linspace(0, len(truth), len(classes) + 1).astype(np.int64))
    drawn = [
        _draw(np.flatnonzero(truth == label), share, random)
        for label, share in zip(classes, shares, strict=True)
    ]
    return random.permutation(np.concatenate(drawn))


def _draw(images: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    rounds = -(-count // len(images))
    return np.concatenate([random.permutation(images) for _ in range(rounds)])[:count]
