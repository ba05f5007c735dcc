"""Simulated images as DICOM files that say so."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.optional import require

COMMENT = "Simulated ultrasound image made by medimg; it shows no patient. Not for diagnosis."


def write_secondary_capture(path: Path, pixels: NDArray[np.uint8], name: str) -> None:
    """Write a Secondary Capture image whose Conversion Type is SYN, a synthetic image.

    Args:
        path: the file.
        pixels: `(rows, columns)` uint8, MONOCHROME2.
        name: identifies the image; the same name gives the same unique identifiers.

    Source:
        DICOM PS3.3 A.8.1 (Secondary Capture Image IOD) and C.8.6.1 (SC Equipment Module).
    """
    require("pydicom", "dicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, "instance"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    _describe(dataset, name)
    _add_pixels(dataset, pixels)
    dataset.save_as(path, enforce_file_format=True)


def _describe(dataset: Any, name: str) -> None:  # noqa: ANN401  pydicom is optional
    dataset.PatientName = "SIMULATED^IMAGE"
    dataset.PatientID = name
    dataset.PatientBirthDate = dataset.PatientSex = dataset.PatientOrientation = ""
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = dataset.Laterality = ""
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.Manufacturer = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.Modality = "US"
    dataset.ConversionType = "SYN"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = dataset.ImageComments = COMMENT
    dataset.SecondaryCaptureDeviceManufacturer = "medimg simulator"
    dataset.BurnedInAnnotation = "NO"


def _add_pixels(dataset: Any, pixels: NDArray[np.uint8]) -> None:  # noqa: ANN401
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    # An element's value has an even length.
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    dataset["PixelData"].VR = "OB"
