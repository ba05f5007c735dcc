"""The images that a model is trained on and judged by, as arrays."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.train.data.array_store import Stored


@dataclass(frozen=True)
class Part:
    """The training or the validation part, as arrays."""

    inputs: NDArray[Any]
    """`(copies · images, …)`: images, or what a frozen part of the network gave for one copy of each after
    another."""
    truth: NDArray[Any]
    """`(images,)` true classes, or `(images, classes)` 0 and 1 where several may be true; where copies are to
    be answered differently, as many rows as inputs."""
    weights: NDArray[np.float32]
    """`(images,)` what each image counts in the loss."""
    key: str = ""
    """Of the inputs in the store; empty for arrays made otherwise."""

    def with_inputs(self, stored: Stored) -> "Part":
        """The same images, seen further down the network."""
        return replace(self, inputs=stored.values, key=stored.key)

    @property
    def copies(self) -> int:
        """How many copies of each image the inputs hold."""
        return len(self.inputs) // len(self)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Parts:
    """What a model is trained on and judged by."""

    train: Part
    validation: Part
