"""MedMNIST archives: arrays `{train,val,test}_images` and `_labels`.

Source: J. Yang et al., MedMNIST v2, a large-scale lightweight benchmark for 2D and 3D biomedical image
classification, Scientific Data 10 (2023), 41. The archives hold no class names; those below are its table's.
"""

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import Task
from medimg.runtime.errors import DataError

PARTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")

_UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
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


def read_parts(path: Path, task: Task) -> list[Part]:
    """Read an archive.

    Raises:
        DataError: it is damaged, holds pickled objects, or is not 2D images with labels of this task.
    """
    try:
        # No pickles: an archive from elsewhere must not be able to run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = set(archive.files)
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


def _read_part(
    archive: Any,  # noqa: ANN401  an NpzFile
    name: Literal["train", "val", "test"],
    path: Path,
    task: Task,
) -> Part:
    images = archive[f"{name}_images"]
    if images.dtype != np.uint8 or not (
        images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    ):
        raise DataError(
            f"{path}: {name}_images is {images.dtype} of shape {images.shape}; "
            "uint8 (images, rows, columns[, channels]) is wanted, volumes are not read"
        )
    if f"{name}_labels" not in archive.files:
        return Part(name, images, None)
    check = _multi_labels if task == "multilabel" else _single_labels
    return Part(name, images, check(archive[f"{name}_labels"], len(images), f"{path}: {name}_labels"))


def _multi_labels(labels: NDArray[Any], images: int, where: str) -> NDArray[np.int64]:
    if labels.ndim != 2 or len(labels) != images or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where} is {labels.dtype} of shape {labels.shape}; "
            f"a column of 0 and 1 for each class is wanted for multi-label data, {images} rows"
        )
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"{where} holds {labels.min()} to {labels.max()}; multi-label data hold 0 and 1")
    return labels.astype(np.int64)


def _single_labels(labels: NDArray[Any], images: int, where: str) -> NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] != 1:
        raise DataError(
            f"{where} gives {labels.shape[1]} labels an image; one class an image is wanted, "
            "unless the task is multi-label"
        )
    if labels.size != images or labels.ndim > 2 or labels.dtype.kind not in "iu":
        raise DataError(f"{where} is {labels.dtype} of shape {labels.shape}; {images} integers are wanted")
    flat = cast("NDArray[np.int64]", labels.reshape(-1).astype(np.int64))
    if images and not (flat.min() >= 0 and flat.max() < 10_000):
        raise DataError(f"{where} holds {flat.min()} to {flat.max()}; classes count from 0")
    return flat
