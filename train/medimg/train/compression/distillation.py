"""Training a narrower network to answer as the original does.

Source:
    G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, arXiv:1503.02531 (logits
    at a temperature).
    L. Beyer et al., Knowledge distillation: a good teacher is patient and consistent, arXiv:2106.05237,
    section 3 (the original is asked about the very copies that the narrower network sees).

Imports Keras: load it after `start_keras`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from keras import metrics, ops
from numpy.typing import NDArray

from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import Intensity
from medimg.train.data.batches import Batches
from medimg.train.data.parts import Parts
from medimg.train.fitting.job import Job
from medimg.train.fitting.journal import Phase
from medimg.train.fitting.phases import Plan, run_phase
from medimg.train.networks.build import Network

TEMPERATURE = 4.0
"""High, so that what the original says of all classes counts where it is sure of one."""
LABELS_COUNT = 0.2
"""What the cross-entropy with the labels counts beside the original's answers."""
WARM_UP = 1 / 4
"""The share of the epochs in which the rate rises; from the start at once it was thrown far back."""

LABELS = "labels"
"""Cross-entropy with them, as a metric."""

Loss = Callable[[Any, Any], Any]


def targets(logits: NDArray[np.float32], truth: NDArray[Any]) -> NDArray[np.float32]:
    """Put side by side what a narrower network is to follow.

    Args:
        logits: the original's, `(images, classes)`.
        truth: `(images,)` true classes, or `(images, labels)` 0 and 1.

    Returns:
        `(images, 2 · classes)`: logits, labels.
    """
    classes = logits.shape[1]
    if truth.ndim == 1:
        truth = truth[:, None] if classes == 1 else truth[:, None] == np.arange(classes)
    return np.hstack([logits, truth]).astype(np.float32)


def distil(
    network: Network,
    parts: Parts,
    intensity: Intensity,
    plan: Plan,
    job: Job,
    *,
    exclusive: bool,
    distilled: bool,
) -> Phase:
    """Train, and leave the network with the weights of its best epoch: best by the labels.

    The original may be followed more closely and be right less often, so it does not choose.

    Args:
        network: gives logits.
        parts: images, `targets` as their truth, and what each counts, in the choice of the epoch too.
        intensity: from images to what the network takes.
        plan: epochs and rate, which rises from nothing and falls to nothing.
        job: batch size and seed; its journal is told of every epoch.
        exclusive: whether an image shows one of the classes; else each unit is a question of its own.
        distilled: whether the original's answers count; else the labels alone.
    """
    train, validation = (
        Batches(part, job.options.batch_size, lambda batch: to_network_input(batch, intensity), seed)
        for part, seed in ((parts.train, job.options.seed), (parts.validation, None))
    )
    labels = make_loss(exclusive, distilled=False)
    measures = {
        "loss": make_loss(exclusive, distilled=distilled),
        "metrics": [metrics.MeanMetricWrapper(make_metric(exclusive), name="accuracy")],
        "weighted_metrics": [metrics.MeanMetricWrapper(labels, name=LABELS)],
    }
    plan = replace(plan, schedule="cosine", warm_up=WARM_UP, judged_by=LABELS)
    return run_phase(network, train, validation, plan, job, measures)


def make_loss(exclusive: bool, *, distilled: bool) -> Loss:
    """Make the loss of a batch, an image at a time.

    Args:
        exclusive: whether an image shows one of the classes; else each unit is a question of its own.
        distilled: whether the original's answers count; else the labels alone.
    """

    def loss(wanted: Any, logits: Any) -> Any:  # noqa: ANN401  tensors
        teacher, truth = ops.split(wanted, 2, axis=-1)
        labels = _cross_entropy(truth, logits, exclusive)
        if not distilled:
            return labels
        soft = _probabilities(teacher / TEMPERATURE, exclusive)
        apart = _cross_entropy(soft, logits / TEMPERATURE, exclusive)
        # Less its own entropy the cross-entropy is the Kullback-Leibler divergence.
        apart -= _cross_entropy(soft, teacher / TEMPERATURE, exclusive)
        return TEMPERATURE**2 * apart + LABELS_COUNT * labels

    return loss


def make_metric(exclusive: bool) -> Loss:
    """Make the share of right decisions in a batch, an image at a time."""

    def accuracy(wanted: Any, logits: Any) -> Any:  # noqa: ANN401
        _, truth = ops.split(wanted, 2, axis=-1)
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
