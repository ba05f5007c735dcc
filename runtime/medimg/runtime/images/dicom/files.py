"""DICOM data sets: which of them hold an image, of whom, and their frames as they would be shown."""

import contextlib
import logging
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images.dicom.display import display
from medimg.runtime.images.dicom.elements import DAMAGED, DataSet
from medimg.runtime.images.dicom.frames import stored_frames
from medimg.runtime.images.dicom.header import read_header
from medimg.runtime.images.limits import Limits
from medimg.runtime.images.notes import Note
from medimg.runtime.optional import require

_FIRST_IMPORT = threading.Lock()
"""Decoding threads that begin together would meet modules of pydicom that are half made."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES = 2**31
_META_BYTES = 2**16
"""The part of a file in which its transfer syntax stands."""


def decode_frames(
    content: bytes, window: str, limits: Limits, note: Note = lambda _: None
) -> Iterator[NDArray[np.uint8]]:
    """Decode every frame of a DICOM file as it would be shown.

    Args:
        content: the whole file.
        window: for grey values, the file's VOI LUT or `first` window, its N-th as `window-N`, or the
            frame's `min-max`.
        limits: on the size of what is decoded.
        note: is told what a user must know about a frame before that frame is given.

    Yields:
        `(rows, columns)` grey or `(rows, columns, 3)` RGB, uint8.

    Raises:
        ImageError: it holds no image, is damaged, or nothing here decodes it.
        MissingDependencyError: pydicom is not installed.
    """
    with _damage_named("data set"):
        dataset = _read(content, quiet_pydicom())
        header = read_header(dataset)
    limits.check_frame(header.rows, header.columns, header.samples * max(header.bits_allocated / 8, 1))
    limits.check_work("frames", header.frames * header.frame_bytes, len(content))
    count = 0
    with _damage_named("pixels"):
        for pixels, photometric in stored_frames(dataset, header, limits):
            yield display(pixels, photometric, dataset, header, count, window, note)
            count += 1
    if count < header.frames:
        raise ImageError(f"a truncated DICOM file ({count} of {header.frames} frames)")


def read_values(content: bytes, names: Sequence[str]) -> dict[str, str]:
    """Give elements of a file as text, by keyword; empty where it has none.

    Args:
        content: the whole file.
        names: keywords of PS3.6, such as `PatientID`.

    Raises:
        ImageError: it is damaged.
        MissingDependencyError: pydicom is not installed.
    """
    pydicom = quiet_pydicom()
    with _damage_named("data set"):
        _check_inflated_size(content, pydicom)
        tags = {"stop_before_pixels": True, "specific_tags": list(names)}
        dataset = pydicom.dcmread(BytesIO(content), force=True, **tags)
        found = {name: dataset.get(name) for name in names}
        return {name: "" if value is None else str(value).strip() for name, value in found.items()}


def quiet_pydicom() -> Any:  # noqa: ANN401  a module without types
    """Import pydicom, and keep its remarks and logged tracebacks out of a bad file's one-line reason."""
    with _FIRST_IMPORT:
        pydicom = require("pydicom", "dicom")
        for part in ("pydicom.encaps", "pydicom.pixels"):
            require(part, "dicom")
    logger = logging.getLogger("pydicom")
    if not pydicom.config.debugging:
        logger.setLevel(logging.CRITICAL)
    # Not catch_warnings, which threads would undo for one another.
    if not any(rule[0] == "ignore" and "pydicom" in str(rule[3]) for rule in warnings.filters):
        warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


@contextlib.contextmanager
def _damage_named(what: str) -> Iterator[None]:
    """Turn what pydicom raises into a reason that repeats nothing of the file, which may name a patient."""
    pydicom = quiet_pydicom()
    try:
        yield
    except (*DAMAGED, pydicom.errors.BytesLengthException, pydicom.errors.InvalidDicomError) as error:
        kind = type(error).__name__
        raise ImageError(f"a damaged or unusual DICOM file ({kind} in its {what})") from None


def _read(content: bytes, pydicom: Any) -> DataSet:  # noqa: ANN401
    _check_inflated_size(content, pydicom)
    dataset = pydicom.dcmread(BytesIO(content), force=True)
    if "SOPClassUID" not in dataset and "Rows" not in dataset and not dataset.file_meta:
        raise ImageError("not a DICOM file, or one without an image")
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _check_inflated_size(content: bytes, pydicom: Any) -> None:  # noqa: ANN401
    """Refuse a deflated data set (PS3.5 A.5) that unpacks without bound."""
    if _DEFLATED not in content[:_META_BYTES]:
        return
    stream = BytesIO(content)
    pydicom.filereader.read_preamble(stream, force=True)
    pydicom.filereader._read_file_meta_info(stream)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed, size_bytes = content[stream.tell() :], 0
    while packed and not inflater.eof:
        size_bytes += len(inflater.decompress(packed, 2**24))
        packed = inflater.unconsumed_tail
        if size_bytes > _MAX_INFLATED_BYTES:
            raise ImageError(f"unpacks to more than {_MAX_INFLATED_BYTES:,} bytes")
