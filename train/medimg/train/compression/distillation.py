"""Training a narrower network to answer as the original does.

Source:
    G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, arXiv:1503.02531 (logits
    at a temperature).
    A. Romero et al., FitNets, arXiv:1412.6550 (features).
    L. Beyer et al., Knowledge distillation: a good teacher is patient and consistent, arXiv:2106.05237,
    section 3 (the original is asked about the very copies that the narrower network sees).

Imports Keras: load it after `start_keras`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import metrics, ops
from numpy.typing import NDArray

from medimg.runtime.preprocess import to_network_input
from medimg.runtime.spec import Intensity
from medimg.train.batches import Batches
from medimg.train.journal import Phase
from medimg.train.networks import Network
from medimg.train.options import Job
from medimg.train.parts import Parts
from medimg.train.phases import Plan, run_phase

TEMPERATURE = 2.0
LABELS_COUNT = 0.2
"""What the cross-entropy with the labels counts beside the original's answers."""
SMALLEST_ENERGY = 1e-6

Loss = Callable[[Any, Any], Any]


def targets(
    answers: NDArray[np.float32], truth: NDArray[Any], classes: int, kept: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Put side by side what a narrower network is to follow.

    Args:
        answers: the original's logits and features, `(images, classes + features)`.
        truth: `(images,)` true classes, or `(images, labels)` 0 and 1.
        classes: units of the last layer.
        kept: the features that the narrower network has.

    Returns:
        `(images, classes + kept + classes)`: logits, features, labels.
    """
    if truth.ndim == 1:
        truth = truth[:, None] if classes == 1 else truth[:, None] == np.arange(classes)
    return np.hstack([answers[:, :classes], answers[:, classes:][:, kept], truth]).astype(np.float32)


def distil(
    network: Network,
    parts: Parts,
    intensity: Intensity,
    plan: Plan,
    job: Job,
    loss: Loss,
    metric: Loss,
) -> Phase:
    """Train, and leave the network with the weights of its best epoch.

    Args:
        network: gives logits and features.
        parts: images, and `targets` as their truth.
        intensity: from images to what the network takes.
        plan: epochs and rate.
        job: batch size and seed; its journal is told of every epoch.
        loss: of targets and answers.
        metric: likewise, shown as accuracy.
    """
    train, validation = (
        Batches(part, job.options.batch_size, lambda batch: to_network_input(batch, intensity), seed)
        for part, seed in ((parts.train, job.options.seed), (parts.validation, None))
    )
    measures = {"loss": loss, "metrics": [metrics.MeanMetricWrapper(metric, name="accuracy")]}
    return run_phase(network, train, validation, plan, job, measures)


def make_loss(classes: int, exclusive: bool, energy: float, *, distilled: bool) -> Loss:
    """Make the loss of a batch, an image at a time.

    Args:
        classes: units of the last layer.
        exclusive: whether an image shows one of them; else each unit is a question of its own.
        energy: mean square of the original's features, which makes theirs comparable.
        distilled: whether the original's answers count; else the labels alone.
    """
    scale = 1 / max(energy, SMALLEST_ENERGY)

    def loss(wanted: Any, given: Any) -> Any:  # noqa: ANN401  tensors
        logits, features = given[:, :classes], given[:, classes:]
        teacher, goal, truth = wanted[:, :classes], wanted[:, classes:-classes], wanted[:, -classes:]
        labels = _cross_entropy(truth, logits, exclusive)
        if not distilled:
            return labels
        soft = _probabilities(teacher / TEMPERATURE, exclusive)
        apart = _cross_entropy(soft, logits / TEMPERATURE, exclusive)
        # Less its own entropy the cross-entropy is the Kullback-Leibler divergence.
        apart -= _cross_entropy(soft, teacher / TEMPERATURE, exclusive)
        distance = scale * ops.mean(ops.square(features - goal), axis=-1)
        return TEMPERATURE**2 * apart + distance + LABELS_COUNT * labels

    return loss


def make_metric(classes: int, exclusive: bool) -> Loss:
    """Make the share of right decisions in a batch, an image at a time."""

    def accuracy(wanted: Any, given: Any) -> Any:  # noqa: ANN401
        logits, truth = given[:, :classes], wanted[:, -classes:]
        if exclusive:
            return ops.cast(ops.argmax(logits, axis=-1) == ops.argmax(truth, axis=-1), "float32")
        return ops.mean(ops.cast((logits > 0) == (truth > 0.5), "float32"), axis=-1)

    return accuracy


def _probabilities(logits: Any, exclusive: bool) -> Any:  # noqa: ANN401
    return ops.softmax(logits, axis=-1) if exclusive else ops.sigmoid(logits)


def _cross_entropy(wanted: Any, logits: Any, exclusive: bool) -> Any:  # noqa: ANN401
    if exclusive:
        return -ops.sum(wanted * ops.log_softmax(logits, axis=-1), axis=-1)
    return ops.mean(ops.softplus(logits) - wanted * logits, axis=-1)
