"""What is computed once and kept: decoded images, and the outputs of frozen layers."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.containers import file_sha256
from medimg.runtime.data import DataSet, Sample, load_batches
from medimg.runtime.ordered import in_order, worker_threads
from medimg.runtime.preprocess import Images
from medimg.runtime.spec import ImageRule, Intensity
from medimg.train.networks import Network
from medimg.train.options import Job
from medimg.train.store import Stored, key_of

if TYPE_CHECKING:
    from medimg.train.batches import Batches

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


def cache_outputs(network: Network, batches: "Batches", job: Job, name: str, key: str) -> Stored:
    """Run a network over batches once, and keep what it gives.

    Args:
        network: a Keras model.
        batches: its inputs, in order.
        job: the store.
        name: what progress calls them.
        key: `outputs_key` of the inputs and the network.

    Returns:
        `(images, …)` in the precision that the network computes in.

    Raises:
        UsageError: they do not fit on the disk.
    """

    def outputs() -> Iterator[NDArray[Any]]:
        for inputs, *_ in job.progress.track(batches, f"compute {name}", len(batches)):
            yield network.predict_on_batch(inputs)

    return job.store.array(key, batches.images, outputs())


def images_key(dataset: DataSet, rule: ImageRule, threads: int) -> str:
    """Hash everything that decoded images depend on: their content, the rule, and what decodes them."""
    decoder = (version("medimg"), cv2.__version__)
    with worker_threads(threads, "hash") as pool:
        contents = in_order(pool, _content, dataset.samples, 4 * threads)
        return key_of("images", *decoder, json.dumps(dataclasses.asdict(rule)), *contents)


def outputs_key(inputs_key: str, network: Network, intensity: Intensity | None = None) -> str:
    """Hash everything that a network's outputs depend on.

    Args:
        inputs_key: that of the cached arrays that it is given.
        network: a Keras model whose layers form a chain; their settings, precision and weights count, their
            names do not.
        intensity: the arithmetic between the arrays and the network, where there is any.
    """
    arithmetic = json.dumps(None if intensity is None else dataclasses.asdict(intensity))
    layers = (
        json.dumps(layer.get_config() | {"name": None}, sort_keys=True, default=str)
        for layer in network.layers
    )
    weights = hashlib.sha256()
    for values in network.get_weights():
        weights.update(np.ascontiguousarray(values).view(np.uint8).data)
    frameworks = (version("keras"), version("tensorflow"))
    return key_of("outputs", *frameworks, inputs_key, arithmetic, *layers, weights.digest())


def _content(sample: Sample) -> str:
    """Hash a file as it is, or pixels with their shape; a file that cannot be read counts by its reason."""
    if not isinstance(sample.source, Path):
        pixels = np.ascontiguousarray(sample.source)
        return key_of(str(pixels.shape), pixels.dtype.str, pixels.tobytes())
    try:
        return file_sha256(sample.source)
    except OSError as error:
        return f"{sample.name}: {error.strerror}"
