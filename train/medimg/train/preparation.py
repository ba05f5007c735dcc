"""What all trainings on the same images share: labels, decoded images, the pretrained base."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medimg.runtime.errors import UsageError
from medimg.train.base import PretrainedBase
from medimg.train.cache import DecodedImages, cache_images
from medimg.train.division import Division
from medimg.train.keras_setup import Policy, choose_policy, start_keras
from medimg.train.options import FitOptions, Job
from medimg.train.parts import Part, Parts
from medimg.train.weights import imagenet_weights


@dataclass(frozen=True)
class Prepared:
    """What all trainings on the same images share; made once, used by every trial."""

    labels: tuple[str, ...]
    images: Parts
    """`(images, rows, columns, 3)` uint8 RGB; every image counts 1."""
    image_size: int
    base: PretrainedBase | None
    """For vgg16 with pretrained weights."""
    policy: Policy
    """What training computes in."""

    @property
    def classes(self) -> int:
        """Number of labels."""
        return len(self.labels)


def prepare(division: Division, job: Job) -> Prepared:
    """Bring Keras up, check the pretrained weights, and decode every image once.

    Args:
        division: training and validation images.
        job: options, store, threads.

    Raises:
        ImageError: an image cannot be read.
        WeightsError: the pretrained weights cannot be had, or are damaged, or not of VGG16.
        UsageError: the head does not suit the data, or the images do not fit on the disk.
    """
    options = job.options
    require_head(options, len(division.train.labels))
    path = _find_weights(options)
    start_keras(job.threads, options.seed)
    policy = choose_policy(options.precision_policy)
    base = PretrainedBase(path, options, policy) if path else None
    if base:
        # A damaged file is found before the images are decoded.
        assert base.loaded
    images = Parts(
        _part(cache_images(division.train, job, "training images")),
        _part(cache_images(division.validation, job, "validation images")),
    )
    return Prepared(division.train.labels, images, options.image_size, base, policy)


def require_head(options: FitOptions, classes: int) -> None:
    """Check that a head can learn the classes of a data set.

    Raises:
        UsageError: it cannot; the message names one that can.
    """
    if options.head == "sigmoid" and classes != 2:
        raise UsageError(
            f"--head sigmoid is one unit for two classes, the data have {classes}: take --head softmax"
        )


def _part(decoded: DecodedImages) -> Part:
    truth = decoded.dataset.truth
    return Part(decoded.images, truth, np.ones(len(truth), np.float32), decoded.key)


def _find_weights(options: FitOptions) -> Path | None:
    if options.pretrained == "imagenet":
        return imagenet_weights()
    return Path(options.pretrained) if options.pretrained else None
