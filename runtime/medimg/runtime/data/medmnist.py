"""MedMNIST archives: arrays `{train,val,test}_images` and `_labels`.

Source: J. Yang et al., MedMNIST v2, a large-scale lightweight benchmark for 2D and 3D biomedical image
classification, Scientific Data 10 (2023), 41. The archives hold no class names; those below are its table's.
"""

import errno
import lzma
import math
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError
from medimg.runtime.images.limits import Limits
from medimg.runtime.tasks import TaskName, task_named

PARTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")

MAX_BYTES_IN_MEMORY = 2**28
MAX_IMAGES = 2**20
"""Of a part; the largest set of MedMNIST has 165,466 for training."""
MAX_LABELS = 2**26
"""Of a part, each as a column of a row."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    lzma.LZMAError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
_CLASSES: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (
        "atelectasis",
        "cardiomegaly",
        "effusion",
        "infiltration",
        "mass",
        "nodule",
        "pneumonia",
        "pneumothorax",
        "consolidation",
        "edema",
        "emphysema",
        "fibrosis",
        "pleural",
        "hernia",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule",
        "Distal Convoluted Tubule",
        "Glomerular endothelial cells",
        "Interstitial endothelial cells",
        "Leukocytes",
        "Podocytes",
        "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}


@dataclass(frozen=True)
class Part:
    """One part of an archive."""

    name: Literal["train", "val", "test"]
    images: NDArray[np.uint8]
    """`(images, rows, columns)` or `(images, rows, columns, 3)`."""
    labels: NDArray[np.int64] | None
    """`(images,)`, or `(images, classes)` of 0 and 1 in multi-label data; None where the part has none."""


def read_parts(path: Path, task: TaskName) -> list[Part]:
    """Read an archive.

    Raises:
        DataError: it is damaged, holds pickled objects, or is not 2D images with labels of this task.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            parts = [_read_part(archive, name, path, task) for name in PARTS if f"{name}_images" in names]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a MedMNIST archive, or a damaged one ({reason})") from None
    if not parts:
        raise DataError(
            f"{path}: holds no train_images, val_images or test_images: is it a MedMNIST archive?"
        )
    return parts


def class_names(path: Path, classes: int) -> tuple[str, ...]:
    """Name the classes of a set by its file's name, such as `pneumoniamnist_224.npz`; others get numbers."""
    stem = re.match("[a-z]*", path.stem.lower())
    known = _CLASSES.get(stem.group() if stem else "", ())
    return known if len(known) >= classes else tuple(str(index) for index in range(classes))


@dataclass(frozen=True)
class _Array:
    """An array of an archive: what its header says, before anything of it is unpacked."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    columns_first: bool
    offset: int
    """Bytes before the first value."""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @classmethod
    def find(cls, archive: zipfile.ZipFile, name: str) -> "_Array":
        """Read a header; the member must have the size that it says, and no more.

        Raises:
            ValueError: it is no array, or one of Python objects, or of another size.
        """
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as packed:
            read_header = _HEADERS.get(np.lib.format.read_magic(packed))
            if read_header is None:
                raise ValueError(f"{name} is an array of an unknown layout")
            shape, columns_first, kind = read_header(packed)
            found = cls(name, shape, kind, columns_first, packed.tell())
        if kind.hasobject:
            # No pickles: an archive from elsewhere must not be able to run code.
            raise ValueError(f"{name} holds Python objects")
        if found.offset + found.size * kind.itemsize != member.file_size:
            raise ValueError(f"{name} has {member.file_size} bytes, and its header says {shape} of {kind}")
        return found

    def read(self, archive: zipfile.ZipFile) -> NDArray[Any]:
        """Read the values; many go to a file without a name, of which memory holds what is looked at."""
        order: Literal["F", "C"] = "F" if self.columns_first else "C"
        with archive.open(f"{self.name}.npy") as packed:
            packed.read(self.offset)
            if self.size * self.dtype.itemsize <= MAX_BYTES_IN_MEMORY:
                # To the end, where the checksum is compared.
                values = np.frombuffer(packed.read(), self.dtype)
                return values.reshape(self.shape, order=order)
            with tempfile.TemporaryFile(prefix="medimg-") as unpacked:
                self._unpack(packed, unpacked)
                return np.memmap(unpacked, self.dtype, "r", shape=self.shape, order=order)

    def _unpack(self, packed: IO[bytes], unpacked: IO[bytes]) -> None:
        folder = tempfile.gettempdir()
        try:
            if self.size * self.dtype.itemsize > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            shutil.copyfileobj(packed, unpacked, 2**20)
            unpacked.flush()
        except OSError as error:
            raise ValueError(
                f"{self.name} cannot be unpacked into {folder}: {error.strerror}; "
                "the variable TMPDIR names another folder"
            ) from None


def _read_part(
    archive: zipfile.ZipFile, name: Literal["train", "val", "test"], path: Path, task: TaskName
) -> Part:
    """Read a part, once the headers of its images and labels say that they belong together."""
    images = _Array.find(archive, f"{name}_images")
    _require_images(images, path)
    if f"{name}_labels.npy" not in archive.namelist():
        return Part(name, images.read(archive), None)
    labels, where, rules = _Array.find(archive, f"{name}_labels"), f"{path}: {name}_labels", task_named(task)
    rules.require_archived(labels, images.shape[0], where)
    return Part(name, images.read(archive), rules.from_archive(labels.read(archive), where))


def _require_images(images: _Array, path: Path) -> None:
    ndim = len(images.shape)
    if images.dtype != np.uint8 or not (ndim == 3 or (ndim == 4 and images.shape[3] in (1, 3, 4))):
        raise DataError(
            f"{path}: {images.name} is {images.dtype} of shape {images.shape}; "
            "uint8 (images, rows, columns[, channels]) is wanted, volumes are not read"
        )
    pixels, most = images.shape[1] * images.shape[2], Limits.from_environment().pixels
    if images.shape[0] > MAX_IMAGES or not 0 < pixels <= most:
        raise DataError(
            f"{path}: {images.name} has the shape {images.shape}; "
            f"at most {MAX_IMAGES:,} images of 1 to {most:,} pixels are read"
        )
