"""Real pictures written as the kinds of files that speed is measured on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet, read_data

PICTURES = 64
Picture = NDArray[np.uint8]
"""`(rows, columns, 3)` uint8 RGB."""


def real_pictures() -> list[Picture]:
    """Give training images of the brain-MRI set, a few of each class, as they are."""
    part = _real_set().part("train")
    chosen = part.samples[:: len(part) // PICTURES][:PICTURES]
    return [np.asarray(cv2.imread(str(sample.source), cv2.IMREAD_COLOR_RGB), np.uint8) for sample in chosen]


def _real_set() -> DataSet:
    return read_data(Path(os.environ["MEDIMG_TEST_DATA"]) / "images" / "brain-mri")


def _write_jpeg(path: Path, picture: Picture) -> None:
    cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


def _write_png(path: Path, picture: Picture) -> None:
    cv2.imwrite(str(path), picture[..., ::-1])


def _write_dicom(path: Path, picture: Picture) -> None:
    """Write 16-bit grey values with a window, as an MR slice has them."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset: Any = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    dataset.Rows, dataset.Columns = picture.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = (picture[..., 0].astype("<u2") * 16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


WRITERS: dict[str, tuple[int, str, Callable[[Path, Picture], None]]] = {
    "jpeg-512": (512, ".jpg", _write_jpeg),
    "png-1024": (1024, ".png", _write_png),
    "png-4096": (4096, ".png", _write_png),
    "dicom-512-16-bit": (512, ".dcm", _write_dicom),
}
"""By name: side in pixels, suffix, writer."""


def write_pictures(kind: str, folder: Path) -> list[Path]:
    """Write the real pictures, enlarged, as files of one kind; those that are there stay."""
    side, suffix, write = WRITERS[kind]
    target = folder / kind
    target.mkdir(parents=True, exist_ok=True)
    paths = [target / f"{number:03}{suffix}" for number in range(PICTURES)]
    for path, picture in zip(paths, real_pictures(), strict=True):
        if not path.exists():
            write(path, _enlarged(picture, side))
    return paths


def write_enlarged_set(side: int, folder: Path) -> Path:
    """Write the whole brain-MRI set as square JPEG files of a side in pixels; those that are there stay."""
    data = _real_set()
    for split in ("train", "test"):
        for number, sample in enumerate(data.part(split).samples):
            path = folder / split / data.labels[sample.label or 0] / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                picture = cv2.imread(str(sample.source), cv2.IMREAD_COLOR_RGB)
                _write_jpeg(path, _enlarged(np.asarray(picture, np.uint8), side))
    return folder


def _enlarged(picture: Picture, side: int) -> Picture:
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def many_paths(pictures: list[Path], count: int, folder: Path) -> Path:
    """Make a folder of so many files, each a link to one of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        link = folder / f"{number:05}{pictures[0].suffix}"
        if not link.exists():
            link.symlink_to(pictures[number % len(pictures)].resolve())
    return folder
