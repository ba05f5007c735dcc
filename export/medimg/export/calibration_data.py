"""Calibration images: which ones, and that they serve, before anything is made from them."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from medimg.export.errors import CalibrationError
from medimg.export.options import NOT_CLASSES
from medimg.export.result import CalibrationImage
from medimg.runtime.data import DataSet, Sample, read_data
from medimg.runtime.errors import DataError, ImageError
from medimg.runtime.model.applicability import require_applicable
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.spec import ModelSpec

WANTED = (
    "about 300 images of the kind that the model will see are wanted: point --calibration at its training "
    "images, or at any folder of such images (labels are not needed)"
)


def read_calibration(path: Path, most: int) -> DataSet:
    """Find the calibration images, never those of a test split.

    Args:
        path: DATA, labelled or not.
        most: how many to keep, drawn evenly with a fixed seed.

    Raises:
        CalibrationError: there are none.
    """
    try:
        data = read_data(path, labelled=False)
    except DataError as error:
        raise CalibrationError(f"{error}; {WANTED}") from None
    kept = [sample for sample in data.samples if sample.split != "test"]
    if not kept:
        raise CalibrationError(f"{path}: holds no images outside its test split; {WANTED}")
    if len(kept) > most:
        order = np.random.default_rng(0).permutation(len(kept))[:most]
        kept = [kept[place] for place in sorted(order)]
    return DataSet(data.labels, tuple(kept))


def check_classes(path: Path, data: DataSet, labels: tuple[str, ...]) -> None:
    """Refuse images that are sorted into classes other than the model's.

    Args:
        path: what the user gave, for the message.
        data: the calibration images.
        labels: the model's classes.

    Raises:
        CalibrationError: a class is not one of them.
    """
    if unknown := sorted(set(data.labels) - set(labels)):
        raise CalibrationError(
            f"{path}: its class {unknown[0]!r} is not one of the model's ({', '.join(labels)}): give images "
            f"of the model's classes; {NOT_CLASSES}"
        )


def read_images(data: DataSet, spec: ModelSpec, threads: int) -> tuple[CalibrationImage, ...]:
    """Decode every image once, so that an unreadable one is named before anything is made, and hash it.

    Args:
        data: the calibration images.
        spec: how they become the network's input, and which images the model is for.
        threads: how many are read at a time.

    Raises:
        CalibrationError: an image cannot be read, or the model is not for it.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            return tuple(pool.map(lambda sample: _read(sample, spec), data.samples))
        except ImageError as error:
            pool.shutdown(cancel_futures=True)
            raise CalibrationError(f"{error}: take it out of the calibration images, or mend it") from None


def _read(sample: Sample, spec: ModelSpec) -> CalibrationImage:
    if isinstance(sample.source, Path):
        require_applicable(sample.source, spec.allowed)
    sample.load(spec.image)
    if isinstance(sample.source, Path):
        return CalibrationImage(sample.name, file_sha256(sample.source))
    return CalibrationImage(sample.name, hashlib.sha256(sample.source.tobytes()).hexdigest())
