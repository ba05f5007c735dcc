"""One phase of training: epochs until validation stops improving, then back to the best."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimg.train.errors import DivergedError
from medimg.train.network_options import Head
from medimg.train.networks import Network
from medimg.train.options import FitOptions, Job, Schedule

if TYPE_CHECKING:
    from medimg.train.batches import Batches


PLATEAU_FACTOR = 0.2


@dataclass(frozen=True)
class Plan:
    """How a phase is to go."""

    name: str
    epochs: int
    """At most."""
    patience: int
    """Epochs without a lower validation loss after which it stops."""
    learning_rate: float
    schedule: Schedule = "fixed"
    """`cosine`: the rate falls to nothing over the epochs (arXiv:1608.03983); `plateau`: to a fifth each time
    that half the patience passes without a lower validation loss."""
    may_keep_start: bool = False
    """Whether the start counts as a candidate for the best epoch."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave, in the precision of training."""

    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Phase:
    """How a phase went."""

    name: str
    epochs: tuple[Epoch, ...]
    best_epoch: int
    """Whose weights were kept, counted from 1; 0 is the state before the first."""
    seconds: float


def run_phase(model: Network, train: "Batches", validation: "Batches", plan: Plan, job: Job) -> Phase:
    """Train a model and leave it with the weights of its best epoch, by validation loss.

    Args:
        model: a Keras model or a view of one; all its layers are trained.
        train: batches to train on.
        validation: batches to judge by.
        plan: rate, epochs and patience.
        job: optimizer, head; its progress takes a line an epoch.

    Raises:
        DivergedError: the loss is no number.
    """
    from keras import callbacks

    started = time.perf_counter()
    # Compiling by XLA takes longer than it saves on these networks.
    model.compile(_optimizer(plan, job.options, len(train)), **_loss(job.options.head), jit_compile=False)
    before = model.evaluate(validation, verbose=0)[0] if plan.may_keep_start else math.inf
    best = _Best(before, 0, model.get_weights())
    lowered = max(1, plan.patience // 2)

    def end_epoch(epoch: int, logs: dict[str, float]) -> None:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in logs.items())
        job.progress.note(f"{plan.name}: epoch {epoch + 1}/{plan.epochs}  {figures}")
        if logs["val_loss"] < best.val_loss:
            best.val_loss, best.epoch, best.weights = logs["val_loss"], epoch + 1, model.get_weights()
            return
        without_gain = epoch + 1 - best.epoch
        if without_gain >= plan.patience:
            model.stop_training = True
        elif plan.schedule == "plateau" and without_gain % lowered == 0:
            model.optimizer.learning_rate = float(model.optimizer.learning_rate) * PLATEAU_FACTOR

    history = model.fit(
        train,
        validation_data=validation,
        epochs=plan.epochs,
        verbose=0,
        shuffle=False,
        callbacks=[callbacks.TerminateOnNaN(), callbacks.LambdaCallback(on_epoch_end=end_epoch)],
    ).history
    model.set_weights(best.weights)
    return Phase(plan.name, _epochs(history, plan), best.epoch, time.perf_counter() - started)


def _optimizer(plan: Plan, options: FitOptions, steps: int) -> Any:  # noqa: ANN401  Keras is untyped
    from keras import optimizers

    rate: Any = plan.learning_rate
    if plan.schedule == "cosine":
        rate = optimizers.schedules.CosineDecay(rate, plan.epochs * steps)
    return optimizers.SGD(rate, options.momentum) if options.optimizer == "sgd" else optimizers.Adam(rate)


def _loss(head: Head) -> dict[str, Any]:
    from keras import metrics

    if head == "softmax":
        return {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    return {"loss": "binary_crossentropy", "metrics": [metrics.BinaryAccuracy(name="accuracy")]}


@dataclass
class _Best:
    """The best epoch so far."""

    val_loss: float
    epoch: int
    weights: list[NDArray[np.float32]]


def _epochs(history: dict[str, list[float]], plan: Plan) -> tuple[Epoch, ...]:
    columns = (history.get(name, []) for name in ("loss", "accuracy", "val_loss", "val_accuracy"))
    epochs = tuple(Epoch(*map(float, values)) for values in zip(*columns, strict=False))
    if not epochs or not all(math.isfinite(epoch.loss) for epoch in epochs):
        raise DivergedError(
            f"{plan.name}: the loss is no number at a learning rate of {plan.learning_rate}: take a tenth"
        )
    return epochs
