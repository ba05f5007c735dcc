"""Uncompressed pixels and run lengths (PS3.5 8.1, 8.2, annex G) to words."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images.dicom.elements import DataSet
from medimg.runtime.images.dicom.header import PixelHeader, missing

_RLE_HEADER = struct.Struct("<16I")
_MOST_SEGMENTS = 15


def native_words(dataset: DataSet, header: PixelHeader, *, big_endian: bool) -> Iterator[NDArray[Any]]:
    """Give the words of each uncompressed frame, `(rows, columns)` or `(rows, columns, 3)`.

    Raises:
        ImageError: there are fewer bytes than the frames need, or they are compressed.
    """
    element = dataset[header.keyword]
    if element.is_undefined_length:
        raise ImageError("its pixels are compressed where its transfer syntax says that they are not")
    content = np.frombuffer(element.value, np.uint8)
    pixels = header.rows * header.columns
    if header.bits_allocated == 1:
        # Frames follow one another without padding, so that one may begin inside a byte.
        _require_bytes(content, -(-pixels * header.frames // 8))
        for frame in range(header.frames):
            yield _unpacked(content, frame * pixels, pixels, element.VR, big_endian=big_endian).reshape(
                header.rows, header.columns
            )
        return
    word_bytes = header.bits_allocated // 8
    words_per_frame = pixels * header.samples
    if header.photometric == "YBR_FULL_422":
        words_per_frame = _words_of_422(content, header, word_bytes)
    frame_bytes = words_per_frame * word_bytes
    _require_bytes(content, frame_bytes * header.frames)
    if big_endian and word_bytes == 1 and element.VR == "OW":
        content = content[: len(content) // 2 * 2].view("<u2").byteswap().view(np.uint8)
    order = ">" if big_endian else "<"
    kind = "f" if header.is_float else "u"
    for start in range(0, frame_bytes * header.frames, frame_bytes):
        words = content[start : start + frame_bytes].view(f"{order}{kind}{word_bytes}")
        yield _in_shape(words.astype(f"{kind}{word_bytes}"), header)


def rle_words(frame: bytes, header: PixelHeader) -> NDArray[Any]:
    """Decode one frame of run lengths to words, `(rows, columns)` or `(rows, columns, 3)`.

    Raises:
        ImageError: it is truncated, or has another number of segments than the samples have bytes.
    """
    word_bytes, pixels = header.bits_allocated // 8, header.rows * header.columns
    if len(frame) < _RLE_HEADER.size:
        raise ImageError("a truncated DICOM file (a frame of run lengths has no header)")
    count, *offsets = _RLE_HEADER.unpack_from(frame)
    if count != header.samples * word_bytes or count > _MOST_SEGMENTS:
        raise ImageError(
            f"run lengths of {count} segments where {header.samples} samples of {header.bits_allocated} bits "
            "are announced"
        )
    ends = [*offsets[1:count], len(frame)]
    # The segments of a sample begin with its most significant byte (PS3.5 G.2).
    planes = np.empty((header.samples, pixels, word_bytes), np.uint8)
    for place, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        segment = frame[start:end]
        planes[place // word_bytes, :, word_bytes - 1 - place % word_bytes] = _unpack_bits(segment, pixels)
    words = planes.view(f"<u{word_bytes}")[..., 0].reshape(header.samples, header.rows, header.columns)
    return words[0] if header.samples == 1 else np.moveaxis(words, 0, -1)


def _require_bytes(content: NDArray[np.uint8], wanted: int) -> None:
    if len(content) < wanted:
        raise ImageError(f"a truncated DICOM file ({len(content):,} of {wanted:,} bytes of pixels)")


def _unpacked(
    content: NDArray[np.uint8], first_bit: int, bits: int, vr: str, *, big_endian: bool
) -> NDArray[np.uint8]:
    """Give single bits, of which the lowest of a word comes first (PS3.5 8.1.1, annex D)."""
    start, end = first_bit // 16 * 2, -(-(first_bit + bits) // 16) * 2
    part = content[start:end]
    if big_endian and vr == "OW":
        part = part[: len(part) // 2 * 2].view("<u2").byteswap().view(np.uint8)
    found = np.unpackbits(part, bitorder="little")
    return found[first_bit - 8 * start :][:bits]


def _words_of_422(content: NDArray[np.uint8], header: PixelHeader, word_bytes: int) -> int:
    """Count the samples of a frame whose pixels share their colours in pairs."""
    pixels = header.rows * header.columns
    if header.columns % 2:
        raise ImageError("YBR_FULL_422 with an odd number of columns")
    if len(content) >= 3 * pixels * header.frames * word_bytes:
        raise ImageError(
            "its header says YBR_FULL_422, which has two samples per pixel, but there are three: "
            "correct its photometric interpretation"
        )
    return 2 * pixels


def _in_shape(words: NDArray[Any], header: PixelHeader) -> NDArray[Any]:
    rows, columns = header.rows, header.columns
    if header.samples == 1:
        return words.reshape(rows, columns)
    if header.photometric == "YBR_FULL_422":
        pairs = words.reshape(rows, columns // 2, 4)
        luma = pairs[..., :2].reshape(rows, columns, 1)
        return np.concatenate([luma, np.repeat(pairs[..., 2:], 2, axis=1)], axis=-1)
    if header.planar is None:
        raise missing("PlanarConfiguration")
    if header.planar:
        return np.moveaxis(words.reshape(3, rows, columns), 0, -1)
    return words.reshape(rows, columns, 3)


def _unpack_bits(segment: bytes, wanted: int) -> NDArray[np.uint8]:
    """Undo PackBits; never makes more than a run more than is wanted."""
    found, position, end = bytearray(), 0, len(segment)
    while len(found) < wanted and position + 1 < end:
        head = segment[position]
        if head < 128:
            found += segment[position + 1 : position + 2 + head]
            position += 2 + head
        elif head > 128:
            found += segment[position + 1 : position + 2] * (257 - head)
            position += 2
        else:
            position += 1
    if len(found) < wanted:
        raise ImageError(f"a truncated DICOM file ({len(found):,} of {wanted:,} bytes of run lengths)")
    return np.frombuffer(bytes(found[:wanted]), np.uint8)
