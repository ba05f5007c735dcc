"""What all trainings on the same images share: labels, decoded images, the pretrained base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medimg.runtime.tasks import TaskName
from medimg.train.data.decoded_images import DecodedImages, cache_images
from medimg.train.data.division import Division, require_every_class
from medimg.train.data.duplicates import Duplicates, find_duplicates, fingerprints
from medimg.train.data.parts import Part, Parts
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.pretrained_base import PretrainedBase
from medimg.train.keras_setup import Policy, choose_policy, choose_strategy, gpu_capabilities, start_keras
from medimg.train.networks.weights import imagenet_weights, require_file
from medimg.train.tasks import train_task


@dataclass(frozen=True)
class Prepared:
    """What all trainings on the same images share; made once, used by every trial."""

    labels: tuple[str, ...]
    task: TaskName
    """Whether an image shows one class or several."""
    images: Parts
    """`(images, rows, columns, 3)` uint8 RGB; every image counts 1."""
    image_size: int
    base: PretrainedBase | None
    """For vgg16 with pretrained weights."""
    policy: Policy
    """What training computes in."""
    unreadable: tuple[str, ...]
    """Images left out because they cannot be read, each with the reason."""
    duplicates: Duplicates
    """Validation images that the training part holds as well."""
    strategy: Any = None
    """`tf.distribute`'s, where training is shared among devices."""

    @property
    def devices(self) -> int:
        """How many devices share a batch."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

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
        DataError: too many images cannot be read, or have not the size that is wanted.
        WeightsError: the pretrained weights cannot be had, or are damaged, or not of VGG16.
        UsageError: the head does not suit the data, or the images do not fit on the disk.
    """
    options = job.options
    require_head(options, len(division.train.labels), division.train.task)
    path = _find_weights(options)
    start_keras(job.threads, options.seed)
    policy = choose_policy(options.precision_policy, gpus=gpu_capabilities())
    base = PretrainedBase(path, options, policy) if path else None
    if base:
        _ = base.loaded  # a damaged file is found before the images are decoded
    train = cache_images(division.train, options.image, options, job, "training images")
    validation = cache_images(division.validation, options.image, options, job, "validation images")
    require_every_class(train.dataset, validation.dataset)
    return Prepared(
        division.train.labels,
        division.train.task,
        Parts(_part(train), _part(validation)),
        options.image_size,
        base,
        policy,
        train.unreadable + validation.unreadable,
        find_duplicates(
            fingerprints(validation, job.progress, "validation images"),
            fingerprints(train, job.progress, "training images"),
            ("val", "train"),
        ),
        choose_strategy(),
    )


def require_head(options: FitOptions, classes: int, task: TaskName = "multiclass") -> None:
    """Check that a head can learn the classes of a data set.

    Args:
        options: the head.
        classes: number of labels.
        task: whether an image shows one class or several.

    Raises:
        UsageError: it cannot; the message names one that can.
    """
    train_task(task).require_head(options.head, classes)


def _part(decoded: DecodedImages) -> Part:
    dataset = decoded.dataset
    truth = train_task(dataset.task).truth_of(dataset)
    return Part(decoded.images, truth, np.ones(len(truth), np.float32), decoded.key)


def _find_weights(options: FitOptions) -> Path | None:
    if options.pretrained == "imagenet":
        return imagenet_weights()
    if not options.pretrained:
        return None
    path = Path(options.pretrained)
    require_file(path)
    return path
