"""One phase of training: epochs until validation stops improving, then back to the best."""

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medimg.train.errors import DivergedError
from medimg.train.fitting.checkpoint import Variables
from medimg.train.fitting.job import Job
from medimg.train.fitting.journal import Epoch, Phase
from medimg.train.fitting.options import FitOptions, Schedule
from medimg.train.networks.build import Network
from medimg.train.tasks import TrainedHead, train_task_of_head

if TYPE_CHECKING:
    from medimg.train.data.batches import Batches

PLATEAU_FACTOR = 0.2

_LOG = logging.getLogger(__name__)


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
    warm_up: float = 0
    """The share of the epochs in which the rate of `cosine` rises from nothing, since Adam's first steps are
    large whatever the gradient is (arXiv:1908.03265)."""
    may_keep_start: bool = False
    """Whether the start counts as a candidate for the best epoch."""
    judged_by: str = "loss"
    """What is called the validation loss: the loss, or a metric of this name."""


def run_phase(
    model: Network,
    train: "Batches",
    validation: "Batches",
    plan: Plan,
    job: Job,
    loss: dict[str, Any] | None = None,
) -> Phase:
    """Train a model and leave it with the weights of its best epoch, by validation loss.

    What the job's journal has of the phase from an earlier run is not done again.

    Args:
        model: a Keras model or a view of one; all its layers are trained.
        train: batches to train on.
        validation: batches to judge by.
        plan: rate, epochs and patience.
        job: optimizer and head; its journal is told of every epoch.
        loss: Keras's `loss` and `metrics`, among them `accuracy`; by default those of the head.

    Raises:
        DivergedError: the loss is no number.
        UsageError: the journal cannot be written.
    """
    if done := job.journal.finished(plan.name):
        return job.journal.end(done)
    # Compiling by XLA takes longer than it saves on these networks.
    model.compile(
        _optimizer(plan, job.options, len(train)), **(loss or _loss(job.options.head)), jit_compile=False
    )
    course = _Course(model, plan, job)
    if not course.go_on(train):
        course.begin(validation)
    if not course.over:
        _fit(model, train, validation, course)
    model.set_weights(course.best)
    return job.journal.end(course.phase)


