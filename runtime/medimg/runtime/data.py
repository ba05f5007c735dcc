"""DATA: labelled images in any of the layouts that the commands take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError, ImageError
from medimg.runtime.images import Image, load_image, prepare
from medimg.runtime.ordered import in_order, worker_threads
from medimg.runtime.paths import walk_images
from medimg.runtime.preprocess import Images
from medimg.runtime.spec import ImageRule

Split: TypeAlias = Literal["train", "val", "test"]
__all__ = ["DataSet", "Sample", "Split", "load_batches", "read_data", "stratified_split", "walk_images"]


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

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, split: Split) -> "DataSet":
        """Give the part that the data set itself calls `train`, `val` or `test`; it may be empty."""
        return DataSet(self.labels, tuple(sample for sample in self.samples if sample.split == split))

    @property
    def truth(self) -> NDArray[np.int64]:
        """True class of each image, `(images,)`.

        Raises:
            DataError: an image has no label.
        """
        for sample in self.samples:
            if sample.label is None:
                raise DataError(f"{sample.name}: has no label")
        return np.array([sample.label for sample in self.samples], np.int64)

    def relabelled(self, labels: tuple[str, ...]) -> "DataSet":
        """Number the classes as a model does.

        Args:
            labels: the model's classes; those without an image are allowed.

        Raises:
            DataError: the data hold a class that the model does not know.
        """
        if unknown := sorted(set(self.labels) - set(labels)):
            raise DataError(
                f"class {unknown[0]!r} of the data is not one of the model's: {', '.join(labels)}"
            )
        numbers = [labels.index(label) for label in self.labels]
        samples = (
            sample if sample.label is None else replace(sample, label=numbers[sample.label])
            for sample in self.samples
        )
        return DataSet(labels, tuple(samples))


def read_data(path: str | Path, *, labelled: bool = True) -> DataSet:
    """Read a data set, whichever layout it has; images in files are found, not yet opened.

    - a folder with a folder per class, or `train/ val/ test/` each holding such;
    - with `labelled=False`, any folder of images;
    - a CSV file with the columns `path,label[,patient][,split]`, paths relative to the file;
    - a CIFAR-10 folder in the python layout;
    - a MedMNIST `.npz`.

    Labels are sorted by name, samples by path.

    Args:
        path: the folder or file.
        labelled: whether every image must have a label, and there must be two classes or more.

    Raises:
        DataError: the layout is none of these, or it holds no images, or (labelled) fewer than two classes.
    """
    from medimg.runtime import data_readers

    return data_readers.read(Path(path), labelled=labelled)


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


def stratified_split(dataset: DataSet, fraction: float = 0.3, seed: int = 0) -> tuple[DataSet, DataSet]:
    """Divide a labelled data set in two, each class in the same proportion.

    Images of one patient stay together: patients are drawn, not images, among those whose images show the
    same classes, so that the shares are as near to `fraction` as whole patients allow. An image without a
    patient counts as a patient of its own. Both parts keep the order of the data set.

    Args:
        dataset: labelled images.
        fraction: the second part's share of each class, between 0 and 1.
        seed: the same seed gives the same parts.

    Returns:
        The part with `1 - fraction` of the images, and the part with `fraction`.

    Raises:
        DataError: a class has too few images or patients to be in both parts.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the share {fraction} of a split is not between 0 and 1")
    truth = dataset.truth
    random = np.random.default_rng(seed)
    drawn: set[int] = set()
    for groups in _strata(dataset, truth):
        drawn.update(_draw([groups[index] for index in random.permutation(len(groups))], fraction))
    second = np.isin(np.arange(len(dataset)), list(drawn))
    _require_every_class(dataset, truth, second)
    parts = (
        tuple(
            sample for sample, is_second in zip(dataset.samples, second, strict=True) if is_second == wanted
        )
        for wanted in (False, True)
    )
    first_part, second_part = (DataSet(dataset.labels, part) for part in parts)
    return first_part, second_part


def _strata(dataset: DataSet, truth: NDArray[np.int64]) -> list[list[list[int]]]:
    """Group image indices by patient, and the patients by the classes that their images show."""
    patients: dict[tuple[str, str | int], list[int]] = {}
    for index, sample in enumerate(dataset.samples):
        key = ("image", index) if sample.patient is None else ("patient", sample.patient)
        patients.setdefault(key, []).append(index)
    strata: dict[tuple[int, ...], list[list[int]]] = {}
    for indices in patients.values():
        strata.setdefault(tuple(sorted({int(truth[index]) for index in indices})), []).append(indices)
    return [strata[classes] for classes in sorted(strata)]


def _draw(groups: list[list[int]], fraction: float) -> list[int]:
    """Take groups in order while that brings the count nearer to the target; of several, some but not all."""
    target = fraction * sum(map(len, groups))
    taken: list[list[int]] = []
    for group in groups:
        if sum(map(len, taken)) + len(group) / 2 <= target:
            taken.append(group)
    if not taken and len(groups) > 1:
        taken = [min(groups, key=len)]
    elif len(taken) == len(groups):
        taken = taken[:-1]
    return [index for group in taken for index in group]


def _require_every_class(dataset: DataSet, truth: NDArray[np.int64], second: NDArray[np.bool_]) -> None:
    for index, label in enumerate(dataset.labels):
        chosen = second[truth == index]
        if chosen.all() or not chosen.any():
            raise DataError(
                f"class {label!r} has {len(chosen)} image(s), too few (or all of one patient) to be in both "
                "parts of a split: add images, or put them into train/ and val/ yourself"
            )
