"""Images decoded once and kept."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from medimg.runtime.data import DataSet, Sample
from medimg.runtime.errors import DataError, ImageError
from medimg.runtime.images.limits import Limits
from medimg.runtime.images.load import Image, read_size
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.preprocess import Images
from medimg.runtime.optional import installed_version
from medimg.runtime.ordered import in_order, worker_threads
from medimg.train.data.array_store import key_of
from medimg.train.data.options import DataOptions
from medimg.train.data.work import Work

BATCH = 32
DECODERS = ("medimg", "pydicom", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm")
"""Packages beside OpenCV on which it depends what can be read."""
SHOWN = 3
"""How many of several bad images a message names."""


@dataclass(frozen=True)
class DecodedImages:
    """The images of a data set that could be read."""

    dataset: DataSet
    """Their samples, in order."""
    images: Images
    """`(images, rows, columns, 3)` uint8 RGB, mapped from a file."""
    key: str
    """Of their content and of the rule by which they became arrays."""
    unreadable: tuple[str, ...] = ()
    """Why each of the others could not be read; every message begins with the image's name."""


def cache_images(
    dataset: DataSet, rule: ImageRule, options: DataOptions, work: Work, name: str
) -> DecodedImages:
    """Decode every image into one memory-mapped array, or find the one that an earlier run has left.

    Args:
        dataset: the images.
        rule: how they become arrays.
        options: how many may be unreadable, and whether they may be resized.
        work: store, threads and progress.
        name: what progress and messages call them.

    Raises:
        DataError: more images than allowed cannot be read, or one has not the network's size and is not to be
            resized.
        UsageError: they do not fit on the disk.
    """
    limit = min(options.unreadable_limit(len(dataset)), len(dataset) - 1)
    if not options.resize:
        _require_size(dataset, rule, work, name)
    failures: list[_Failure] = []

    def images() -> Iterator[Image]:
        with worker_threads(work.threads, "decode") as pool:
            loaded = in_order(pool, lambda item: _load(*item, rule), enumerate(dataset.samples), 2 * BATCH)
            for image in work.progress.track(loaded, f"decode {name}", len(dataset)):
                if not isinstance(image, _Failure):
                    yield image
                    continue
                failures.append(image)
                _require_readable(failures, limit, dataset, name)

    def batches() -> Iterator[Images]:
        readable = images()
        while batch := list(islice(readable, BATCH)):
            yield np.stack(batch)

    key = images_key(dataset, rule, work.threads)
    stored = work.store.array(key, len(dataset), batches(), lambda: [json.dumps(f) for f in failures])
    left_out = [_Failure(*json.loads(note)) for note in stored.notes]
    _require_readable(left_out, limit, dataset, name)
    lost = {failure.place for failure in left_out}
    read = dataset.with_samples(sample for index, sample in enumerate(dataset.samples) if index not in lost)
    unreadable = tuple(failure.of(dataset) for failure in left_out)
    return DecodedImages(read, stored.values, key, unreadable)


class _Failure(NamedTuple):
    """An image that cannot be read."""

    place: int
    reason: str

    def of(self, dataset: DataSet) -> str:
        """Give the message, which begins with the image's name."""
        return f"{dataset.samples[self.place].name}: {self.reason}"


def _load(place: int, sample: Sample, rule: ImageRule) -> Image | _Failure:
    try:
        return sample.load(rule)
    except ImageError as error:
        return _Failure(place, str(error).removeprefix(f"{sample.source}: ").removeprefix(f"{sample.name}: "))


def _require_readable(failures: list[_Failure], limit: int, dataset: DataSet, name: str) -> None:
    if len(failures) <= limit:
        return
    few = "; ".join(failure.of(dataset) for failure in failures[:SHOWN])
    raise DataError(
        f"{len(failures)} or more of {len(dataset)} {name} cannot be read, where {limit} may be left out "
        f"({few}): mend or remove them, or allow more by --max-unreadable"
    )


def _require_size(dataset: DataSet, rule: ImageRule, work: Work, name: str) -> None:
    """Refuse images that would have to be resized; those that cannot be read are another matter."""
    wanted = (rule.rows, rule.columns)
    with worker_threads(work.threads, "sizes") as pool:
        sizes = in_order(pool, lambda sample: _size(sample, rule), dataset.samples, 2 * BATCH)
        tracked = work.progress.track(sizes, f"measure {name}", len(dataset))
        pairs = zip(dataset.samples, tracked, strict=True)
        others = [(sample.name, size) for sample, size in pairs if size not in (None, wanted)]
    if others:
        first, (rows, columns) = others[0][0], others[0][1] or (0, 0)
        raise DataError(
            f"{first}: is {columns}x{rows} pixels, and the network takes {rule.columns}x{rule.rows} "
            f"({len(others)} of {len(dataset)} {name} have another size): set --image-size, or leave out "
            "--no-resize"
        )


def _size(sample: Sample, rule: ImageRule) -> tuple[int, int] | None:
    if not isinstance(sample.source, Path):
        return sample.source.shape[0], sample.source.shape[1]
    try:
        return read_size(sample.source, rule)
    except ImageError:
        return None


def images_key(dataset: DataSet, rule: ImageRule, threads: int) -> str:
    """Hash everything that decoded images depend on: their content, the rule, what decodes them."""
    limits = Limits.from_environment()
    settings = json.dumps([dataclasses.asdict(rule), dataclasses.asdict(limits)])
    with worker_threads(threads, "hash") as pool:
        contents = in_order(pool, _content, dataset.samples, 4 * threads)
        decoders = [str(installed_version(name)) for name in DECODERS]
        return key_of("images", cv2.__version__, *decoders, settings, *contents)


def _content(sample: Sample) -> str:
    """Hash a file as it is, or pixels with their shape; a file that cannot be read counts by its reason."""
    if not isinstance(sample.source, Path):
        pixels = np.ascontiguousarray(sample.source)
        return key_of(str(pixels.shape), pixels.dtype.str, pixels.tobytes())
    try:
        return file_sha256(sample.source)
    except OSError as error:
        return f"{sample.name}: {error.strerror}"
