"""Batches for Keras out of cached arrays. Imports Keras: load it after `start_keras`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras.utils import PyDataset
from numpy.typing import NDArray

from medimg.train.balance import balanced_order
from medimg.train.parts import Part

Transform = Callable[[NDArray[Any]], NDArray[np.float32]]


class Batches(PyDataset):  # type: ignore[misc]  # Keras ships no types
    """Inputs, true classes and weights, batch by batch; with a seed in a new order every epoch."""

    def __init__(
        self, part: Part, size: int, transform: Transform, seed: int | None = None, *, balanced: bool = False
    ) -> None:
        """Take the images.

        Args:
            part: the images.
            size: images a batch; the last may have fewer.
            transform: applied to the inputs of every batch.
            seed: of the order; None keeps that of the part.
            balanced: whether every epoch draws the images anew, from all classes alike.
        """
        super().__init__()
        self._balanced = balanced
        self._part, self._size, self._transform = part, size, transform
        self._random = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(len(part))
        self.on_epoch_end()

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._part)

    def __len__(self) -> int:
        return math.ceil(len(self._part) / self._size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float32]]:
        rows = self._order[index * self._size : (index + 1) * self._size]
        if self._random is not None:
            rows = np.sort(rows)
        part = self._part
        return self._transform(part.inputs[rows]), part.truth[rows], part.weights[rows]

    def skip(self, epochs: int) -> None:
        """Go on as if so many epochs had passed."""
        for _ in range(epochs):
            self.on_epoch_end()

    def on_epoch_end(self) -> None:
        """Shuffle or draw anew, where there is a seed."""
        if self._random is None:
            return
        if self._balanced:
            self._order = balanced_order(self._part.truth, self._random)
        else:
            self._order = self._random.permutation(len(self._part))


def as_float(values: NDArray[Any]) -> NDArray[np.float32]:
    """Widen cached activations."""
    return values.astype(np.float32)
