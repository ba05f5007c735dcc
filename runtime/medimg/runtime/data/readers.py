"""One reader for each layout of DATA."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from medimg.runtime.data import cifar, medmnist
from medimg.runtime.data.dataset import DataSet, Sample, Split
from medimg.runtime.data.found import SPLITS, Found, from_found, is_image
from medimg.runtime.data.table import read_table
from medimg.runtime.errors import DataError
from medimg.runtime.files.paths import is_file, is_folder, visible, walk_images
from medimg.runtime.files.text import printable
from medimg.runtime.tasks import TaskName, task_named

_LOG = logging.getLogger(__name__)
_WANTED = "a folder with a folder per class, a CSV with path,label, a CIFAR-10 folder or a MedMNIST .npz"


def read(path: Path, *, labelled: bool, task: TaskName) -> DataSet:
    """Read a data set; see `medimg.runtime.data.read_data`."""
    suffix = path.suffix.lower()
    task_named(task).require_layout(path, folder=is_folder(path))
    try:
        if is_folder(path):
            dataset = read_cifar(path) if cifar.is_cifar(path) else _read_folder(path, labelled=labelled)
        elif not is_file(path):
            raise DataError(f"{path}: no such file or folder, or a pipe or device")
        elif suffix == ".csv":
            dataset = from_found(read_table(path, labelled=labelled, task=task), task)
        elif suffix == ".npz":
            dataset = read_medmnist(path, task)
        else:
            raise DataError(f"{path}: not a data set: {_WANTED} is wanted")
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror}") from None
    if not dataset.samples:
        raise DataError(f"{path}: holds no images (PNG, JPEG, TIFF, BMP or DICOM); {_WANTED} is wanted")
    if labelled:
        _require_classes(dataset, path)
    return dataset


def read_cifar(folder: Path) -> DataSet:
    """Read CIFAR-10's python layout: `data_batch_*` is the training part, `test_batch` the test part."""
    labels = cifar.read_labels(folder)
    samples: list[Sample] = []
    for split, pattern in (("train", "data_batch_*"), ("test", "test_batch")):
        batches = [cifar.read_batch(path, len(labels)) for path in sorted(folder.glob(pattern))]
        images = [pair for batch in batches for pair in zip(batch.images, batch.labels, strict=True)]
        samples += (
            Sample(f"{split}[{index}]", pixels, label, None, SPLITS[split])
            for index, (pixels, label) in enumerate(images)
        )
    return DataSet(labels, tuple(samples))


def read_medmnist(path: Path, task: TaskName = "multiclass") -> DataSet:
    """Read a MedMNIST archive, whose classes have numbers unless the file's name tells the set."""
    samples: list[Sample] = []
    classes = 0
    for part in medmnist.read_parts(path, task):
        samples += (_archived(part, index) for index in range(len(part.images)))
        if part.labels is not None:
            highest = int(part.labels.max(initial=-1))
            classes = max(classes, part.labels.shape[1] if part.labels.ndim == 2 else highest + 1)
    return DataSet(medmnist.class_names(path, classes) if classes else (), tuple(samples), task)


def _archived(part: medmnist.Part, index: int) -> Sample:
    sample = Sample(f"{part.name}[{index}]", part.images[index], split=part.name)
    if part.labels is None:
        return sample
    if part.labels.ndim == 1:
        return replace(sample, label=int(part.labels[index]))
    return replace(sample, classes=tuple(np.flatnonzero(part.labels[index]).tolist()))


def _read_folder(root: Path, *, labelled: bool) -> DataSet:
    """Read a folder with a folder per class, or with parts that hold such; tell what is left out."""
    left_out: Counter[str] = Counter()
    dataset = _read_parts(root, left_out, labelled=labelled)
    if left_out:
        suffixes = ", ".join(f"{suffix} {count}" for suffix, count in left_out.most_common(9))
        _LOG.warning(
            "%s: %d files left out (%s), which are no PNG, JPEG, TIFF, BMP or DICOM: "
            "convert those that are images",
            *(root, left_out.total(), printable(suffixes)),
        )
    return replace(dataset, left_out=dict(left_out))


def _read_parts(root: Path, left_out: Counter[str], *, labelled: bool) -> DataSet:
    parts = [entry for entry in visible(root) if is_folder(entry) and entry.name.lower() in SPLITS]
    if not parts:
        return from_found(_find(root, root, None, left_out, labelled=labelled))
    others = [entry for entry in visible(root) if entry not in parts]
    if strays := [entry.name for entry in others if is_folder(entry) or is_image(entry, left_out)]:
        raise DataError(
            f"{root}: has {', '.join(map(repr, strays[:5]))} beside "
            f"{', '.join(part.name for part in parts)}: move it into one of them, or away"
        )
    found = [
        item
        for part in parts
        for item in _find(part, root, SPLITS[part.name.lower()], left_out, labelled=labelled)
    ]
    dataset = from_found(found)
    trained = {sample.label for sample in dataset.samples if sample.split == "train"}
    strange = [label for index, label in enumerate(dataset.labels) if index not in trained]
    if trained and strange and labelled:
        raise DataError(f"{root}: class {strange[0]!r} has images, but none in the training part")
    return dataset


def _find(
    folder: Path, root: Path, split: Split | None, left_out: Counter[str], *, labelled: bool
) -> list[Found]:
    """Find the images of a folder: by class in its subfolders, or unlabelled where images lie in itself."""
    inner = [entry for entry in visible(folder) if is_folder(entry)]
    folders = frozenset(inner)
    here: Counter[str] = Counter()
    loose = [entry.name for entry in visible(folder) if entry not in folders and is_image(entry, here)]
    if loose and labelled:
        raise DataError(
            f"{folder}: holds {len(loose)} image(s) outside any class's folder ({', '.join(loose[:3])}): "
            "a folder with a folder per class is wanted"
        )
    if not loose:
        left_out.update(here)
    classes = [(folder, None)] if loose else [(entry, entry.name) for entry in inner]
    return [
        Found(path, path.relative_to(root).as_posix(), label, None, split)
        for place, label in classes
        for path in walk_images([place])
        if is_image(path, left_out)
    ]


def _require_classes(dataset: DataSet, path: Path) -> None:
    without = [sample.name for sample in dataset.samples if sample.label is None and sample.classes is None]
    if without:
        raise DataError(f"{path}: {len(without)} image(s) have no label ({', '.join(without[:3])})")
    if fault := task_named(dataset.task).fault_of(dataset.targets, dataset.labels):
        raise DataError(f"{path}: {fault}")
