"""Batches for Keras out of cached arrays. Imports Keras: load it after `start_keras`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras.utils import PyDataset
from numpy.typing import NDArray

from medimg.train.data.augmentation import Augmentation, augment
from medimg.train.data.balance import balanced_order
from medimg.train.data.parts import Part

Transform = Callable[[NDArray[Any]], NDArray[np.float32]]


class Batches(PyDataset):  # type: ignore[misc]  # Keras ships no types
    """Inputs, true classes and weights, batch by batch; with a seed in a new order every epoch."""

    def __init__(
        self,
        part: Part,
        size: int,
        transform: Transform,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
        devices: int = 1,
        *,
        balanced: bool = False,
    ) -> None:
        """Batch a part.

        Args:
            part: the images; of several copies, each epoch takes the next.
            size: images a batch.
            transform: from a batch of inputs to what the network takes.
            seed: of the order; None keeps it.
            augmentation: where the inputs are images, makes new copies of them every epoch.
            devices: that share a batch in training; what cannot be shared evenly waits for another epoch.
            balanced: whether every epoch draws the images anew, from all classes alike.
        """
        super().__init__()
        self._balanced = balanced
        self._part, self._size, self._transform = part, size, transform
        self._seed, self._augmentation = seed, augmentation
        self._random = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(len(part))
        self._drawn = len(part) - (0 if seed is None else len(part) % devices)
        self._epoch = -1
        self.on_epoch_end()

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._part)

    def __len__(self) -> int:
        return math.ceil(self._drawn / self._size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float32]]:
        rows = self._order[index * self._size : (index + 1) * self._size]
        if self._random is not None:
            rows = np.sort(rows)
        part = self._part
        shown = rows + len(part) * (self._epoch % part.copies)
        values = part.inputs[shown]
        if self._augmentation:
            seeds = [(self._seed or 0, self._epoch, row) for row in rows]
            values = augment(values, self._augmentation, seeds)
        return self._transform(values), part.truth[shown % len(part.truth)], part.weights[rows]

    def skip(self, epochs: int) -> None:
        """Go on as if so many epochs had passed."""
        for _ in range(epochs):
            self.on_epoch_end()

    def on_epoch_end(self) -> None:
        """Go on to the next epoch: shuffle or draw anew, where there is a seed."""
        self._epoch += 1
        if self._random is None:
            return
        part, random = self._part, self._random
        order = balanced_order(part.truth, random) if self._balanced else random.permutation(len(part))
        self._order = order[: self._drawn]


def as_float(values: NDArray[Any]) -> NDArray[np.float32]:
    """Widen cached activations."""
    return values.astype(np.float32)
