"""Class names: whose they are, and in which order a network was trained on them.

Keras's own readers and torchvision sort the names of folders as text: 0, 1, 10, 2. Where names are numbers,
people expect another order, and the model's own answers decide.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medimg.export.errors import SourceError
from medimg.export.sources.base import Source
from medimg.runtime.data import DataSet, load_batches
from medimg.runtime.errors import UsageError
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics import metrics
from medimg.runtime.tasks import Probabilities, task_named, task_of_head

MOST_IMAGES = 256
BATCH = 16
CLEARLY_BETTER = 0.3
"""Gain of accuracy by other names from which on the given ones are doubted."""


@dataclass(frozen=True)
class DataLabels:
    """Class names as a data set gives them."""

    names: tuple[str, ...] = ()
    """In text order, or in the order of an archive's own numbers."""
    as_numbers: tuple[str, ...] = ()
    """The same in the order of their numbers, where that is another one."""
    said: str = ""
    """Where they come from, for a message."""


def labels_of(data: DataSet | None) -> DataLabels:
    """Read the class names of validation or calibration data."""
    if data is None or not data.labels:
        return DataLabels()
    if not isinstance(data.samples[0].source, Path):
        return DataLabels(data.labels, said="the data archive, in the order of its numbers")
    names = tuple(sorted(data.labels))
    numbers = all(name.isascii() and name.isdigit() for name in names)
    by_number = tuple(sorted(names, key=lambda name: (int(name), name))) if numbers else names
    said = "the data, in text order, as Keras's own readers sort them"
    return DataLabels(names, by_number if by_number != names else (), said)


def decide_order(
    source: Source, spec: ModelSpec, found: DataLabels, images: DataSet, threads: int
) -> tuple[ModelSpec, list[str]]:
    """Choose between text order and the order of numbers by Keras's answers on labelled images.

    Args:
        source: the Keras model.
        spec: its labels are those of `found`.
        found: names whose two orders differ.
        images: labelled with them.
        threads: processor threads for decoding.

    Raises:
        UsageError: the scaling is not known, or neither order is better beyond chance.
    """
    orders = f"as text ({_shown(found.names)}) or by number ({_shown(found.as_numbers)})"
    question = f"the classes of the data are numbers, in order {orders}: say the order with --labels A,B,C"
    labelled = images.with_samples(item for item in images.samples if item.label is not None)
    if spec.intensity.rule == "unspecified" or not task_named(spec.task).exclusive or not len(labelled):
        raise UsageError(f"{question}, or --preprocessing, so that Keras's answers on the data decide")
    places = np.random.default_rng(0).permutation(len(labelled))[:MOST_IMAGES]
    drawn = labelled.with_samples(labelled.samples[place] for place in places)
    predicted = _answers(source, spec, drawn, threads).argmax(axis=1)
    right = {names: _right(predicted, drawn, names) for names in (found.names, found.as_numbers)}
    best, other = sorted(right, key=lambda names: -float(right[names].mean()))
    best_share, other_share = (float(right[names].mean()) for names in (best, other))
    figures = f"Keras is right on {best_share:.3f} of {len(drawn)} images so, else on {other_share:.3f}"
    if metrics.paired_drop_ci95(right[best], right[other])[0] <= 0:
        raise UsageError(f"{question}; the data do not tell: {figures}")
    how = "as text" if best == found.names else "by number"
    return spec.with_(labels=best), [f"class names come from the data, ordered {how}: {figures}"]


def doubts(spec: ModelSpec, reference: Probabilities, truth: NDArray[np.int64] | None) -> list[str]:
    """Say if Keras would be right far more often with the names in another order.

    Args:
        spec: the artefact's.
        reference: `(images, classes)`: Keras's answers.
        truth: `(images,)` true classes, if known.
    """
    if truth is None or not len(truth):
        return []
    predicted = reference.argmax(axis=1)
    counts = metrics.confusion_matrix(truth, predicted, spec.classes)
    meant = counts.argmax(axis=0)
    given, best = metrics.accuracy(truth, predicted), metrics.accuracy(truth, meant[predicted])
    if set(meant.tolist()) != set(range(spec.classes)) or best - given < CLEARLY_BETTER:
        return []
    order = ",".join(spec.labels[place] for place in meant)
    return [
        f"Keras is right on {given:.3f} of the labelled images, and on {best:.3f} with the class names in "
        f"another order: are they rather --labels {order}?"
    ]


def check_names(path: Path, spec: ModelSpec, found: DataLabels) -> None:
    """Refuse names that a multi-label model cannot have.

    Raises:
        SourceError: a name is several classes, joined.
    """
    if (
        not task_named(spec.task).exclusive
        and spec.labels == found.names
        and any("|" in name for name in found.names)
    ):
        raise SourceError(
            f"{path}: its classes do not exclude one another, the data's names are joined: --labels"
        )


def _answers(source: Source, spec: ModelSpec, images: DataSet, threads: int) -> Probabilities:
    batches = load_batches(images.samples, spec.image, BATCH, threads)
    parts = [source.predict(to_network_input(batch, spec.intensity)) for batch in batches]
    return task_of_head(spec.head).finish(np.concatenate(parts), spec.head)


def _right(predicted: NDArray[np.int64], images: DataSet, names: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.asarray(images.relabelled(names).truth == predicted)


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
