"""Image files that a layout of DATA names, and the data set that they make."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medimg.runtime.data.dataset import DataSet, Sample, Split
from medimg.runtime.errors import DataError
from medimg.runtime.files import class_names
from medimg.runtime.files.paths import is_text
from medimg.runtime.images.load import may_hold_image
from medimg.runtime.tasks import TaskName, task_named

SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of folders, and values of a CSV's split column, that name a part."""

IMAGE_SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".tif",
    ".tiff",
    ".bmp",
    ".dib",
    ".dcm",
    ".dicom",
    "",
}
_OTHER_IMAGES = {
    ".gif",
    ".webp",
    ".heic",
    ".avif",
    ".jp2",
    ".jxl",
    ".svg",
    ".pgm",
    ".ppm",
    ".pnm",
    ".nii",
    ".mhd",
}
"""Suffixes of images that nothing here reads; such a file is counted even where it is a text."""


@dataclass(frozen=True)
class Found:
    """One image file and what the layout says of it."""

    path: Path
    name: str
    """Path relative to the data set's root."""
    label: str | None = None
    """Its class; in multi-label data its classes joined by `|`, empty for none of them."""
    patient: str | None = None
    split: Split | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What other columns of a table say of it."""


def from_found(found: Sequence[Found], task: TaskName = "multiclass") -> DataSet:
    """Make a data set of files; labels are sorted, as numbers where all of them are numbers."""
    rules = task_named(task)
    classes_of = [None if item.label is None else rules.named(item.label) for item in found]
    form_of = class_names.same_class({name for named in classes_of for name in named or ()})
    names = set(form_of.values())
    if fault := class_names.fault_of(sorted(form_of)) or class_names.ambiguity_of(names):
        raise DataError(fault)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    labels = sorted(names, key=lambda name: (int(name) if numbers else 0, name))
    index_of = {label: index for index, label in enumerate(labels)}

    def sample(item: Found, named: set[str] | None) -> Sample:
        indices = None if named is None else {index_of[form_of[name]] for name in named}
        label, classes = (None, None) if indices is None else rules.marks(indices)
        return Sample(item.name, item.path, label, item.patient, item.split, classes, item.attributes)

    return DataSet(tuple(labels), tuple(map(sample, found, classes_of)), task)


def is_image(path: Path, left_out: Counter[str] | None = None) -> bool:
    """Tell whether a file is one by its name, or else by its first bytes; count what is neither it nor text.

    DICOM files often have no suffix, or a UID for a name, whose last part is a number. DICOMDIR is the index
    of a DICOM medium (PS3.10, 8.6).
    """
    suffix = path.suffix.lower()
    if path.name.upper() == "DICOMDIR":
        return False
    if suffix in IMAGE_SUFFIXES or suffix[1:].isdigit() or may_hold_image(path):
        return True
    if left_out is not None and (suffix in _OTHER_IMAGES or not is_text(path)):
        left_out[suffix] += 1
    return False
