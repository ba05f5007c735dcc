"""Weights drawn from a seed: a large artefact travels as a few kilobytes and is rebuilt bit by bit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Drawn:
    """An array that a seed gives: `(output channels, input channels, rows, columns)`, as ONNX stores it."""

    seed: int
    shape: tuple[int, ...]

    def values(self) -> NDArray[np.float32]:
        """Draw from He's uniform distribution, rounded to what float16 holds.

        Only the generator's raw bits are used, which no version of numpy changes.
        """
        bits = np.random.PCG64(self.seed).random_raw(prod(self.shape)) >> np.uint64(40)
        uniform = bits.astype(np.float32) / np.float32(1 << 23) - np.float32(1)
        limit = np.float32(sqrt(6 / prod(self.shape[1:])))
        return (uniform * limit).astype(np.float16).astype(np.float32).reshape(self.shape)


@dataclass(frozen=True)
class Cut:
    """Where an array was taken out of a file."""

    offset: int
    """In the whole file."""
    dtype: str
    """`float32` or `float16`."""
    drawn: Drawn

    def content(self) -> bytes:
        """Give the bytes that were there."""
        return self.drawn.values().astype(self.dtype).tobytes()


def take_out(content: bytes, arrays: Iterable[Drawn]) -> tuple[bytes, list[Cut]]:
    """Take arrays out of a file, in whichever of the two types it holds them.

    Returns:
        What is left, and where each array was, in the order of the offsets.

    Raises:
        ValueError: the file does not hold one of them.
    """
    cuts = sorted((_find(content, drawn) for drawn in arrays), key=lambda cut: cut.offset)
    left, end = [], 0
    for cut in cuts:
        left.append(content[end : cut.offset])
        end = cut.offset + len(cut.content())
    return b"".join([*left, content[end:]]), cuts


def put_back(left: bytes, cuts: Sequence[Cut]) -> bytes:
    """Rebuild the file that `take_out` was given."""
    parts: list[bytes] = []
    taken = written = 0
    for cut in cuts:
        before = left[taken : taken + cut.offset - written]
        array = cut.content()
        parts += [before, array]
        taken += len(before)
        written = cut.offset + len(array)
    return b"".join([*parts, left[taken:]])


def _find(content: bytes, drawn: Drawn) -> Cut:
    for dtype in ("float32", "float16"):
        offset = content.find(Cut(0, dtype, drawn).content())
        if offset >= 0:
            return Cut(offset, dtype, drawn)
    raise ValueError(f"the array of seed {drawn.seed} is not in the file: was it changed by the export?")
