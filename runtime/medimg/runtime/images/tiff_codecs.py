"""The compressions of TIFF strips and tiles, each of which gives all the bytes that are wanted or an error.

They are those of TIFF 6.0 (Adobe, 1992), sections 9 and 13, and of its Technical Notes of 1995 and 2002.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import cv2
import numpy as np

from medimg.runtime.errors import ImageError

UNCOMPRESSED, LZW, JPEG, PACKBITS = 1, 5, 7, 32773
DEFLATE: Final = (8, 32946)
READABLE: Final = (UNCOMPRESSED, LZW, JPEG, PACKBITS, *DEFLATE)
OTHERS: Final = {
    2: "CCITT modified Huffman",
    3: "CCITT group 3 fax",
    4: "CCITT group 4 fax",
    6: "old-style JPEG",
    22610: "JPEG XR",
    32766: "NeXT",
    32809: "ThunderScan",
    33003: "JPEG 2000 (Aperio)",
    33004: "JPEG 2000 (Aperio)",
    33005: "JPEG 2000 (Aperio)",
    33007: "JPEG (Aperio)",
    34661: "JBIG",
    34676: "SGI Log",
    34677: "SGI Log",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG (DNG)",
    34925: "LZMA",
    34926: "ZSTD",
    34927: "WebP",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "ZSTD",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
"""What to call compressions that cannot be read."""

_FILLERS: Final = {LZW: (b"\x80" + bytes(8), 7), PACKBITS: (b"\0\0", 1)}
"""Compressed bytes that stand for zeros and leave the decoder as it was, and how many zeros they stand for.

That of LZW is a Clear code and seven literals of nine bits; each strip begins with a Clear code of its own.
"""
_GROUP_BYTES: Final = 2**23
_NARROW_BYTES, _WIDE_BYTES, _NARROW_UP_TO = 64, 4096, 2**25
_ZEROS: Final = bytes(16)


def unpack(compression: int, pieces: Sequence[memoryview], sizes: Sequence[int]) -> Iterator[memoryview]:
    """Decompress strips or tiles.

    Args:
        compression: one of `READABLE`, but not JPEG.
        pieces: compressed, as they lie in the file.
        sizes: bytes that each must give; what comes after them is padding.

    Yields:
        As many bytes as each must give.

    Raises:
        ImageError: one gives less, or is damaged.
    """
    if compression in _FILLERS:
        for group, size in _of_equal_size(pieces, sizes):
            yield from _unpack_with_libtiff(compression, group, size)
        return
    most = max(sizes, default=0)
    for piece, size in zip(pieces, sizes, strict=True):
        unpacked = piece if compression == UNCOMPRESSED else memoryview(_inflate(piece, most))
        if len(unpacked) < size:
            raise ImageError("a damaged or truncated TIFF (its pixels are not all there)")
        yield unpacked[:size]


def _inflate(piece: memoryview, most: int) -> bytes:
    """Unpack all of a piece; the last strip may be as long as the others."""
    inflater = zlib.decompressobj()
    try:
        # A byte more, so that the checksum after the last one is looked at.
        unpacked = inflater.decompress(piece, most + 1)
    except zlib.error as error:
        raise ImageError(f"a damaged TIFF ({error})") from None
    if not inflater.eof:
        raise ImageError("a damaged or truncated TIFF (its deflated pixels have no end)")
    return unpacked


def _of_equal_size(
    pieces: Sequence[memoryview], sizes: Sequence[int]
) -> Iterator[tuple[list[memoryview], int]]:
    """Group what follows each other and gives equally much, up to a few MB together."""
    group: list[memoryview] = []
    for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        group.append(piece)
        following = sizes[number + 1] if number + 1 < len(sizes) else None
        if following != size or (len(group) + 1) * size > _GROUP_BYTES:
            yield group, size
            group = []


def _unpack_with_libtiff(compression: int, pieces: list[memoryview], size: int) -> Iterator[memoryview]:
    """Have OpenCV decompress pieces as strips of 16-bit samples, for which alone it heeds libtiff's errors.

    Fillers before each make its size a multiple of the row's.
    """
    if compression == LZW and any(not _is_lzw(piece) for piece in pieces):
        raise ImageError("a damaged TIFF (its LZW data are none)")
    row_bytes = _NARROW_BYTES if size * len(pieces) <= _NARROW_UP_TO else _WIDE_BYTES
    filler, filler_size = _FILLERS[compression]
    fillers = -size * pow(filler_size, -1, row_bytes) % row_bytes
    strip_bytes = size + fillers * filler_size
    content = _sixteen_bit_tiff(
        compression, [filler * fillers + piece for piece in pieces], row_bytes, strip_bytes
    )
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype != np.uint16 or pixels.nbytes != strip_bytes * len(pieces):
        raise ImageError("a damaged or truncated TIFF (its pixels are not all there)")
    strips = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pieces), strip_bytes)
    return (memoryview(strip) for strip in strips[:, fillers * filler_size :])


def _is_lzw(piece: memoryview) -> bool:
    """Whether data begin with a Clear code, and nowhere are zeros, which LZW does not give for anything."""
    data = bytes(piece)
    return data[:1] == b"\x80" and data[1:2] < b"\x80" and _ZEROS not in data


def _sixteen_bit_tiff(compression: int, strips: list[bytes], row_bytes: int, strip_bytes: int) -> bytes:
    count, strip_rows = len(strips), strip_bytes // row_bytes
    tags = 10
    tables = 8 + 2 + 12 * tags + 4
    places = tables + 8 * count + np.cumsum([0, *map(len, strips)])[:-1]
    lengths = [len(strip) for strip in strips]
    fields = [
        (256, 1, row_bytes // 2),
        (257, 1, strip_rows * count),
        (258, 1, 16),
        (259, 1, compression),
        (262, 1, 1),
        # A single value stands in the field itself.
        (273, count, tables if count > 1 else int(places[0])),
        (277, 1, 1),
        (278, 1, strip_rows),
        (279, count, tables + 4 * count if count > 1 else lengths[0]),
        (284, 1, 1),
    ]
    head = b"II*\0" + struct.pack("<IH", 8, tags)
    directory = b"".join(struct.pack("<HHII", tag, 4, many, value) for tag, many, value in fields)
    return b"".join(
        [head, directory, bytes(4), struct.pack(f"<{2 * count}I", *places.tolist(), *lengths), *strips]
    )
