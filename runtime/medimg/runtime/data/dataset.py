"""DATA: labelled images in any of the layouts that the commands take."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError, ImageError
from medimg.runtime.files.class_names import same_class
from medimg.runtime.images.load import Image, load_image, prepare
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.preprocess import Images
from medimg.runtime.ordered import in_order, worker_threads
from medimg.runtime.tasks import TaskName

Split: TypeAlias = Literal["train", "val", "test"]


_SEVERAL = "the images show any number of classes (multi-label), where exactly one is wanted"


@dataclass(frozen=True)
class Sample:
    """One image of a data set."""

    name: str
    """Path relative to the data set's root, or `train[12]` for an image inside an archive."""
    source: Path | NDArray[Any] = field(compare=False, repr=False)
    """The file, or the decoded pixels `(rows, columns[, channels])`."""
    label: int | None = None
    """Index into the data set's labels."""
    patient: str | None = None
    """Whose image it is; images of one patient never stand on both sides of a split."""
    split: Split | None = None
    """The part that the data set itself puts it into."""
    classes: tuple[int, ...] | None = None
    """In a multi-label set, in place of the label: every class that the image shows, maybe none."""
    attributes: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What else a table says of it, by column, such as `sex` or `scanner`."""

    def load(self, rule: ImageRule) -> Image:
        """Give the network's input, `(rule.rows, rule.columns, 3)` uint8 RGB.

        Raises:
            ImageError: it cannot be read; the message begins with its path or name.
        """
        if isinstance(self.source, Path):
            return load_image(self.source, rule)
        try:
            return prepare(self.source, rule)
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from None


@dataclass(frozen=True)
class DataSet:
    """Images and the names of their classes."""

    labels: tuple[str, ...]
    """One name a class; empty where nothing is labelled."""
    samples: tuple[Sample, ...]
    task: TaskName = "multiclass"
    left_out: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Files of a folder that are neither images that can be read nor texts, counted by suffix."""

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, split: Split) -> "DataSet":
        """Give the part that the data set itself calls `train`, `val` or `test`; it may be empty."""
        return self.with_samples(sample for sample in self.samples if sample.split == split)

    def with_samples(self, samples: Iterable[Sample]) -> "DataSet":
        """Give a data set of the same classes with other samples."""
        return replace(self, samples=tuple(samples))

    @property
    def truth(self) -> NDArray[np.int64]:
        """True class of each image, `(images,)`.

        Raises:
            DataError: an image has no label, or the set is multi-label.
        """
        for sample in self.samples:
            if sample.label is None:
                raise DataError(f"{sample.name}: has no label" if sample.classes is None else _SEVERAL)
        return np.array([sample.label for sample in self.samples], np.int64)

    @property
    def targets(self) -> NDArray[np.float32]:
        """What a perfect model would answer, `(images, classes)`: 1 for each class that the image shows.

        Raises:
            DataError: an image has no label.
        """
        targets = np.zeros((len(self), len(self.labels)), np.float32)
        for row, sample in zip(targets, self.samples, strict=True):
            if sample.label is None and sample.classes is None:
                raise DataError(f"{sample.name}: has no label")
            row[list(sample.classes or ()) if sample.label is None else sample.label] = 1
        return targets

    def relabelled(self, labels: tuple[str, ...]) -> "DataSet":
        """Number the classes as a model does.

        Args:
            labels: the model's classes; those without an image are allowed.

        Raises:
            DataError: the data hold a class that the model does not know.
        """
        # A model's own names first: another form of one, such as 1.0 for 1, may be a class of its own there.
        form_of = same_class({*labels, *self.labels})
        forms = {form_of[label]: index for index, label in enumerate(labels)}
        index_of = {**forms, **{label: index for index, label in enumerate(labels)}}
        found = [index_of.get(label, forms.get(form_of[label])) for label in self.labels]
        if unknown := sorted(label for label, index in zip(self.labels, found, strict=True) if index is None):
            raise DataError(
                f"class {unknown[0]!r} of the data is not one of the model's: {', '.join(labels)}"
            )
        numbers = [index for index in found if index is not None]
        samples = (
            replace(
                sample,
                label=None if sample.label is None else numbers[sample.label],
                classes=None if sample.classes is None else tuple(numbers[index] for index in sample.classes),
            )
            for sample in self.samples
        )
        return replace(self, labels=labels, samples=tuple(samples))


def load_batches(
    samples: Sequence[Sample], rule: ImageRule, batch_size: int, threads: int
) -> Iterator[Images]:
    """Decode images in threads and give them in order.

    Args:
        samples: the images.
        rule: how they become the network's input.
        batch_size: images a batch; the last batch may have fewer.
        threads: how many decode at a time; a few batches at most are held in memory.

    Yields:
        `(batch, rule.rows, rule.columns, 3)` uint8 RGB.

    Raises:
        ImageError: an image cannot be read.
    """
    with worker_threads(threads, "decode") as pool:
        images = in_order(pool, lambda sample: sample.load(rule), samples, batch_size + 2 * threads)
        while batch := list(islice(images, batch_size)):
            yield np.stack(batch)
