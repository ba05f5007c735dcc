"""Which images a model is trained on, and which it is judged by."""

from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.data import DataSet, read_data, stratified_split
from medimg.runtime.data.patients import with_patients
from medimg.runtime.data.table import unlisted_images
from medimg.runtime.errors import DataError
from medimg.runtime.tasks import TaskName
from medimg.train.data.decoded_images import SHOWN
from medimg.train.data.options import DataOptions


@dataclass(frozen=True)
class Division:
    """The images a model is trained on and judged by; never those of a test part."""

    train: DataSet
    validation: DataSet
    validation_from: str
    """`val`, the part that the data name, or `split`, held out of the training part."""
    test_images: int = 0
    """How many the test part has."""


def read_division(data: Path, options: DataOptions, threads: int, task: TaskName = "multiclass") -> Division:
    """Read a data set and choose training and validation images, with no patient in two parts.

    Args:
        data: in any layout that `medimg.runtime.data.read_data` knows.
        options: how to divide, and how to tell patients apart.
        threads: files opened at a time.
        task: whether an image shows one class or any number.

    Raises:
        DataError: the data cannot be understood, images have no label, a patient has images in two parts, or
            a class lacks images in one.
    """
    return divide(read_labelled(data, options, threads, task), options)


def read_labelled(data: Path, options: DataOptions, threads: int, task: TaskName = "multiclass") -> DataSet:
    """Read a data set whole, and say of every image whose it is; see `read_division`."""
    dataset = read_data(data, task=task)
    if data.suffix.lower() == ".csv" and not options.allow_unlisted:
        _require_all_listed(data, dataset)
    return with_patients(dataset, options.group_by, threads)


def divide(dataset: DataSet, options: DataOptions) -> Division:
    """Choose training and validation images: the data's own parts, or a seeded, stratified split.

    Raises:
        DataError: a class lacks images in either part.
    """
    unassigned = dataset.with_samples(sample for sample in dataset.samples if sample.split is None)
    train, validation = dataset.part("train"), dataset.part("val")
    train = train if len(train) else unassigned
    if not len(train):
        raise DataError("the data have no training part: name one train, or leave the images undivided")
    if not len(validation):
        larger, smaller = stratified_split(train, options.validation_fraction, options.seed)
        return Division(larger, smaller, "split", len(dataset.part("test")))
    require_every_class(train, validation)
    return Division(train, validation, "val", len(dataset.part("test")))


def require_every_class(train: DataSet, validation: DataSet) -> None:
    """Check that both parts show every class.

    Raises:
        DataError: one does not.
    """
    for name, part in (("train", train), ("val", validation)):
        shown = part.targets.any(axis=0)
        if not shown.all():
            raise DataError(f"class {part.labels[int(shown.argmin())]!r} has no image in the part {name}")


def _require_all_listed(table: Path, dataset: DataSet) -> None:
    if unlisted := unlisted_images(table, dataset):
        raise DataError(
            f"{table}: has no row for {len(unlisted)} images beside those it lists "
            f"({', '.join(unlisted[:SHOWN])}): label them, or leave them out by --allow-unlisted"
        )
