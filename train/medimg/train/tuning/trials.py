"""One trial: train by the options that were drawn, judge on the validation images, and maybe export and time.

Imports Keras: load it after `start_keras`.
"""

import gc
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics.metrics import Probabilities
from medimg.train.fitting.finetune import HEAD_EPOCHS, SCRATCH_EPOCHS, Trained, assemble, train
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.preparation import Prepared
from medimg.train.keras_files import save
from medimg.train.progress import Progress, T
from medimg.train.tuning.deployment import Deployment, Judges, measure, write_judges
from medimg.train.tuning.options import CONTENDER_MARGIN, TuneOptions
from medimg.train.tuning.search_space import SearchSpace

HYPERBAND_EPOCHS = "tuner/epochs"
"""Where Keras Tuner's hyperband puts the epochs that it grants a trial."""


def most_epochs(base: FitOptions) -> int:
    """Give the epochs that a trial may take, before any fine-tuning."""
    return base.epochs or (HEAD_EPOCHS if base.pretrained else SCRATCH_EPOCHS)


def trial_fields(values: Mapping[str, Any], space: SearchSpace, base: FitOptions) -> dict[str, Any]:
    """Give the fields of FitOptions that an oracle chose; hyperband also shortens the phases.

    Args:
        values: what Keras Tuner holds.
        space: what it chose from.
        base: the options that stay fixed.
    """
    fields = space.drawn(values)
    if HYPERBAND_EPOCHS in values:
        epochs = int(values[HYPERBAND_EPOCHS])
        share = epochs / most_epochs(base)
        fields |= {"epochs": epochs, "fine_tune_epochs": math.ceil(share * base.fine_tune_epochs)}
    return fields


class TrialRunner:
    """Runs trials on images that were prepared once; a context manager, since judging needs files."""

    def __init__(self, prepared: Prepared, space: SearchSpace, tuning: TuneOptions, job: Job) -> None:
        """Take what all trials share.

        Args:
            prepared: images and pretrained base.
            space: what the oracle chooses from.
            tuning: objective and number of executions.
            job: its options are those that stay fixed.
        """
        self._prepared, self._space, self._tuning = prepared, space, tuning
        self._job = replace(job, progress=_Bars(job.progress))
        self._stack = ExitStack()

    def __enter__(self) -> "TrialRunner":
        # Collecting after each trial is cheap where it need not look at all of TensorFlow.
        gc.freeze()
        self._stack.callback(gc.unfreeze)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def __call__(self, values: Mapping[str, Any], done: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Run a trial.

        Args:
            values: what the oracle chose.
            done: the figures of the trials that are done.

        Returns:
            Figures by name, see `TrialResult.figures`; the objective is among them.

        Raises:
            DivergedError: the loss is no number.
            DeploymentError: export or timing failed.
        """
        begin = time.perf_counter()
        options = replace(self._job.options, **trial_fields(values, self._space, self._job.options))
        runs = [
            train(self._prepared, replace(self._job, options=replace(options, seed=options.seed + number)))
            for number in range(self._tuning.executions_per_trial)
        ]
        # What Keras leaves behind is garbage in cycles: the last trial's weights among it.
        gc.collect()
        judged = [self._judge(run) for run in runs]
        found = {name: statistics.fmean(figures[name] for figures in judged) for name in judged[0]}
        found["seconds"] = time.perf_counter() - begin
        if self._tuning.objective == "deployed":
            found |= self._deploy(runs[0], found["val-accuracy"], done)
        return found

    def _judge(self, trained: Trained) -> dict[str, float]:
        truth = self._prepared.images.validation.truth
        figures = validation_figures(truth, trained.validation_probabilities())
        return {**figures, "epochs": float(sum(len(phase.epochs) for phase in trained.phases))}

    def _deploy(
        self, trained: Trained, accuracy: float, done: Sequence[Mapping[str, float]]
    ) -> dict[str, float]:
        """Export and time a contender; what is none, or is too slow, scores below all that can be used."""
        best = max((figures["val-accuracy"] for figures in done), default=accuracy)
        if accuracy < best - CONTENDER_MARGIN:
            return {"deployed": accuracy - 1}
        found = self._export(trained)
        assert self._tuning.latency_budget_ms is not None, "TuneOptions demands it for this objective"
        in_time = found.latency_ms <= self._tuning.latency_budget_ms
        return {
            "deployed": found.accuracy if in_time else found.accuracy - 1,
            "int8-accuracy": found.accuracy,
            "latency-ms": found.latency_ms,
            "export-seconds": found.seconds,
        }

    def _export(self, trained: Trained) -> Deployment:
        options, labels = trained.options, self._prepared.labels
        spec = ModelSpec(labels, options.image, options.intensity, head=options.head)
        with temporary_folder("trial") as folder:
            model = folder / "trial.keras"
            save(assemble(trained, self._prepared), spec, model)
            return measure(model, self._judges, self._job.threads)

    @cached_property
    def _judges(self) -> Judges:
        folder = self._stack.enter_context(temporary_folder("judges"))
        images = self._prepared.images
        return write_judges(images.train, images.validation, self._prepared.labels, folder)


class _Bars(Progress):
    """Shows how far decoding and features have come, but no line an epoch: there are too many trials."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown

    def track(self, items: Iterable[T], label: str, length: int) -> Iterator[T]:
        """Give the items one by one."""
        return self._shown.track(items, label, length)


def validation_figures(truth: NDArray[Any], probabilities: Probabilities) -> dict[str, float]:
    """Judge probabilities.

    Args:
        truth: `(images,)` classes, or `(images, classes)` 0 and 1 where several may be true.
        probabilities: `(images, classes)`.

    Returns:
        `val-accuracy`: share of right classes, or of right answers over images and classes where several may
        be true; `val-auc`: mean over the classes of the area under the ROC curve, each class against the
        others; `val-loss`: mean cross-entropy, every image counting alike.
    """
    from sklearn.metrics import log_loss, roc_auc_score

    values = np.asarray(probabilities, np.float64)
    values = np.clip(values, 1e-7, 1 - 1e-7)
    if truth.ndim == 1:
        columns: NDArray[Any] = np.eye(values.shape[1])[truth]
        accuracy = np.mean(values.argmax(axis=1) == truth)
        loss = log_loss(columns, values / values.sum(axis=1, keepdims=True))
    else:
        columns = truth
        accuracy = np.mean((values > 0.5) == (columns > 0.5))
        loss = -np.mean(columns * np.log(values) + (1 - columns) * np.log(1 - values))
    return {
        "val-accuracy": float(accuracy),
        "val-auc": float(roc_auc_score(columns, values, average="macro")),
        "val-loss": float(loss),
    }
