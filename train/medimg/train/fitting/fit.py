"""`fit`: from a data set to a trained, self-describing Keras file."""

import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.applicability import require_all_applicable
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.spec import HeldOut, ModelSpec
from medimg.runtime.optional import require
from medimg.runtime.statistics.metrics import Evaluation
from medimg.runtime.tasks import task_of_head
from medimg.train.data.array_store import key_of, open_store
from medimg.train.data.decoded_images import BATCH
from medimg.train.data.division import Division, read_division
from medimg.train.data.duplicates import Duplicates
from medimg.train.evaluation.answers import keras_answer, one_hot
from medimg.train.fitting.checkpoint import Checkpoint, training_folder
from medimg.train.fitting.job import Job
from medimg.train.fitting.journal import Journal, Phase
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.preparation import Prepared, prepare
from medimg.train.intended_use import Usage
from medimg.train.keras_files import check_output, save
from medimg.train.keras_setup import Policy
from medimg.train.networks.build import Network
from medimg.train.networks.weights import LoadedWeights
from medimg.train.progress import Progress
from medimg.train.simulation.simulate import is_simulated
from medimg.train.tasks import train_task_of_head

if TYPE_CHECKING:
    from medimg.train.fitting.finetune import Trained


@dataclass(frozen=True)
class FitResult:
    """How a training went, and the figures of the saved float32 model."""

    output: str
    """The Keras file."""
    output_sha256: str
    options: FitOptions
    labels: tuple[str, ...]
    train_images: int
    validation_images: int
    validation_from: str
    """`val`, the part that the data name, or `split`, held out of the training part."""
    test_images: int
    """Images of the part `test`, which were not looked at."""
    unreadable: tuple[str, ...]
    """Images left out because they cannot be read, each with the reason."""
    duplicates: Duplicates
    """Validation images that the training part holds as well."""
    simulated_data: bool
    precision_policy: Policy
    """What training computed in; the saved model computes in float32."""
    weights: LoadedWeights | None
    """The pretrained weights that training began with."""
    phases: tuple[Phase, ...]
    validation: Evaluation
    """Of the saved model, in float32."""
    seconds: float


