"""What a model, Keras file or exported artefact, answers on a data set."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.classifier import Classifier
from medimg.runtime.data import DataSet, Sample, load_batches
from medimg.runtime.errors import ModelError
from medimg.runtime.model.applicability import require_all_applicable
from medimg.runtime.model.preprocess import Images, to_network_input
from medimg.runtime.model.spec import Intensity, ModelSpec
from medimg.runtime.tasks import Probabilities, TaskName, task_named, task_of_head
from medimg.runtime.tasks.probabilities import answered, require_columns, require_numbers
from medimg.train.evaluation.keras_process import opened
from medimg.train.keras_files import SUFFIXES
from medimg.train.networks.build import Network
from medimg.train.progress import Progress

Answer: TypeAlias = Callable[[Images], Probabilities]
"""From `(batch, rows, columns, 3)` uint8 RGB to `(batch, classes)` float32."""


@dataclass(frozen=True)
class Answers:
    """A model's answers beside the truth."""

    labels: tuple[str, ...]
    task: TaskName
    shown: NDArray[np.bool_]
    """`(images, classes)`: which classes each image truly shows."""
    probabilities: Probabilities
    """`(images, classes)`."""
    samples: tuple[Sample, ...]
    backend: str
    """`keras`, or the runtime's back end."""
    precision: str
    """What really ran."""
    failed: tuple[str, ...] = ()
    """Names of images that were left out, since the model gives no number for them."""

    @property
    def decided(self) -> NDArray[np.bool_]:
        """Which classes were decided, `(images, classes)`."""
        return task_named(self.task).decided(self.probabilities)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether all that was decided for an image is true, `(images,)`."""
        return np.asarray((self.shown == self.decided).all(axis=1))

    @property
    def patients(self) -> tuple[str | None, ...]:
        """Whose image each is, where that is known."""
        return tuple(sample.patient for sample in self.samples)

    def chosen(self, places: NDArray[np.int64]) -> "Answers":
        """Keep some of the images."""
        return replace(
            self,
            shown=self.shown[places],
            probabilities=self.probabilities[places],
            samples=tuple(self.samples[place] for place in places),
        )


def one_hot(classes: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Flag each image's class, `(images,)` to `(images, count)`."""
    return np.asarray(classes[:, None] == np.arange(count))


def ask(
    model: Path,
    spec: ModelSpec,
    dataset: DataSet,
    *,
    batch_size: int,
    backend: str,
    threads: int,
    progress: Progress,
    device: str = "auto",
    leave_out_failed: bool = False,
) -> Answers:
    """Run a model on labelled images; a Keras file runs in float32, whatever it was saved under.

    Args:
        model: a Keras file, or an artefact of medimg-export.
        spec: the model's; a Keras file's outputs get its temperature, which an artefact has in its graph.
        dataset: its labels must be the model's, by name.
        batch_size: images at once.
        backend: the runtime's back end for an artefact.
        threads: processor threads.
        progress: shows how far it has come.
        device: of that back end.
        leave_out_failed: whether images for which the model gives no number are left out and named, as
            long as there are others.

    Raises:
        DataError: the data hold a class that the model does not know.
        ImageError: an image cannot be read, or the model is not for it.
        ModelError: the model cannot be used.
        NoNumberError: it gives no number for an image.
    """
    if spec.intensity.rule == "unspecified":
        raise ModelError(f"{model}: its preprocessing is unspecified, so no image can be given to it")
    known = dataset.relabelled(spec.labels)
    require_all_applicable((sample.source for sample in known.samples), spec.allowed)
    shown = known.targets > 0
    batches = load_batches(known.samples, spec.image, batch_size, threads)
    steps = math.ceil(len(known) / batch_size)
    with _open(model, spec, (backend, device), threads) as runner:
        tracked = progress.track(batches, f"evaluate on {len(known)} images", steps)
        found = (require_columns(runner.answer(batch), spec, str(model)) for batch in tracked)
        probabilities = np.concatenate(list(found))
    names, is_number = [sample.name for sample in known.samples], answered(probabilities)
    if not leave_out_failed or not is_number.any():
        require_numbers(probabilities, names)
    answers = Answers(
        spec.labels, spec.task, shown, probabilities, known.samples, runner.backend, runner.precision
    )
    failed = tuple(names[place] for place in np.flatnonzero(~is_number))
    return replace(answers.chosen(np.flatnonzero(is_number)), failed=failed) if failed else answers


def keras_answer(network: Network, intensity: Intensity) -> Answer:
    """Give a Keras model, in float32, as a function of image batches."""

    def answer(images: Images) -> Probabilities:
        outputs: Probabilities = network.predict_on_batch(to_network_input(images, intensity))
        return outputs

    return answer


@dataclass(frozen=True)
class _Runner:
    answer: Answer
    backend: str
    precision: str


@contextmanager
def _open(path: Path, spec: ModelSpec, where: tuple[str, str], threads: int) -> Iterator[_Runner]:
    if path.suffix in SUFFIXES:
        with opened(path, spec.intensity, threads) as model:
            yield _Runner(
                lambda images: task_named(spec.task).tempered(
                    task_of_head(spec.head).finish(model.answer(images), spec.head), spec.temperature
                ),
                "keras",
                "fp32",
            )
        return
    with Classifier(path, backend=where[0], device=where[1], threads=threads) as classifier:
        used = classifier.backend
        yield _Runner(classifier.probabilities, used.name, used.precision)
