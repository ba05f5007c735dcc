"""`fit`: from a data set to a trained, self-describing Keras file."""

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medimg.runtime.containers import file_sha256
from medimg.runtime.cpus import usable_cpus
from medimg.runtime.data import read_data
from medimg.runtime.metrics import Evaluation
from medimg.runtime.metrics import evaluate as score
from medimg.runtime.spec import ModelSpec
from medimg.train.answers import keras_answer
from medimg.train.cache import BATCH
from medimg.train.division import Division, divide
from medimg.train.keras_files import check_output, save
from medimg.train.keras_setup import Policy
from medimg.train.networks import Network, as_columns
from medimg.train.options import FitOptions, Job
from medimg.train.parts import Part
from medimg.train.phases import Phase
from medimg.train.preparation import Prepared, prepare
from medimg.train.progress import Progress
from medimg.train.simulation import is_simulated
from medimg.train.store import open_store
from medimg.train.weights import LoadedWeights

if TYPE_CHECKING:
    from medimg.train.finetune import Trained


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
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Train an image classifier and save it as a float32 Keras model that carries its `ModelSpec`.

    A part of the data that is named `test` is not looked at.

    Args:
        data: a data set, in any layout that `medimg.runtime.data.read_data` knows.
        output: the Keras file to write, `.h5` or `.keras`.
        options: architecture, rates, epochs, split.
        threads: processor threads; by default those this process may use.
        cache_dir: keeps decoded images and frozen activations for later runs; by default they are removed.
        progress: shows how far it has come.

    Returns:
        How it went; its figures are those of the saved model on the validation images, in float32.

    Raises:
        DataError: the data cannot be understood, or are too few.
        ImageError: an image cannot be read.
        WeightsError: the pretrained weights cannot be had.
        UsageError: options make no sense, or the output cannot be written.
        DivergedError: the loss became no number.
    """
    started = time.perf_counter()
    options, threads, progress = options or FitOptions(), threads or usable_cpus(), progress or Progress()
    output = Path(output)
    check_output(output)
    division = divide(read_data(data), options)
    with open_store(Path(cache_dir) if cache_dir else None) as store:
        prepared, trained, network, figures = _train(division, Job(options, store, threads, progress))
    spec = ModelSpec(
        division.train.labels,
        options.image,
        options.intensity,
        head=options.head,
        simulated_data=is_simulated(data),
        tools={name: version(name) for name in ("medimg", "keras", "tensorflow")},
    )
    save(network, spec, output)
    return FitResult(
        output=str(output),
        output_sha256=file_sha256(output),
        options=options,
        labels=spec.labels,
        train_images=len(division.train),
        validation_images=len(division.validation),
        validation_from=division.validation_from,
        simulated_data=spec.simulated_data,
        precision_policy=prepared.policy,
        weights=prepared.base.loaded if prepared.base else None,
        phases=trained.phases,
        validation=figures,
        seconds=time.perf_counter() - started,
    )


def judge(network: Network, images: Part, labels: tuple[str, ...], job: Job) -> Evaluation:
    """Measure a float32 network on images; all its figures are those of the saved model."""
    answer = keras_answer(network, job.options.intensity)
    starts = range(0, len(images), BATCH)
    predicted = [
        as_columns(answer(images.inputs[start : start + BATCH]), job.options.head).argmax(axis=1)
        for start in job.progress.track(starts, "judge in float32", len(starts))
    ]
    return score(images.truth, np.concatenate(predicted), labels)


def _train(division: Division, job: Job) -> tuple[Prepared, "Trained", Network, Evaluation]:
    prepared = prepare(division, job)
    from medimg.train.finetune import assemble, train

    trained = train(prepared, job)
    network = assemble(trained, prepared)
    return prepared, trained, network, judge(network, prepared.images.validation, prepared.labels, job)
