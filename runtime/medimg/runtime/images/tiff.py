"""The image directories of a TIFF file.

Tag numbers are those of TIFF 6.0 (Adobe, 1992), section 8; BigTIFF differs in the width of its fields.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError


class Tag(IntEnum):
    """The fields that decide what the pixels are."""

    SUBFILE = 254
    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    SAMPLES = 277
    STRIP_ROWS = 278
    STRIP_SIZES = 279
    PLANAR = 284
    PREDICTOR = 317
    COLOUR_MAP = 320
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_SIZES = 325
    INK_SET = 332
    SAMPLE_FORMAT = 339
    JPEG_TABLES = 347


_TYPE_BYTES = {1: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8}
_TYPE_CODES = {1: "B", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q"}
_REDUCED, _MASK = 1, 4
_UPRIGHT = 1
_MAX_PAGES, _MAX_ENTRIES, _MAX_ENTRIES_IN_ALL = 65536, 4096, 2**21


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
    entries: dict[int, Entry]

    def first(self, tag: Tag, default: int | None = None) -> int:
        """Give a field's first value."""
        if (entry := self.entries.get(tag)) and entry.count:
            (value,) = struct.unpack_from(entry.code, self.content, entry.position)
            return int(value)
        if default is None:
            raise ImageError(f"a damaged TIFF{self.which} (tag {tag:d} is missing)")
        return default

    def same(self, tag: Tag, default: int) -> int:
        """Give the value that a field has for every channel."""
        values = set(self.values(tag)) or {default}
        if len(values) > 1:
            raise ImageError(
                f"a TIFF whose channels differ in tag {tag:d}{self.which}: save them all with 8 or 16 bits"
            )
        return values.pop()

    def values(self, tag: Tag) -> list[int]:
        """Give all values of a field, none where it is missing."""
        if (entry := self.entries.get(tag)) is None:
            return []
        values: NDArray[Any] = np.frombuffer(self.content, entry.code, entry.count, entry.position)
        return [int(value) for value in values.tolist()]

    @property
    def rows(self) -> int:
        """Height in pixels."""
        return self.first(Tag.HEIGHT)

    @property
    def columns(self) -> int:
        """Width in pixels."""
        return self.first(Tag.WIDTH)

    @property
    def is_auxiliary(self) -> bool:
        """Whether it is a smaller copy of another page, or a mask for one."""
        return bool(self.first(Tag.SUBFILE, 0) & (_REDUCED | _MASK))

    @property
    def which(self) -> str:
        """Name the page in a message; the first needs no name."""
        return f" (page {self.number})" if self.number > 1 else ""


def read_pages(content: bytes) -> Iterator[Page]:
    """Read one image directory after the other, without thumbnails and masks unless there is nothing else.

    Yields:
        At least one page.

    Raises:
        ImageError: one is damaged, there is none, or there are too many.
    """
    first, shown = None, False
    try:
        for page in _read_pages(content):
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


def orientation(content: bytes) -> int:
    """Read the orientation out of EXIF data, which are a TIFF file without pixels; 1 where there is none."""
    try:
        return next((page.first(Tag.ORIENTATION, _UPRIGHT) for page in _read_pages(content)), _UPRIGHT)
    except (ImageError, struct.error, OverflowError, ValueError):
        return _UPRIGHT


def _read_pages(content: bytes) -> Iterator[Page]:
    order: Literal["<", ">"] = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    (position,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    seen: set[int] = set()
    entries_in_all = 0
    while position and position not in seen:
        seen.add(position)
        entries, following = _read_directory(content, position, order, big=big)
        yield Page(content, order, len(seen), entries)
        position, entries_in_all = following, entries_in_all + len(entries)
        if len(seen) > _MAX_PAGES or entries_in_all > _MAX_ENTRIES_IN_ALL:
            raise ImageError(f"a TIFF of more pages than are read: the limit is {_MAX_PAGES:,}")


def _read_directory(
    content: bytes, offset: int, order: Literal["<", ">"], *, big: bool
) -> tuple[dict[int, Entry], int]:
    count_code, entry_code, inline_bytes = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (count,) = struct.unpack_from(order + count_code, content, offset)
    if count > _MAX_ENTRIES:
        raise ImageError("a damaged TIFF (its directory has no end)")
    offset += struct.calcsize(order + count_code)
    entries: dict[int, Entry] = {}
    for _ in range(count):
        tag, kind, length = struct.unpack_from(order + entry_code, content, offset)
        position = offset + struct.calcsize(order + entry_code)
        offset = position + inline_bytes
        if tag not in _NEEDED:
            continue
        if kind not in _TYPE_BYTES or tag in entries:
            # Readers do not agree which of two they take.
            raise ImageError(f"a damaged TIFF (tag {tag} is there twice, or of type {kind})")
        if length * _TYPE_BYTES[kind] > inline_bytes:
            (position,) = struct.unpack_from(order + ("Q" if big else "I"), content, position)
        if position + length * _TYPE_BYTES[kind] > len(content):
            raise ImageError("a damaged or truncated TIFF")
        entries[tag] = Entry(position, length, order + _TYPE_CODES[kind])
    (following,) = struct.unpack_from(order + ("Q" if big else "I"), content, offset)
    return entries, following


_NEEDED = frozenset(int(tag) for tag in Tag)
