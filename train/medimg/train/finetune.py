"""The two ways to train: a pretrained VGG16 in two phases, or a whole network from scratch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.preprocess import to_network_input
from medimg.runtime.spec import Intensity
from medimg.train.batches import Batches, Part, Transform, as_float
from medimg.train.cache import cache_outputs, outputs_key
from medimg.train.networks import LAST_FROZEN, POOL, PROBABILITIES, Network, view
from medimg.train.options import FitOptions, Job
from medimg.train.phases import Phase, Plan, run_phase

HEAD_EPOCHS = 60
HEAD_PATIENCE = 6
TAIL_PATIENCE = 2
SCRATCH_EPOCHS = 8
SCRATCH_PATIENCE = 5
SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Parts:
    """What a model is trained on and judged by."""

    train: Part
    validation: Part


def train_from_scratch(network: Network, parts: Parts, job: Job) -> tuple[Phase, ...]:
    """Train every layer.

    Args:
        network: with random weights; it is left with those of the best epoch.
        parts: `(images, rows, columns, 3)` uint8 RGB.
        job: rates, epochs, folder.

    Raises:
        DivergedError: the loss is no number.
    """
    options = job.options
    epochs = options.epochs or SCRATCH_EPOCHS
    plan = Plan("whole network", epochs, SCRATCH_PATIENCE, options.learning_rate, decay=True)
    return (_run_phase(network, parts, plan, job, image_transform(options)),)


def fine_tune(network: Network, parts: Parts, job: Job) -> tuple[Phase, ...]:
    """Train a new head on the frozen base, then the head and the last block at a small fixed rate.

    The blocks that stay frozen see every image once; both phases train on what they gave.

    Args:
        network: vgg16 with pretrained weights; it is left with those of the best epoch.
        parts: `(images, rows, columns, 3)` uint8 RGB.
        job: rates, epochs, folder.

    Raises:
        DivergedError: the loss is no number.
        UsageError: the activations do not fit on the disk.
    """
    options = job.options
    frozen, last_block = view(network, "image", LAST_FROZEN), view(network, LAST_FROZEN, POOL)
    activations = _compute(frozen, parts, job, "activations", options.intensity)
    features = _compute(last_block, activations, job, "features", None)
    head = _train_head(network, features, job)
    if not options.fine_tune_epochs:
        return (head,)
    plan = Plan(
        "last block", options.fine_tune_epochs, TAIL_PATIENCE, options.fine_tune_rate, may_keep_start=True
    )
    return head, _run_phase(view(network, LAST_FROZEN), activations, plan, job, as_float)


def image_transform(options: FitOptions) -> Transform:
    """Give the intensity arithmetic of a network as a function of an image batch."""
    return lambda images: to_network_input(images, options.intensity)


def _compute(network: Network, parts: Parts, job: Job, what: str, intensity: Intensity | None) -> Parts:
    """Compute outputs once; with an intensity the inputs are images, without one activations."""
    transform = image_transform(job.options) if intensity else as_float

    def compute(part: Part, name: str) -> Part:
        batches = Batches(part, job.options.batch_size, transform)
        key = outputs_key(part.key, network, intensity)
        return part.with_inputs(cache_outputs(network, batches, job, f"{name} {what}", key))

    return Parts(compute(parts.train, "training"), compute(parts.validation, "validation"))


def _train_head(network: Network, features: Parts, job: Job) -> Phase:
    """Train the head on standardised features, then fold the standardisation into its first dense layer."""
    values = as_float(features.train.inputs)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    deviation[deviation < SMALLEST_DEVIATION] = 1

    def standardise(values: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray((as_float(values) - mean) / deviation, np.float32)

    plan = Plan("head", job.options.epochs or HEAD_EPOCHS, HEAD_PATIENCE, job.options.learning_rate)
    phase = _run_phase(view(network, POOL), features, plan, job, standardise)
    first = network.get_layer("dense1" if job.options.hidden_units else PROBABILITIES)
    kernel, bias = first.get_weights()
    kernel /= deviation[:, None]
    first.set_weights([kernel, bias - mean @ kernel])
    return phase


def _run_phase(model: Network, parts: Parts, plan: Plan, job: Job, transform: Transform) -> Phase:
    options = job.options
    train = Batches(parts.train, options.batch_size, transform, options.seed)
    validation = Batches(parts.validation, options.batch_size, transform)
    return run_phase(model, train, validation, plan, job.progress)