def fit(
    data: str | Path,
    output: str | Path,
    options: FitOptions | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    cache_dir: str | Path | None = None,
    resume: bool = False,
    restart: bool = False,
    history: str | Path | None = None,
    tensorboard: str | Path | None = None,
    usage: Usage | None = None,
) -> FitResult:
    """Train an image classifier and save it as a float32 Keras model that carries its `ModelSpec`.

    Images of a part that is named `test` are not looked at. Meanwhile a folder `OUTPUT.training` holds the
    state after each epoch; a training that was killed goes on from there, to the same model.

    Args:
        data: a data set, in any layout that `medimg.runtime.data.read_data` knows.
        output: the Keras file to write, `.h5` or `.keras`.
        options: architecture, rates, epochs, split.
        threads: processor threads; by default those this process may use.
        progress: shows how far it has come.
        cache_dir: keeps decoded images and frozen activations for later runs; by default they are removed.
        resume: go on with a training that was broken off; where there is none, begin.
        restart: begin anew, whatever was broken off.
        history: a CSV file to write, with a row an epoch.
        tensorboard: a folder for TensorBoard's logs.
        usage: intended use and what the model may be given, for its spec.

    Returns:
        How it went; its figures are those of the saved model on the validation images, in float32.

    Raises:
        DataError: the data cannot be understood, are too few, or too many of them cannot be read.
        NotApplicableError: an image is not of the kind that `usage` allows.
        WeightsError: the pretrained weights cannot be had.
        UsageError: options make no sense, the output cannot be written, or a training was broken off and
            neither `resume` nor `restart` is asked for.
        MissingDependencyError: TensorBoard's logs are asked for, and it is not installed.
        DivergedError: the loss became no number.
    """
    started = time.perf_counter()
    options, threads, progress = options or FitOptions(), threads or usable_cpus(), progress or Progress()
    output = Path(output)
    check_output(output)
    if tensorboard:
        require("tensorboard", "train")
    with training_folder(output, resume=resume, restart=restart) as folder:
        division = read_division(Path(data), options, threads, options.task)
        used = (*division.train.samples, *division.validation.samples)
        require_all_applicable((sample.source for sample in used), (usage or Usage()).allowed)
        with open_store(Path(cache_dir) if cache_dir else None) as store:
            job = Job(
                store, threads, progress, options, tensorboard=Path(tensorboard) if tensorboard else None
            )
            fitted = _fit(division, job, folder, Path(history) if history else None)
        spec = (usage or Usage()).applied(_spec(fitted, division, is_simulated(data)))
        save(fitted.network, spec, output)
    prepared = fitted.prepared
    return FitResult(
        output=str(output),
        output_sha256=file_sha256(output),
        options=options,
        labels=spec.labels,
        train_images=len(prepared.images.train),
        validation_images=len(prepared.images.validation),
        validation_from=division.validation_from,
        test_images=division.test_images,
        unreadable=prepared.unreadable,
        duplicates=prepared.duplicates,
        simulated_data=spec.simulated_data,
        precision_policy=prepared.policy,
        weights=prepared.base.loaded if prepared.base else None,
        phases=fitted.trained.phases,
        validation=fitted.validation,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Fitted:
    prepared: Prepared
    trained: "Trained"
    network: Network
    """The whole, in float32."""
    validation: Evaluation


def _fit(division: Division, job: Job, folder: Path, history: Path | None) -> _Fitted:
    prepared = prepare(division, job)
    from medimg.train.fitting.finetune import assemble, train

    checkpoint = Checkpoint(folder, _fingerprint(prepared, job.options))
    trained = train(prepared, replace(job, journal=Journal(checkpoint, history)))
    network = assemble(trained, prepared)
    return _Fitted(prepared, trained, network, judge(network, prepared, job))


def _fingerprint(prepared: Prepared, options: FitOptions) -> dict[str, str]:
    """Collect what the result of a training depends on."""
    images = (prepared.images.train, prepared.images.validation)
    truth = (np.ascontiguousarray(part.truth).tobytes() for part in images)
    return {
        **{name: str(value) for name, value in vars(options).items()},
        "weights": prepared.base.loaded.sha256 if prepared.base else "none",
        "precision policy": prepared.policy,
        "Keras": version("keras"),
        "TensorFlow": version("tensorflow"),
        "set of images": key_of(*(part.key for part in images), *truth)[:12],
    }


def _spec(fitted: _Fitted, division: Division, simulated: bool) -> ModelSpec:
    options = fitted.trained.options
    held_out = HeldOut(options.validation_fraction, options.seed, options.group_by)
    return ModelSpec(
        fitted.prepared.labels,
        options.image,
        options.intensity,
        task=fitted.prepared.task,
        head=options.head,
        simulated_data=simulated,
        held_out=held_out if division.validation_from == "split" else None,
        tools={name: version(name) for name in ("medimg", "keras", "tensorflow")},
    )


def judge(network: Network, prepared: Prepared, job: Job) -> Evaluation:
    """Measure a float32 network on the validation images; its figures are those of the saved model."""
    images, head = prepared.images.validation, job.options.head
    task = task_of_head(head)
    answer = keras_answer(network, job.options.intensity)
    starts = range(0, len(images), BATCH)
    probabilities = np.concatenate(
        [
            task.finish(answer(images.inputs[start : start + BATCH]), head)
            for start in job.progress.track(starts, "judge in float32", len(starts))
        ]
    )
    decided = task.decided(probabilities)
    shown = images.truth > 0 if images.truth.ndim == 2 else one_hot(images.truth, len(prepared.labels))
    return train_task_of_head(head).count(shown, decided, prepared.labels)
