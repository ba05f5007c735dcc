"""Images that an export makes itself, where it is given none."""

import cv2
import numpy as np
from numpy.typing import NDArray

SYNTHETIC_IMAGES = 64
BLANKS = (0, 255)
"""Grey levels of the first constant images."""


def synthetic_images(
    rows: int, columns: int, count: int = SYNTHETIC_IMAGES, seed: int = 0
) -> NDArray[np.uint8]:
    """Make seeded structured arrays: noise, smooth gradients, edges and constants in turn.

    Returns:
        `(count, rows, columns, 3)` uint8.
    """
    generator = np.random.default_rng(seed)
    images = np.empty((count, rows, columns, 3), np.uint8)
    for number in range(count):
        images[number] = _MAKERS[number % 4](generator, rows, columns)
    # A blank frame is what a network that divides by an image's own range has no answer for.
    for place, value in zip(range(3, count, 4), BLANKS, strict=False):
        images[place] = value
    return images


def _noise(generator: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    return generator.integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def _gradient(generator: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    corners = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(corners, (columns, rows), interpolation=cv2.INTER_CUBIC), np.uint8)


def _edges(generator: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    blocks = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(blocks, (columns, rows), interpolation=cv2.INTER_NEAREST), np.uint8)


def _constant(generator: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    return np.broadcast_to(generator.integers(0, 256, 3, dtype=np.uint8), (rows, columns, 3)).copy()


_MAKERS = (_noise, _gradient, _edges, _constant)


def names_of(count: int) -> tuple[str, ...]:
    """Name synthetic images for messages."""
    kinds = ("noise", "gradient", "edges", "one colour")
    blanks = dict(zip(range(3, count, 4), ("black", "white"), strict=False))
    return tuple(f"synthetic image {n} ({blanks.get(n, kinds[n % 4])})" for n in range(count))
