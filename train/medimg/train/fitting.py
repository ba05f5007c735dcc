"""`fit`: from a data set to a trained, self-describing Keras file."""

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from medimg.runtime.containers import file_sha256
from medimg.runtime.cpus import usable_cpus
from medimg.runtime.data import read_data
from medimg.runtime.metrics import Evaluation
from medimg.runtime.metrics import evaluate as score
from medimg.runtime.spec import ModelSpec
from medimg.train.answers import keras_answer
from medimg.train.cache import BATCH, cache_images
from medimg.train.division import Division, class_weights, divide
from medimg.train.keras_files import check_output, save
from medimg.train.keras_setup import Policy, choose_policy, start_keras
from medimg.train.networks import Network, build
from medimg.train.options import FitOptions, Job
from medimg.train.phases import Phase
from medimg.train.progress import Progress
from medimg.train.simulation import is_simulated
from medimg.train.store import open_store
from medimg.train.weights import LoadedWeights, imagenet_weights, load_weights


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
    pretrained = _find_weights(options)
    with open_store(Path(cache_dir) if cache_dir else None) as store:
        trained = _train(division, pretrained, Job(options, store, threads, progress))
    spec = ModelSpec(
        division.train.labels,
        options.image,
        options.intensity,
        simulated_data=is_simulated(data),
        tools={name: version(name) for name in ("medimg", "keras", "tensorflow")},
    )
    save(trained.network, spec, output)
    return FitResult(
        output=str(output),
        output_sha256=file_sha256(output),
        options=options,
        labels=spec.labels,
        train_images=len(division.train),
        validation_images=len(division.validation),
        validation_from=division.validation_from,
        simulated_data=spec.simulated_data,
        precision_policy=trained.policy,
        weights=trained.weights,
        phases=trained.phases,
        validation=trained.validation,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Trained:
    network: Network
    policy: Policy
    weights: LoadedWeights | None
    phases: tuple[Phase, ...]
    validation: Evaluation


def _train(division: Division, pretrained: Path | None, job: Job) -> _Trained:
    start_keras(job.threads, job.options.seed)
    from medimg.train.batches import Part
    from medimg.train.finetune import Parts, fine_tune, train_from_scratch

    options, classes = job.options, len(division.train.labels)
    policy = choose_policy(options.precision_policy)
    network = build(options, classes, policy)
    weights = load_weights(network, pretrained) if pretrained else None
    counts = class_weights(division.train, options)
    train, validation = (
        Part(decoded.images, decoded.dataset.truth, counts[decoded.dataset.truth], decoded.key)
        for decoded in (
            cache_images(division.train, job, "training images"),
            cache_images(division.validation, job, "validation images"),
        )
    )
    method = fine_tune if weights else train_from_scratch
    phases = method(network, Parts(train, validation), job)
    final = build(options, classes, "float32")
    final.set_weights(network.get_weights())
    answer = keras_answer(final, options.intensity)
    starts = range(0, len(validation), BATCH)
    predicted = [
        answer(validation.inputs[start : start + BATCH]).argmax(axis=1)
        for start in job.progress.track(starts, "judge in float32", len(starts))
    ]
    judged = score(validation.truth, np.concatenate(predicted), division.train.labels)
    return _Trained(final, policy, weights, phases, judged)


def _find_weights(options: FitOptions) -> Path | None:
    if options.pretrained == "imagenet":
        return imagenet_weights()
    return Path(options.pretrained) if options.pretrained else None
