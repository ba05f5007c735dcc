"""Which images a model is trained on, and which it is judged by."""

from dataclasses import dataclass

from medimg.runtime.data import DataSet, stratified_split
from medimg.runtime.errors import DataError
from medimg.train.options import FitOptions


@dataclass(frozen=True)
class Division:
    """The images a model is trained on and judged by; never those of a test part."""

    train: DataSet
    validation: DataSet
    validation_from: str


def divide(dataset: DataSet, options: FitOptions) -> Division:
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
        return Division(larger, smaller, "split")
    for name, part in (("train", train), ("val", validation)):
        shown = part.targets.any(axis=0)
        if not shown.all():
            raise DataError(f"class {part.labels[int(shown.argmin())]!r} has no image in the part {name}")
    return Division(train, validation, "val")
