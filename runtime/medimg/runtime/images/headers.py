"""The size that an image file announces, and whether the file is whole, before anything is decoded."""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from medimg.runtime.errors import ImageError
from medimg.runtime.files.text import printable
from medimg.runtime.images import tiff

_DICOM_GROUPS = (0x0002, 0x0008)
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length has 16 bits, and those whose length has 32 (PS3.5 7.1.2)."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
# 0xF7 starts the frame of JPEG-LS (ITU-T T.87, annex C).
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_APPLICATIONS = range(0xE0, 0xF0)
_NOT_FILL = re.compile(rb"[^\xff]")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_IHDR_BYTES = 12 + 13
# A GB in pieces of 8 KB, as libpng writes them, with room for others.
_MOST_CHUNKS = 2**18
_MOST_SEGMENTS = 2**16
_MOST_SCANS = 256


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


class PngHeader(NamedTuple):
    """What the first chunk of a PNG says (PNG 3rd edition, section 11.2.1)."""

    columns: int
    rows: int
    bits: int
    """Bits per sample."""
    colour_type: int

    @property
    def pixel_bytes(self) -> float:
        """Bytes per decoded pixel; colours of a palette are three."""
        channels = _PNG_CHANNELS.get(self.colour_type)
        if channels is None or self.bits not in (1, 2, 4, 8, 16):
            raise ImageError(f"a damaged PNG (colour type {self.colour_type} of {self.bits} bits)")
        return channels * max(self.bits, 8) / 8


def png_header(content: bytes) -> tuple[PngHeader, bytes]:
    """Check that the critical chunks of a PNG are whole (PNG 3rd edition, section 5), and keep no others.

    libpng would unpack compressed texts and profiles, and repeat the names that they have.

    Returns:
        The header, and the file without ancillary chunks, but for the orientation in its EXIF data.

    Raises:
        ImageError: it is truncated, damaged or animated.
    """
    kept, names, position = [], [], len(PNG_SIGNATURE)
    for name, end in _png_chunks(content):
        if name == b"acTL":
            raise ImageError("an animated PNG: save one frame as a PNG")
        if _is_critical(name) or name == b"eXIf":
            kept.append((position, end))
            names.append(name)
        position = end
    if names[:1] != [b"IHDR"] or names[-1] != b"IEND":
        raise ImageError("a truncated PNG")
    if kept[0][1] - kept[0][0] != _IHDR_BYTES:
        raise ImageError("a damaged PNG (its header has the wrong length)")
    header = PngHeader(*struct.unpack_from(">IIBB", content, kept[0][0] + 8))
    if sum(end - start for start, end in kept) == len(content) - len(PNG_SIGNATURE):
        return header, content
    view = memoryview(content)
    return header, b"".join([PNG_SIGNATURE, *(view[start:end] for start, end in kept)])


class JpegFrame(NamedTuple):
    """What the frame header of a JPEG says."""

    rows: int
    columns: int
    bits: int
    """Bits a sample."""
    samples: int
    """Samples a pixel."""
    marker: int
    """Which process encoded it: 0xC0 baseline, 0xC2 progressive, 0xC3 lossless, 0xF7 JPEG-LS, …"""
    scans: int
    """1 to 4, or some ten where it is progressive."""


def jpeg_frame(content: bytes | bytearray) -> JpegFrame:
    """Read the frame header of a JPEG or JPEG-LS that has an end (ITU-T T.81, annex B).

    Raises:
        ImageError: it is truncated or damaged, or has more scans than any encoder makes.
    """
    frame = None
    for marker, start, end in jpeg_segments(content):
        if marker in _JPEG_FRAMES and start + 6 <= min(end, len(content)):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", content, start)
            frame = JpegFrame(rows, columns, bits, samples, marker, 1)
        if marker == _START_OF_SCAN and frame and content.find(b"\xff\xd9", end) > 0:
            # Within entropy-coded data 0xFF is followed by other bytes (ITU-T T.81, B.1.1.5).
            scans = 1 + content.count(b"\xff\xda", end)
            if scans > _MOST_SCANS:
                raise ImageError(
                    f"a JPEG of {scans:,} scans; the limit is {_MOST_SCANS}: save it as a baseline JPEG"
                )
            return frame._replace(scans=scans)
    raise ImageError("a truncated or damaged JPEG (it has no end)")


def jpeg_orientation(content: bytes | bytearray) -> int:
    """Read the EXIF orientation, 1 to 8; 1, upright, where there is none or it is damaged."""
    for marker, start, end in jpeg_segments(content):
        if marker == _APP1 and content[start : start + 6] == b"Exif\0\0":
            return tiff.orientation(bytes(content[start + 6 : end]))
    return 1


def jpeg_without_applications(content: bytes) -> bytes:
    """Leave out the segments from which libjpeg would take what the colours are."""
    left, position = [], 0
    for marker, start, end in jpeg_segments(content):
        if marker in _APPLICATIONS:
            left.append(content[position : start - 4])
            position = end
    return b"".join([*left, content[position:]])


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Walk the chunks: name, and where the chunk ends."""
    view, position = memoryview(content), len(PNG_SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        if position + 12 > len(content):
            return
        length, name = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            raise ImageError("a truncated PNG")
        if (
            _is_critical(name)
            and zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]
        ):
            raise ImageError(
                f"a damaged PNG (the checksum of its {printable(name.decode('latin-1'))} chunk is wrong)"
            )
        yield name, end
        if name == b"IEND":
            return
        position = end
    raise ImageError(f"a PNG of more chunks than are read: the limit is {_MOST_CHUNKS:,}")


def _is_critical(name: bytes) -> bool:
    return not name[0] & 0x20


def jpeg_segments(content: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Walk the segments up to the first scan: marker, and where the segment's body starts and ends."""
    position = 2
    for _ in range(_MOST_SEGMENTS):
        # libjpeg skips stray bytes between segments as well, and a marker may follow any number of 0xFF.
        position = content.find(b"\xff", position)
        if position >= 0 and content[position + 1 : position + 2] == b"\xff":
            position = found.start() - 1 if (found := _NOT_FILL.search(content, position)) else -1
        if position < 0 or position + 4 > len(content):
            return
        marker = content[position + 1]
        position += 2
        if marker in _JPEG_WITHOUT_LENGTH or marker == 0:
            continue
        (length,) = struct.unpack_from(">H", content, position)
        yield marker, position + 2, position + length
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return
        position += max(length, 2)
    raise ImageError(f"a JPEG of more segments than are read: the limit is {_MOST_SEGMENTS:,}")
