"""`evaluate`: the figures of a model, Keras file or exported artefact, on labelled images."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from medimg.runtime.classifier import Classifier
from medimg.runtime.cpus import usable_cpus
from medimg.runtime.data import DataSet, Split, load_batches, read_data
from medimg.runtime.errors import DataError, ModelError
from medimg.runtime.metrics import Evaluation, Probabilities
from medimg.runtime.metrics import evaluate as score
from medimg.runtime.preprocess import Images, to_network_input
from medimg.runtime.spec import Intensity, ModelSpec
from medimg.train.keras_files import SUFFIXES, load_float32
from medimg.train.keras_setup import start_keras
from medimg.train.networks import Network
from medimg.train.progress import Progress
from medimg.train.simulation import is_simulated


@dataclass(frozen=True)
class ModelEvaluation:
    """A model's figures on a data set, and what ran to get them."""

    model: str
    data: str
    part: str
    """`train`, `val` or `test`, or `all` where the data are not divided."""
    simulated_data: bool
    """Whether the images are simulated."""
    backend: str
    """`keras`, or the runtime's back end."""
    precision: str
    """What really ran."""
    evaluation: Evaluation


Answer: TypeAlias = Callable[[Images], Probabilities]
"""From `(batch, rows, columns, 3)` uint8 RGB to `(batch, classes)` float32."""


@dataclass(frozen=True)
class _Runner:
    answer: Answer
    backend: str
    precision: str


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    split: Split | None = None,
    batch_size: int = 32,
    backend: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> ModelEvaluation:
    """Measure a model on labelled images; a Keras file runs in float32, whatever it was saved under.

    Args:
        model: a Keras file that carries a spec, or an artefact of medimg-export.
        data: a data set; its labels must be the model's, by name.
        split: the part to use; by default `test`, or everything where the data are not divided.
        batch_size: images at once.
        backend: the runtime's back end for an exported artefact.
        threads: processor threads; by default those this process may use.
        progress: shows how far it has come.

    Raises:
        DataError: the data lack that part, or hold a class that the model does not know.
        ImageError: an image cannot be read.
        ModelError: the model cannot be used.
    """
    model, threads, progress = Path(model), threads or usable_cpus(), progress or Progress()
    dataset, part = choose_part(read_data(data), split, str(data))
    spec = ModelSpec.read(model)
    if spec.intensity.rule == "unspecified":
        raise ModelError(f"{model}: its preprocessing is unspecified, so no image can be given to it")
    known = dataset.relabelled(spec.labels)
    batches = load_batches(known.samples, spec.image, batch_size, threads)
    steps = math.ceil(len(known) / batch_size)
    with _open(model, spec, backend, threads) as runner:
        tracked = progress.track(batches, f"evaluate on {len(known)} images", steps)
        predicted = np.concatenate([runner.answer(batch).argmax(axis=1) for batch in tracked])
    figures = score(known.truth, predicted, spec.labels)
    return ModelEvaluation(
        str(model), str(data), part, is_simulated(data), runner.backend, runner.precision, figures
    )


def choose_part(dataset: DataSet, split: Split | None, name: str) -> tuple[DataSet, str]:
    """Choose the images to evaluate on.

    Args:
        dataset: the data.
        split: the part asked for, or None for `test`, or everything where nothing is divided.
        name: the data's name in messages.

    Raises:
        DataError: there is no such part.
    """
    parts = sorted({sample.split for sample in dataset.samples if sample.split})
    if split is None and not parts:
        return dataset, "all"
    wanted = dataset.part(split or "test")
    if not len(wanted):
        has = f"has {' and '.join(parts)}" if parts else "is not divided"
        raise DataError(f"{name}: has no part named {split or 'test'}; it {has} (see --split)")
    return wanted, split or "test"


def keras_answer(network: Network, intensity: Intensity) -> Answer:
    """Give a Keras model, in float32, as a function of image batches."""

    def answer(images: Images) -> Probabilities:
        probabilities: Probabilities = network.predict_on_batch(to_network_input(images, intensity))
        return probabilities

    return answer


@contextmanager
def _open(path: Path, spec: ModelSpec, backend: str, threads: int) -> Iterator[_Runner]:
    if path.suffix in SUFFIXES:
        start_keras(threads)
        yield _Runner(keras_answer(load_float32(path), spec.intensity), "keras", "fp32")
        return
    with Classifier(path, backend=backend, threads=threads) as classifier:
        used = classifier.backend
        yield _Runner(classifier.probabilities, used.name, used.precision)
