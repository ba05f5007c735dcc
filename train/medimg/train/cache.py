"""Images decoded once and kept."""

import dataclasses
import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from medimg.runtime.containers import file_sha256
from medimg.runtime.data import DataSet, Sample, load_batches
from medimg.runtime.ordered import in_order, worker_threads
from medimg.runtime.preprocess import Images
from medimg.runtime.spec import ImageRule
from medimg.train.options import Job
from medimg.train.store import key_of

BATCH = 32


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


def cache_images(dataset: DataSet, job: Job, name: str) -> DecodedImages:
    """Decode every image into one memory-mapped array, or find the one that an earlier run has left.

    Args:
        dataset: the images.
        job: image size, store, threads.
        name: what progress calls them.

    Raises:
        ImageError: an image cannot be read.
        UsageError: they do not fit on the disk.
    """
    rule = job.options.image
    key = images_key(dataset, rule, job.threads)
    batches = load_batches(dataset.samples, rule, BATCH, job.threads)
    tracked = job.progress.track(batches, f"decode {name}", math.ceil(len(dataset) / BATCH))
    stored = job.store.array(key, len(dataset), tracked)
    return DecodedImages(dataset, stored.values, key)


def images_key(dataset: DataSet, rule: ImageRule, threads: int) -> str:
    """Hash everything that decoded images depend on: their content, the rule, and what decodes them."""
    decoder = (version("medimg"), cv2.__version__)
    with worker_threads(threads, "hash") as pool:
        contents = in_order(pool, _content, dataset.samples, 4 * threads)
        return key_of("images", *decoder, json.dumps(dataclasses.asdict(rule)), *contents)


def _content(sample: Sample) -> str:
    """Hash a file as it is, or pixels with their shape; a file that cannot be read counts by its reason."""
    if not isinstance(sample.source, Path):
        pixels = np.ascontiguousarray(sample.source)
        return key_of(str(pixels.shape), pixels.dtype.str, pixels.tobytes())
    try:
        return file_sha256(sample.source)
    except OSError as error:
        return f"{sample.name}: {error.strerror}"
