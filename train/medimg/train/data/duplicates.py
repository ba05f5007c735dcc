"""The same picture in two parts of the data, to the pixel or nearly so.

A hash of 256 bits stands for what is seen at a coarse scale: the signs, about their median, of the 16 x 16
lowest frequencies of the grey image's cosine transform. Hashes that differ in few bits are near duplicates.

Source:
    C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, diploma thesis, Upper
    Austria University of Applied Sciences, Hagenberg, 2010 (the DCT hash, there of 8 x 8 frequencies).
    Medical images of one kind are more alike than photographs, hence the finer hash: of 64 bits it takes
    most chest X-rays for copies of others.
"""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet
from medimg.runtime.images.load import Image
from medimg.train.data.decoded_images import DecodedImages
from medimg.train.progress import Progress

NEAR_BITS = 26
"""A tenth of the hash. Copies of brain MRI slices, saved as JPEG at quality 20, halved, or with other
brightness, contrast or gamma differ in 18 at most; the two most alike chest X-rays of different parts of
pneumoniamnist in 48 or more. Mirrored, turned or clearly cropped copies are not found."""
LISTED = 50

_SIDE, _FREQUENCIES = 64, 16
_CHUNK = 16


@dataclass(frozen=True)
class Duplicate:
    """An image and one that it repeats."""

    image: str
    label: str
    repeats: str
    """The name of the other."""
    its_label: str
    bits: int
    """In how many of 256 bits their hashes differ."""
    exact: bool
    """Whether they are the same to the pixel, as the network sees them."""


@dataclass(frozen=True)
class Duplicates:
    """Images of one part that another part holds as well."""

    part: str
    other: str
    """The same name for images that repeat an earlier one of their own part."""
    exact: int
    """Images of `part` that are in `other` to the pixel."""
    near: int
    """Further ones that are there but for compression, size or brightness, or as the slice next to theirs."""
    contradictory: int
    """Those of both kinds whose copy has another label."""
    listed: tuple[Duplicate, ...]
    """The first of them, contradictory ones before others."""

    @property
    def images(self) -> int:
        """All images of `part` that `other` holds."""
        return self.exact + self.near


@dataclass(frozen=True)
class Fingerprints:
    """What the images of a part are recognised by."""

    dataset: DataSet
    digests: NDArray[np.uint64]
    """`(images, 4)`, of the pixels."""
    hashes: NDArray[np.uint64]
    """`(images, 4)`, of the picture."""


def fingerprints(decoded: DecodedImages, progress: Progress, name: str) -> Fingerprints:
    """Hash every image of a part; progress calls them by a name."""
    length = len(decoded.images)
    pairs = [
        (_digest(image), picture_hash(image))
        for image in progress.track(decoded.images, f"look for duplicates in {name}", length)
    ]
    digests, hashes = (np.stack(column) for column in zip(*pairs, strict=True))
    return Fingerprints(decoded.dataset, digests, hashes)


def find_duplicates(part: Fingerprints, other: Fingerprints, names: tuple[str, str]) -> Duplicates:
    """Find the images of one part that another holds as well.

    Args:
        part: whose images are counted.
        other: where their copies are looked for; the same object for an earlier image of the same part.
        names: of the two.
    """
    found = []
    for start in range(0, len(part.hashes), _CHUNK):
        different = part.hashes[start : start + _CHUNK, None] ^ other.hashes[None]
        for index, bits in enumerate(np.bitwise_count(different).sum(axis=2, dtype=np.int64), start):
            candidates = np.flatnonzero(bits[: index if part is other else None] <= NEAR_BITS)
            if len(candidates):
                found.append(_closest(part, index, other, candidates, bits))
    found.sort(key=lambda pair: (pair.label == pair.its_label, not pair.exact, pair.bits))
    exact = sum(pair.exact for pair in found)
    contradictory = sum(pair.label != pair.its_label for pair in found)
    return Duplicates(*names, exact, len(found) - exact, contradictory, tuple(found[:LISTED]))


def picture_hash(image: Image) -> NDArray[np.uint64]:
    """Hash what is seen in an image at a coarse scale.

    Args:
        image: `(rows, columns, 3)` uint8 RGB.

    Returns:
        `(4,)`, 256 bits.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:_FREQUENCIES, :_FREQUENCIES].ravel()
    # The first is the mean brightness, larger than all others.
    return np.packbits(low > np.median(low[1:])).view(np.uint64)


def _digest(image: Image) -> NDArray[np.uint64]:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(image).data).digest(), np.uint64)


def _closest(
    part: Fingerprints,
    index: int,
    other: Fingerprints,
    candidates: NDArray[np.int64],
    bits: NDArray[np.int64],
) -> Duplicate:
    """Choose an image's copy: one with another label before others, an exact one before a near one."""
    exact = (other.digests[candidates] == part.digests[index]).all(axis=1)
    label = label_text(part.dataset, index)
    labels = [label_text(other.dataset, int(candidate)) for candidate in candidates]
    same = np.array([its_label == label for its_label in labels])
    first = np.lexsort((bits[candidates], ~exact, same))[0]
    chosen = int(candidates[first])
    return Duplicate(
        part.dataset.samples[index].name,
        label,
        other.dataset.samples[chosen].name,
        labels[first],
        int(bits[chosen]),
        bool(exact[first]),
    )


def label_text(dataset: DataSet, index: int) -> str:
    """Name the class of an image, or its classes joined by `|`."""
    sample = dataset.samples[index]
    classes = (sample.label,) if sample.label is not None else sample.classes or ()
    return "|".join(dataset.labels[number] for number in classes)
