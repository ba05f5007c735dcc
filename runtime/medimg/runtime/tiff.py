"""TIFF files: what OpenCV's reader cannot be told, or does not read.

Tag numbers are those of TIFF 6.0 (Adobe, 1992), section 8; BigTIFF differs in the width of its fields.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _STRIP_SIZES, _PLANAR = 273, 274, 277, 279, 284
_TILE_OFFSETS, _TILE_SIZES = 324, 325
_PREDICTOR, _TILE_WIDTH, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBFILE = 317, 322, 338, 339, 254
_TYPE_BYTES = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8}
_TYPE_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_UPRIGHT = 1
_MAX_PAGES = 65536


@dataclass(frozen=True)
class Entry:
    """One field of an image directory."""

    values: tuple[int, ...]
    position: int
    """Where the first value lies in the file."""
    code: str
    """How `struct` reads one value."""


@dataclass(frozen=True)
class Page:
    """The first page of a TIFF file."""

    order: Literal["<", ">"]
    entries: dict[int, Entry]

    def first(self, tag: int, default: int | None = None) -> int:
        """Give a field's first value."""
        if tag in self.entries and self.entries[tag].values:
            return self.entries[tag].values[0]
        if default is None:
            raise ImageError(f"a damaged TIFF (tag {tag} is missing)")
        return default

    @property
    def rows(self) -> int:
        """Height in pixels."""
        return self.first(_HEIGHT)

    @property
    def columns(self) -> int:
        """Width in pixels."""
        return self.first(_WIDTH)

    @property
    def channels(self) -> int:
        """Samples a pixel."""
        return self.first(_SAMPLES, 1)

    @property
    def white_is_zero(self) -> bool:
        """Whether grey values count downwards; OpenCV turns 8-bit ones round, not 16-bit ones."""
        return self.first(_PHOTOMETRIC, 1) == 0


def read_page(content: bytes) -> Page:
    """Read the image directory.

    Raises:
        ImageError: it is damaged, or the file holds several images.
    """
    try:
        pages = _read_pages(content)
    except (struct.error, OverflowError):
        raise ImageError("a damaged or truncated TIFF") from None
    full = [page for page in pages if not page.first(_SUBFILE, 0) & 1]
    if len(full) > 1:
        raise ImageError(f"a TIFF of {len(full)} pages: save each as a file of its own")
    _require_whole(content, pages[0])
    return pages[0]


def without_surprises(content: bytes, page: Page, *, ignore_orientation: bool) -> bytes:
    """Rewrite the tags that make libtiff change pixels: it multiplies by alpha, and always turns upright."""
    changes = {}
    if page.first(_EXTRA_SAMPLES, 0) == _UNASSOCIATED_ALPHA:
        changes[_EXTRA_SAMPLES] = _ASSOCIATED_ALPHA
    if ignore_orientation and page.first(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        changes[_ORIENTATION] = _UPRIGHT
    if not changes:
        return content
    edited = bytearray(content)
    for tag, value in changes.items():
        entry = page.entries[tag]
        struct.pack_into(page.order + entry.code, edited, entry.position, value)
    return bytes(edited)


def read_many_channels(content: bytes, page: Page) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read a page of more than four channels, which OpenCV does not.

    Returns:
        `(rows, columns, channels)` uint8 or uint16.

    Raises:
        ImageError: it is tiled, planar, signed or compressed other than by deflate, or strips are missing.
    """
    bits, compression = page.first(_BITS, 1), page.first(_COMPRESSION, _UNCOMPRESSED)
    readable = (
        bits in (8, 16)
        and page.first(_SAMPLE_FORMAT, 1) == 1
        and page.first(_PLANAR, 1) == 1
        and page.first(_ORIENTATION, _UPRIGHT) == _UPRIGHT
        and _TILE_WIDTH not in page.entries
        and compression in (_UNCOMPRESSED, *_DEFLATE)
    )
    if not readable:
        raise ImageError(
            f"a TIFF of {page.channels} channels is read only where it is upright, in uncompressed or "
            "deflated strips of interleaved 8- or 16-bit samples: save it so, or with three channels"
        )
    shape = (page.rows, page.columns, page.channels)
    samples = np.dtype(f"{page.order}u{bits // 8}")
    data = _read_strips(
        content, page, int(np.prod(shape)) * samples.itemsize, deflated=compression in _DEFLATE
    )
    pixels = np.frombuffer(data, samples).reshape(shape).astype(samples.newbyteorder("="))
    if page.first(_PREDICTOR, 1) == 2:
        pixels = np.cumsum(pixels, axis=1, dtype=pixels.dtype)
    return pixels


def _require_whole(content: bytes, page: Page) -> None:
    """Check that the pixels lie in the file; libtiff can make a partial image of what is left of them."""
    for offsets, sizes in ((_STRIP_OFFSETS, _STRIP_SIZES), (_TILE_OFFSETS, _TILE_SIZES)):
        if offsets in page.entries and sizes in page.entries:
            places = zip(page.entries[offsets].values, page.entries[sizes].values, strict=False)
            if any(offset + size > len(content) for offset, size in places):
                raise ImageError("a truncated TIFF")


def _read_strips(content: bytes, page: Page, size_bytes: int, *, deflated: bool) -> bytes:
    data = bytearray()
    if _STRIP_OFFSETS not in page.entries or _STRIP_SIZES not in page.entries:
        raise ImageError("a damaged TIFF (it has no strips)")
    offsets, sizes = page.entries[_STRIP_OFFSETS].values, page.entries[_STRIP_SIZES].values
    for offset, size in zip(offsets, sizes, strict=False):
        strip = content[offset : offset + size]
        try:
            data += zlib.decompressobj().decompress(strip, size_bytes - len(data) + 1) if deflated else strip
        except zlib.error as error:
            raise ImageError(f"a damaged TIFF ({error})") from None
    if len(data) != size_bytes:
        raise ImageError("a damaged or truncated TIFF")
    return bytes(data)


def _read_pages(content: bytes) -> list[Page]:
    order: Literal["<", ">"] = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    pages: list[Page] = []
    seen: set[int] = set()
    while offset and offset not in seen and len(pages) < _MAX_PAGES:
        seen.add(offset)
        page, offset = _read_directory(content, offset, order, big=big)
        pages.append(page)
    if not pages:
        raise ImageError("a TIFF without an image")
    return pages


def _read_directory(content: bytes, offset: int, order: Literal["<", ">"], *, big: bool) -> tuple[Page, int]:
    count_code, entry_code, inline_bytes = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (count,) = struct.unpack_from(order + count_code, content, offset)
    offset += struct.calcsize(order + count_code)
    entries = {}
    for _ in range(count):
        tag, kind, length = struct.unpack_from(order + entry_code, content, offset)
        position = offset + struct.calcsize(order + entry_code)
        offset = position + inline_bytes
        if kind not in _TYPE_BYTES:
            continue
        if length * _TYPE_BYTES[kind] > inline_bytes:
            (position,) = struct.unpack_from(order + ("Q" if big else "I"), content, position)
        if position + length * _TYPE_BYTES[kind] > len(content):
            raise ImageError("a damaged or truncated TIFF")
        values = struct.unpack_from(f"{order}{length}{_TYPE_CODES[kind]}", content, position)
        entries[tag] = Entry(values, position, _TYPE_CODES[kind])
    (following,) = struct.unpack_from(order + ("Q" if big else "I"), content, offset)
    return Page(order, entries), following
