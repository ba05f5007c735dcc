"""Batches for Keras out of cached arrays. Imports Keras: load it after `start_keras`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras.utils import PyDataset
from numpy.typing import NDArray

from medimg.train.parts import Part

Transform = Callable[[NDArray[Any]], NDArray[np.float32]]


class Batches(PyDataset):  # type: ignore[misc]  # Keras ships no types
    """Inputs, true classes and weights, batch by batch; with a seed in a new order every epoch."""

    def __init__(self, part: Part, size: int, transform: Transform, seed: int | None = None) -> None:
        super().__init__()
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

    def on_epoch_end(self) -> None:
        """Shuffle, where there is a seed."""
        if self._random is not None:
            self._order = self._random.permutation(len(self._part))


def as_float(values: NDArray[Any]) -> NDArray[np.float32]:
    """Widen cached activations."""
    return values.astype(np.float32)
