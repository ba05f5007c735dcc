"""Training on prepared images: a pretrained VGG16 in two phases, or a whole network from scratch.

Imports Keras: load it after `start_keras`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import UsageError
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.statistics.metrics import Probabilities
from medimg.runtime.tasks import task_of_head
from medimg.train.data.augmentation import Augmentation
from medimg.train.data.balance import image_weights
from medimg.train.data.batches import Batches, Transform, as_float
from medimg.train.data.parts import Part, Parts
from medimg.train.fitting.job import Job
from medimg.train.fitting.journal import Phase
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.phases import Plan, run_phase
from medimg.train.fitting.preparation import Prepared, require_head
from medimg.train.fitting.pretrained_base import PretrainedBase
from medimg.train.keras_setup import start_keras
from medimg.train.networks.build import (
    IMAGE,
    LAST_POOL,
    POOL,
    PROBABILITIES,
    Network,
    build,
    copy_weights,
    last_frozen,
    view,
)

HEAD_EPOCHS = 60
HEAD_PATIENCE = 6
TAIL_PATIENCE = 2
SCRATCH_EPOCHS = 8
SCRATCH_PATIENCE = 5
SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Trained:
    """A network that has been trained, from the layer on that training began at."""

    network: Network
    """From that layer's output to the probabilities, in the precision of training."""
    phases: tuple[Phase, ...]
    validation: Batches
    """What that layer gives for the validation images."""
    options: FitOptions

    def validation_probabilities(self) -> Probabilities:
        """Give `(images, classes)` for the validation images, in the precision of training."""
        outputs = self.network.predict(self.validation, verbose=0)
        return task_of_head(self.options.head).finish(outputs, self.options.head)


def train(prepared: Prepared, job: Job) -> Trained:
    """Train a network.

    On a pretrained base: a new head on the frozen base, then, unless the base stays as it is, the head and
    the last blocks at a small rate. Blocks that stay frozen see every image once, in whatever trial or run
    first needs them; a head alone is trained without them. Otherwise every layer is trained from scratch.

    Args:
        prepared: the images.
        job: its options may differ from those of the preparation in all but the images and the base.

    Returns:
        The network with the weights of the best epoch.

    Raises:
        DivergedError: the loss is no number.
        UsageError: the head does not suit the data, the images are of another size, or the activations do not
            fit on the disk.
    """
    options = job.options
    require_head(options, prepared.classes, prepared.task)
    if options.batch_size % prepared.devices:
        raise UsageError(
            f"batch size {options.batch_size}: cannot be shared evenly among {prepared.devices} devices"
        )
    if options.image_size != prepared.image_size:
        raise UsageError(
            f"image size {options.image_size}: the images were prepared at {prepared.image_size} pixels"
        )
    images = Parts(
        _weighted(prepared.images.train, prepared, options),
        _weighted(prepared.images.validation, prepared, options),
    )
    if prepared.base:
        return _fine_tune(prepared.base, images, prepared, job)
    return _train_from_scratch(images, prepared, job)


def assemble(trained: Trained, prepared: Prepared) -> Network:
    """Give the whole trained network in float32, from the image to the probabilities."""
    network = build(trained.options, prepared.classes, "float32")
    if prepared.base:
        copy_weights(prepared.base.network, network)
    copy_weights(trained.network, network)
    return network


def image_transform(options: FitOptions) -> Transform:
    """Give the intensity arithmetic of a network as a function of an image batch."""
    return lambda images: to_network_input(images, options.intensity)


def _train_from_scratch(images: Parts, prepared: Prepared, job: Job) -> Trained:
    options = job.options
    plan = Plan(
        "whole network",
        options.epochs or SCRATCH_EPOCHS,
        SCRATCH_PATIENCE,
        options.learning_rate,
        schedule=options.schedule or "cosine",
    )
    train, validation = _batches(images, job, prepared, image_transform(options), options.augment)
    with _seeded(prepared, options):
        network = build(options, prepared.classes, prepared.policy)
        phase = run_phase(network, train, validation, plan, job)
    return Trained(network, (phase,), validation, options)


def _fine_tune(base: PretrainedBase, images: Parts, prepared: Prepared, job: Job) -> Trained:
    options = job.options
    pooled = POOL if options.pooling == "average" else LAST_POOL
    start = last_frozen(options.unfreeze_blocks) if options.fine_tunes else pooled
    activations = base.outputs(images, start, job)
    features = base.outputs(images, pooled, job, computed=(start, activations))
    if start == IMAGE:
        train, validation = _batches(images, job, prepared, image_transform(options), options.augment)
    else:
        train, validation = _batches(activations, job, prepared, as_float)
    with _seeded(prepared, options):
        shape = activations.train.inputs.shape[1:]
        network = build(options, prepared.classes, prepared.policy, after=start, shape=shape)
        if start == pooled:
            return Trained(network, (_train_head(network, features, prepared, job),), validation, options)
        copy_weights(base.network, network)
        head = _train_head(view(network, pooled), features, prepared, job)
        plan = Plan(
            "last block" if options.unfreeze_blocks == 1 else f"last {options.unfreeze_blocks} blocks",
            options.fine_tune_epochs,
            TAIL_PATIENCE,
            options.fine_tune_rate,
            schedule=options.schedule or "fixed",
            may_keep_start=True,
        )
        tail = run_phase(network, train, validation, plan, job)
    return Trained(network, (head, tail), validation, options)


def _train_head(head: Network, features: Parts, prepared: Prepared, job: Job) -> Phase:
    """Train the head on standardised features, then fold the standardisation into its first dense layer."""
    options = job.options
    values = as_float(features.train.inputs)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    deviation[deviation < SMALLEST_DEVIATION] = 1

    def standardise(values: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray((as_float(values) - mean) / deviation, np.float32)

    plan = Plan("head", options.epochs or HEAD_EPOCHS, HEAD_PATIENCE, options.learning_rate)
    phase = run_phase(head, *_batches(features, job, prepared, standardise), plan, job)
    first = head.get_layer("dense1" if options.hidden_units else PROBABILITIES)
    kernel, bias = first.get_weights()
    kernel /= deviation.reshape(-1, 1)
    first.set_weights([kernel, bias - mean.reshape(-1) @ kernel])
    # Its penalty was meant for standardised features.
    first.kernel.regularizer = None
    return phase


@contextmanager
def _seeded(prepared: Prepared, options: FitOptions) -> Iterator[None]:
    """Draw the same weights each time, and share what is built among the devices."""
    start_keras(seed=options.seed)
    with prepared.strategy.scope() if prepared.strategy else nullcontext():
        yield


def _batches(
    parts: Parts,
    job: Job,
    prepared: Prepared,
    transform: Transform,
    augmentation: Augmentation | None = None,
) -> tuple[Batches, Batches]:
    options = job.options
    changes = augmentation if augmentation and augmentation.changes else None
    balanced = options.balance == "sampling"
    train = Batches(
        parts.train,
        options.batch_size,
        transform,
        options.seed,
        changes,
        prepared.devices,
        balanced=balanced,
    )
    return train, Batches(parts.validation, options.batch_size, transform)


def _weighted(part: Part, prepared: Prepared, options: FitOptions) -> Part:
    train_truth = prepared.images.train.truth
    return replace(part, weights=image_weights(part.truth, train_truth, prepared.classes, options.balance))
