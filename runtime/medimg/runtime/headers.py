"""The size that an image file announces, and whether the file is whole, before anything is decoded."""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from medimg.runtime import tiff
from medimg.runtime.errors import ImageError
from medimg.runtime.text import printable

_DICOM_GROUPS = (0x0002, 0x0008)
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length has 16 bits, and those whose length has 32 (PS3.5 7.1.2)."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
# 0xF7 starts the frame of JPEG-LS (ITU-T T.87, annex C).
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1


def is_dicom(content: bytes) -> bool:
    """Tell a DICOM file by its preamble (PS3.10 7.1), or without one by its first two elements.

    Args:
        content: the file, or its first 1,024 bytes at least.
    """
    return content[128:132] == b"DICM" or any(_begins_with_elements(content, order) for order in "<>")


def _begins_with_elements(content: bytes, order: str) -> bool:
    """Look for two elements in ascending order, the first of group 0002 or 0008, as every file begins."""
    position, before = 0, (0, 0)
    for _ in range(2):
        if position + 12 > len(content):
            return False
        group, element, vr, short = struct.unpack_from(f"{order}HH2sH", content, position)
        if (group, element) <= before or group not in _DICOM_GROUPS:
            return False
        (after_tag,) = struct.unpack_from(f"{order}I", content, position + 4)
        (after_vr,) = struct.unpack_from(f"{order}I", content, position + 8)
        if vr in _SHORT_VRS:
            position += 8 + short
        else:
            position += 12 + after_vr if vr in _LONG_VRS else 8 + after_tag
        before = (group, element)
    return True


def png_size(content: bytes) -> tuple[int, int]:
    """Give rows and columns of a PNG whose critical chunks are whole (PNG 3rd edition, section 5).

    Raises:
        ImageError: it is truncated, damaged or animated.
    """
    names = []
    for name, body in _png_chunks(content):
        if name == b"acTL":
            raise ImageError("an animated PNG: save one frame as a PNG")
        names.append(name)
        if name == b"IHDR":
            if len(body) != 13:
                raise ImageError("a damaged PNG (its header has the wrong length)")
            columns, rows = struct.unpack_from(">II", body)
    if names[:1] != [b"IHDR"] or names[-1] != b"IEND":
        raise ImageError("a truncated PNG")
    return rows, columns


class JpegFrame(NamedTuple):
    """What the frame header of a JPEG says."""

    rows: int
    columns: int
    bits: int
    """Bits a sample."""
    samples: int
    """Samples a pixel."""
    marker: int
    """Low byte of the frame's marker, which tells the kind of JPEG."""


def jpeg_frame(content: bytes | bytearray) -> JpegFrame:
    """Read the frame header of a JPEG or JPEG-LS that has an end (ITU-T T.81, annex B).

    Raises:
        ImageError: it is truncated or damaged.
    """
    frame = None
    for marker, start, end in _jpeg_segments(content):
        if marker in _JPEG_FRAMES and start + 6 <= min(end, len(content)):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", content, start)
            frame = JpegFrame(rows, columns, bits, samples, marker)
        if marker == _START_OF_SCAN and frame and content.find(b"\xff\xd9", end) > 0:
            return frame
    raise ImageError("a truncated or damaged JPEG (it has no end)")


def jpeg_orientation(content: bytes | bytearray) -> int:
    """Read the EXIF orientation, 1 to 8; 1, upright, where there is none or it is damaged."""
    for marker, start, end in _jpeg_segments(content):
        if marker == _APP1 and content[start : start + 6] == b"Exif\0\0":
            return tiff.orientation(bytes(content[start + 6 : end]))
    return 1


def bmp_size(content: bytes) -> tuple[int, int]:
    """Give rows and columns of a Windows bitmap.

    Raises:
        ImageError: its header is truncated.
    """
    if len(content) < 26:
        raise ImageError("a truncated BMP")
    (header_bytes,) = struct.unpack_from("<I", content, 14)
    columns, rows = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", content, 18)
    return abs(rows), abs(columns)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, position = memoryview(content), len(PNG_SIGNATURE)
    while position + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        body, end = view[position + 8 : position + 8 + length], position + 12 + length
        if end > len(content):
            raise ImageError("a truncated PNG")
        critical = not name[0] & 0x20
        if (
            critical
            and zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]
        ):
            raise ImageError(
                f"a damaged PNG (the checksum of its {printable(name.decode('latin-1'))} chunk is wrong)"
            )
        yield name, body
        if name == b"IEND":
            return
        position = end


def _jpeg_segments(content: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Walk the segments up to the first scan: marker, and where the segment's body starts and ends."""
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            # libjpeg skips stray bytes between segments as well.
            position += 1
            continue
        marker = content[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _JPEG_WITHOUT_LENGTH or marker == 0:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        yield marker, position + 4, position + 2 + length
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return
        position += 2 + max(length, 2)