class _Course:
    """A phase as it goes: its epochs, and the best of them."""

    def __init__(self, model: Network, plan: Plan, job: Job) -> None:
        self.plan, self.job = plan, job
        self._model = model
        self._epochs: list[Epoch] = []
        self._best_epoch, self._best_val_loss = 0, math.inf
        self.best: list[NDArray[Any]] = model.get_weights()
        self._seconds, self._since = 0.0, time.perf_counter()

    @property
    def phase(self) -> Phase:
        """How far it has come."""
        seconds = self._seconds + time.perf_counter() - self._since
        return Phase(self.plan.name, tuple(self._epochs), self._best_epoch, seconds)

    @property
    def over(self) -> bool:
        """Whether the epochs or the patience are used up."""
        return len(self._epochs) >= self.plan.epochs or self._without_gain >= self.plan.patience

    @property
    def _without_gain(self) -> int:
        return len(self._epochs) - self._best_epoch

    def begin(self, validation: "Batches") -> None:
        """Judge the start, where it is a candidate."""
        if self.plan.may_keep_start:
            found = self._model.evaluate(validation, verbose=0, return_dict=True)
            self._best_val_loss = found[self.plan.judged_by]

    def go_on(self, train: "Batches") -> bool:
        """Take up the state that an earlier run left, if it left one."""
        saved = self.job.journal.unfinished(self.plan.name)
        if saved is None:
            return False
        self._epochs = list(saved.phase.epochs)
        self._best_epoch, self._best_val_loss = saved.phase.best_epoch, saved.best_val_loss
        self._seconds, self.best = saved.phase.seconds, saved.variables.best
        self._model.optimizer.build(self._model.trainable_variables)
        _assign(self._model.variables, saved.variables.model)
        _assign(self._model.optimizer.variables, saved.variables.optimizer)
        train.skip(len(self._epochs))
        return True

    def end_epoch(self, logs: dict[str, float], seconds: float) -> None:
        """Take an epoch's figures, and keep its weights if they are the best so far."""
        rate = float(self._model.optimizer.learning_rate.numpy())
        names = ("loss", "accuracy", f"val_{self.plan.judged_by}", "val_accuracy")
        loss, accuracy, val_loss, val_accuracy = (float(logs.get(name, math.nan)) for name in names)
        self._epochs.append(Epoch(loss, accuracy, val_loss, val_accuracy, rate, seconds))
        if not math.isfinite(loss):
            raise DivergedError(
                f"{self.plan.name}: the loss is no number at a learning rate of {self.plan.learning_rate}: "
                "take a tenth"
            )
        if val_loss < self._best_val_loss:
            self._best_val_loss, self._best_epoch = val_loss, len(self._epochs)
            self.best = self._model.get_weights()
        elif self.plan.schedule == "plateau" and self._without_gain % max(1, self.plan.patience // 2) == 0:
            self._model.optimizer.learning_rate = rate * PLATEAU_FACTOR
        self.job.journal.epoch(self.phase, self._best_val_loss, self._variables)
        self._model.stop_training = self.over

    def _variables(self) -> Variables:
        groups = (self._model.variables, self._model.optimizer.variables)
        model, optimizer = ([variable.numpy() for variable in group] for group in groups)
        return Variables(model, optimizer, self.best)


def _fit(model: Network, train: "Batches", validation: "Batches", course: _Course) -> None:
    """Run Keras's loop over the epochs that are left."""
    from keras import callbacks

    plan, done = course.plan, len(course.phase.epochs)
    began = time.perf_counter()
    with course.job.progress.counter(plan.name, (plan.epochs - done) * len(train)) as advance:

        def begin_epoch(_epoch: int, _logs: object) -> None:
            nonlocal began
            began = time.perf_counter()

        def end_batch(_batch: int, logs: dict[str, float]) -> None:
            advance(f"epoch {len(course.phase.epochs) + 1}/{plan.epochs}  loss {logs['loss']:.3f}")

        def end_epoch(epoch: int, logs: dict[str, float]) -> None:
            figures = "  ".join(f"{name} {value:.3f}" for name, value in logs.items())
            _LOG.info("%s: epoch %s/%s  %s", plan.name, epoch + 1, plan.epochs, figures)
            course.end_epoch(logs, time.perf_counter() - began)

        ours = callbacks.LambdaCallback(
            on_epoch_begin=begin_epoch, on_epoch_end=end_epoch, on_train_batch_end=end_batch
        )
        model.fit(
            train,
            validation_data=validation,
            initial_epoch=done,
            epochs=plan.epochs,
            verbose=0,
            shuffle=False,
            callbacks=[callbacks.TerminateOnNaN(), ours, *_tensorboard(plan, course.job)],
        )


def _tensorboard(plan: Plan, job: Job) -> list[Any]:
    from keras import callbacks

    if job.tensorboard is None:
        return []
    folder = job.tensorboard / plan.name.replace(" ", "-")
    return [callbacks.TensorBoard(str(folder), write_graph=False)]


def _assign(variables: list[Any], values: list[NDArray[Any]]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _optimizer(plan: Plan, options: FitOptions, steps: int) -> Any:  # noqa: ANN401  Keras is untyped
    from keras import optimizers

    rate: Any = plan.learning_rate
    if plan.schedule == "cosine":
        rising = int(plan.warm_up * plan.epochs * steps)
        falling = plan.epochs * steps - rising
        rate = optimizers.schedules.CosineDecay(0.0, falling, warmup_target=rate, warmup_steps=rising)
    return optimizers.SGD(rate, options.momentum) if options.optimizer == "sgd" else optimizers.Adam(rate)


def _loss(head: TrainedHead) -> dict[str, Any]:
    from keras import metrics

    learned = train_task_of_head(head).learned(head)
    return {"loss": learned.loss, "metrics": [getattr(metrics, learned.accuracy)(name="accuracy")]}
