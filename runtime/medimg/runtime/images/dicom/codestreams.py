"""What compressed frames say of themselves, and where they end."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from medimg.runtime.errors import ImageError
from medimg.runtime.images import headers
from medimg.runtime.images.dicom.elements import DataSet, value
from medimg.runtime.images.dicom.header import PixelHeader

_SOC_SIZ = b"\xff\x4f\xff\x51"
_COD, _SOD, _EOC = b"\xff\x52", b"\xff\x93", b"\xff\xd9"
_SOS = b"\xff\xda"
_DCT_MARKERS = (0xC0, 0xC1, 0xC2)


@dataclass(frozen=True)
class Codestream:
    """A compressed frame without what stands before and after it."""

    content: bytes
    rows: int
    columns: int
    samples: int
    """Samples per pixel."""
    bits: int
    """Bits per sample."""
    is_signed: bool = False
    """Whether its samples have a sign; only those of JPEG 2000 can say so."""
    is_dct: bool = False
    """Whether it is JPEG of the lossy kinds."""
    scans: int = 1
    """How often a decoder goes over the pixels."""
    is_mixed: bool = False
    """Whether JPEG 2000's colour transform is undone in decoding."""


def compressed_frames(dataset: DataSet, header: PixelHeader) -> Iterator[bytes]:
    """Give the compressed frames (PS3.5 A.4), as many as there should be at most."""
    from pydicom.encaps import generate_frames

    offsets = value(dataset, "ExtendedOffsetTable"), value(dataset, "ExtendedOffsetTableLengths")
    frames = generate_frames(
        dataset.PixelData, number_of_frames=header.frames, extended_offsets=offsets if all(offsets) else None
    )
    # JPEG data without an offset table can seem to hold more frames than there are.
    return islice(frames, header.frames)


def read_codestream(frame: bytes, header: PixelHeader) -> Codestream:
    """Find out what a frame of JPEG, JPEG-LS or JPEG 2000 holds, before a decoder allocates.

    Raises:
        ImageError: it has no end, or another size or number of samples than the data set says.
    """
    start = frame.find(_SOC_SIZ)
    found = _read_jpeg_2000(frame[start:]) if start >= 0 else _read_jpeg(frame)
    if (found.rows, found.columns) != (header.rows, header.columns):
        raise ImageError(
            f"a compressed frame of {found.columns}x{found.rows} pixels, where the header says "
            f"{header.columns}x{header.rows}"
        )
    if found.samples != header.samples:
        raise ImageError(
            f"a compressed frame of {found.samples} samples per pixel, where the header says {header.samples}"
        )
    return found


def _read_jpeg_2000(frame: bytes) -> Codestream:
    """Read the SIZ and COD segments (ITU-T T.800, annex A)."""
    content = _up_to_its_end(frame, frame.find(_SOD))
    right, bottom, left, top = struct.unpack_from(">IIII", content, 8)
    (samples,) = struct.unpack_from(">H", content, 40)
    if len(set(content[42 : 42 + 3 * samples : 3])) != 1:
        raise ImageError("JPEG 2000 whose components differ in bits, which nothing here shows")
    depth = content[42]
    coding = content.find(_COD, 42 + 3 * samples)
    is_mixed = coding > 0 and samples >= 3 and content[coding + 8] == 1
    return Codestream(
        content,
        bottom - top,
        right - left,
        samples,
        (depth & 0x7F) + 1,
        bool(depth & 0x80),
        is_mixed=is_mixed,
    )


def _read_jpeg(frame: bytes) -> Codestream:
    found = headers.jpeg_frame(frame)
    content = _up_to_its_end(frame, frame.find(_SOS))
    is_dct = found.marker in _DCT_MARKERS
    return Codestream(
        content, found.rows, found.columns, found.samples, found.bits, is_dct=is_dct, scans=found.scans
    )


def _up_to_its_end(frame: bytes, data_start: int) -> bytes:
    """Cut off what was written behind a codestream."""
    end = frame.rfind(_EOC, max(data_start, 0))
    if data_start < 0 or end < 0:
        raise ImageError("a truncated DICOM file (a compressed frame has no end)")
    return frame[: end + 2]
