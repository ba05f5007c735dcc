"""TIFF files: what OpenCV's reader cannot be told, or does not read.

Tag numbers are those of TIFF 6.0 (Adobe, 1992), section 8; BigTIFF differs in the width of its fields.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

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
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_READABLE_BITS = {_UNSIGNED: (1, 2, 4, 8, 10, 12, 14, 16), _FLOAT: (32, 64)}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_REDUCED, _MASK = 1, 4
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_UPRIGHT = 1
_MAX_PAGES, _MAX_ENTRIES = 65536, 4096


@dataclass(frozen=True)
class Entry:
    """One field of an image directory, whose values stay in the file until they are asked for."""

    position: int
    """Where the first value lies in the file."""
    count: int
    """How many values there are."""
    code: str
    """How `struct` and numpy read one value, byte order included."""


@dataclass(frozen=True)
class Page:
    """An image of a TIFF file."""

    content: bytes
    """The whole file."""
    order: Literal["<", ">"]
    number: int
    """From 1."""
    position: int
    """Where its directory lies in the file."""
    entries: dict[int, Entry]

    def first(self, tag: int, default: int | None = None) -> int:
        """Give a field's first value."""
        if (entry := self.entries.get(tag)) and entry.count:
            (value,) = struct.unpack_from(entry.code, self.content, entry.position)
            return int(value)
        if default is None:
            raise ImageError(f"a damaged TIFF (tag {tag} is missing)")
        return default

    def values(self, tag: int) -> list[int]:
        """Give all values of a field, none where it is missing."""
        if (entry := self.entries.get(tag)) is None:
            return []
        return [int(value) for value in self.array(entry)]

    def array(self, entry: Entry) -> NDArray[np.unsignedinteger[Any]]:
        """Give a field's values without a copy."""
        return np.frombuffer(self.content, entry.code, entry.count, entry.position)

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
    def bits(self) -> int:
        """Bits a sample."""
        return self.first(_BITS, 1)

    @property
    def is_float(self) -> bool:
        """Whether samples are floating-point numbers."""
        return self.first(_SAMPLE_FORMAT, _UNSIGNED) == _FLOAT

    @property
    def is_auxiliary(self) -> bool:
        """Whether it is a smaller copy of another page, or a mask for one."""
        return bool(self.first(_SUBFILE, 0) & (_REDUCED | _MASK))

    def require_readable(self) -> None:
        """Check that the pixels lie in the file, and are of a kind whose decoding is known to be right.

        libtiff can make a partial image of what is left of the pixels, and OpenCV takes wider samples of
        CMYK or CIELab for RGB.
        """
        for offsets, sizes in ((_STRIP_OFFSETS, _STRIP_SIZES), (_TILE_OFFSETS, _TILE_SIZES)):
            if offsets in self.entries and sizes in self.entries:
                places, lengths = (
                    self.array(self.entries[tag]).astype(np.float64) for tag in (offsets, sizes)
                )
                count = min(len(places), len(lengths))
                if (places[:count] + lengths[:count] > len(self.content)).any():
                    raise ImageError(f"a truncated TIFF{self.which}")
        kind = self.first(_SAMPLE_FORMAT, _UNSIGNED)
        if self.bits not in _READABLE_BITS.get(kind, ()):
            name = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float"}.get(kind, "unusual")
            raise ImageError(
                f"a TIFF of {self.bits}-bit {name} samples{self.which}: save it with 8 or 16 bits, "
                "or as 32-bit float"
            )
        if self.bits > 8 and self.first(_PHOTOMETRIC, _BLACK_IS_ZERO) not in (
            _WHITE_IS_ZERO,
            _BLACK_IS_ZERO,
            _RGB,
        ):
            raise ImageError(
                f"a TIFF of {self.bits}-bit samples that are neither grey nor RGB{self.which}: save it so"
            )

    @property
    def which(self) -> str:
        """Name the page in a message; the first needs no name."""
        return f" (page {self.number})" if self.number > 1 else ""

    def as_shown(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Do what OpenCV leaves undone: spread 10 to 14 bits, and turn values that count downwards."""
        if pixels.dtype == np.uint16 and self.bits < 16:
            largest = 2**self.bits - 1
            pixels = (
                ((pixels >> 16 - self.bits).astype(np.uint32) * 65535 + largest // 2) // largest
            ).astype(np.uint16)
        if self.bits > 8 and self.first(_PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO:
            return np.asarray((1 if self.is_float else np.uint16(65535)) - pixels)
        return pixels


class TiffFile:
    """A TIFF file whose pages are handed to OpenCV one by one.

    Args:
        content: the whole file.
        ignore_orientation: whether pages are decoded as they are stored.
    """

    def __init__(self, content: bytes, *, ignore_orientation: bool) -> None:
        self._content = content
        self._ignore_orientation = ignore_orientation
        self._edited = bytearray(content)

    def pages(self) -> Iterator[Page]:
        """Read one image directory after the other, without thumbnails and masks.

        Raises:
            ImageError: one is damaged, or there is none.
        """
        first, shown = None, False
        try:
            for page in _read_pages(self._content):
                first = first or page
                if not page.is_auxiliary:
                    shown = True
                    yield page
        except (struct.error, OverflowError, ValueError):
            raise ImageError("a damaged or truncated TIFF") from None
        if first is None:
            raise ImageError("a TIFF without an image")
        if not shown:
            yield first

    def starting_at(self, page: Page) -> bytearray:
        """Give the file with this page first, and without the tags that make libtiff change pixels.

        It multiplies by alpha, and always turns upright. The next call changes the array given here.
        """
        big = _is_big(self._content, page.order)
        struct.pack_into(page.order + ("Q" if big else "I"), self._edited, 8 if big else 4, page.position)
        if page.first(_EXTRA_SAMPLES, 0) == _UNASSOCIATED_ALPHA:
            self._set(page, _EXTRA_SAMPLES, _ASSOCIATED_ALPHA)
        if self._ignore_orientation and page.first(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
            self._set(page, _ORIENTATION, _UPRIGHT)
        return self._edited

    def _set(self, page: Page, tag: int, value: int) -> None:
        struct.pack_into(page.entries[tag].code, self._edited, page.entries[tag].position, value)


def orientation(content: bytes) -> int:
    """Read the orientation out of EXIF data, which are a TIFF file without pixels; 1 where there is none."""
    try:
        return next((page.first(_ORIENTATION, _UPRIGHT) for page in _read_pages(content)), _UPRIGHT)
    except (ImageError, struct.error, OverflowError, ValueError):
        return _UPRIGHT


def read_many_channels(page: Page) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read a page of more than four channels, which OpenCV does not, or of two, which it reduces to 8 bits.

    Returns:
        `(rows, columns, channels)` uint8 or uint16.

    Raises:
        ImageError: it is tiled, planar, signed or compressed other than by deflate, or strips are missing.
    """
    bits, compression = page.bits, page.first(_COMPRESSION, _UNCOMPRESSED)
    readable = (
        bits in (8, 16)
        and page.first(_SAMPLE_FORMAT, 1) == 1
        and page.first(_PLANAR, 1) == 1
        and page.first(_ORIENTATION, _UPRIGHT) == _UPRIGHT
        and page.first(_PHOTOMETRIC, _BLACK_IS_ZERO) != _WHITE_IS_ZERO
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
    data = _read_strips(page, int(np.prod(shape)) * samples.itemsize, deflated=compression in _DEFLATE)
    pixels = np.frombuffer(data, samples).reshape(shape).astype(samples.newbyteorder("="))
    if page.first(_PREDICTOR, 1) == 2:
        pixels = np.cumsum(pixels, axis=1, dtype=pixels.dtype)
    return pixels


def _read_strips(page: Page, size_bytes: int, *, deflated: bool) -> bytes:
    data = bytearray()
    if _STRIP_OFFSETS not in page.entries or _STRIP_SIZES not in page.entries:
        raise ImageError("a damaged TIFF (it has no strips)")
    for offset, size in zip(page.values(_STRIP_OFFSETS), page.values(_STRIP_SIZES), strict=False):
        strip = page.content[offset : offset + size]
        try:
            data += zlib.decompressobj().decompress(strip, size_bytes - len(data) + 1) if deflated else strip
        except zlib.error as error:
            raise ImageError(f"a damaged TIFF ({error})") from None
    if len(data) != size_bytes:
        raise ImageError("a damaged or truncated TIFF")
    return bytes(data)


def _is_big(content: bytes, order: str) -> bool:
    return bool(struct.unpack_from(order + "H", content, 2)[0] == 43)


def _read_pages(content: bytes) -> Iterator[Page]:
    order: Literal["<", ">"] = "<" if content[:2] == b"II" else ">"
    big = _is_big(content, order)
    (position,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    seen: set[int] = set()
    while position and position not in seen and len(seen) < _MAX_PAGES:
        seen.add(position)
        entries, following = _read_directory(content, position, order, big=big)
        yield Page(content, order, len(seen), position, entries)
        position = following


def _read_directory(
    content: bytes, offset: int, order: Literal["<", ">"], *, big: bool
) -> tuple[dict[int, Entry], int]:
    count_code, entry_code, inline_bytes = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (count,) = struct.unpack_from(order + count_code, content, offset)
    if count > _MAX_ENTRIES:
        raise ImageError("a damaged TIFF (its directory has no end)")
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
        entries[tag] = Entry(position, length, order + _TYPE_CODES[kind])
    (following,) = struct.unpack_from(order + ("Q" if big else "I"), content, offset)
    return entries, following
