"""Lookup tables and palettes (PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5, C.7.9), read one way."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images.dicom.elements import DataSet, finite, is_big_endian, name_of, numbers, value

_WORDS = 65536
_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class LookupTable:
    """A table of numbers."""

    first: int
    """The input value of the first entry; smaller ones take the first entry, larger ones the last."""
    entries: NDArray[np.uint16]
    bits: int
    """The range of the entries is 0 to `2**bits - 1`."""

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """Look values up; rescaled ones are rounded first."""
        last = float(len(self.entries) - 1)
        indices = np.clip(np.rint(values) - float(self.first), 0.0, last)
        return np.asarray(self.entries[indices.astype(np.int64)])


def read_table(item: DataSet, low: float, high: float) -> LookupTable | None:
    """Read an item of a modality or VOI LUT sequence, or None where it is empty.

    Args:
        item: the item.
        low: the smallest input value that there can be.
        high: the largest one.

    Raises:
        ImageError: it has fewer entries than it says, or larger ones than its bits allow.
    """
    if value(item, "LUTDescriptor") is None and value(item, "LUTData") is None:
        return None
    count, first, bits = _descriptor(item, "LUTDescriptor", low, high)
    entries, width = _entries(item, "LUTData", count)
    table = LookupTable(first, entries, min(bits, width))
    if int(entries.max()) >= 2**table.bits:
        raise ImageError(
            f"a lookup table of {table.bits} bits whose largest entry is {int(entries.max())}: "
            "use another window or the rule min-max"
        )
    return table


def read_palette(dataset: DataSet, low: float, high: float) -> tuple[LookupTable, ...]:
    """Read the tables of red, green and blue, whose entries are 8 bits wide in the end.

    Raises:
        ImageError: one is missing or shorter than it says.
    """
    tables = [_read_colour(dataset, colour, low, high) for colour in _COLOURS]
    # Whichever frame is shown, the tables alone tell whether the bytes are the entries or their high bytes.
    shift = np.uint16(8 if any(table.bits > 8 for table in tables) else 0)
    return tuple(LookupTable(table.first, table.entries >> shift, 8) for table in tables)


def _read_colour(dataset: DataSet, colour: str, low: float, high: float) -> LookupTable:
    count, first, bits = _descriptor(dataset, f"{colour}PaletteColorLookupTableDescriptor", low, high)
    if value(dataset, f"{colour}PaletteColorLookupTableData") is not None:
        entries, width = _entries(dataset, f"{colour}PaletteColorLookupTableData", count)
    else:
        keyword = f"Segmented{colour}PaletteColorLookupTableData"
        entries, width = _expand(_words(dataset, keyword), count, keyword), 16
    width = min(width, bits) if int(entries.max()) < 2**bits else 16
    return LookupTable(first, entries, width)


def _descriptor(item: DataSet, keyword: str, low: float, high: float) -> tuple[int, int, int]:
    """Read a table's number of entries, first input value and bits.

    Files that say neither sign nor VR (Implicit VR), or the wrong one, hold the first value as 16 bits: it is
    taken with the sign with which the table covers more of the values that can occur, and if that does not
    tell, is signed where they can be negative (PS3.3 C.11.2.1.1).
    """
    values = [finite(one, name_of(keyword)) for one in numbers(item, keyword) if one is not None]
    if len(values) != 3:
        raise ImageError(f"its {name_of(keyword)} has {len(values)} values where three are wanted")
    count, first, bits = (int(one) for one in values)
    count = count % _WORDS or _WORDS
    if not 1 <= bits <= 16:
        raise ImageError(f"a lookup table of {count} entries of {bits} bits")
    unsigned = first % _WORDS
    readings = (unsigned - _WORDS, unsigned) if unsigned >= _WORDS // 2 else (unsigned,)
    if low >= 0:
        readings = readings[::-1]
    return count, max(readings, key=lambda start: min(start + count - 1, high) - max(start, low)), bits


def _entries(item: DataSet, keyword: str, count: int) -> tuple[NDArray[np.uint16], int]:
    """Read a table's entries and their width, 8 or 16 bits, whatever the number of bits that count."""
    words = _words(item, keyword)
    if len(words) >= count:
        return words[:count], 16
    packed = words.astype("<u2").view(np.uint8)
    if len(packed) < count:
        raise ImageError(f"a lookup table of {len(words)} entries where {count} are announced")
    return packed[:count].astype(np.uint16), 8


def _words(item: DataSet, keyword: str) -> NDArray[np.uint16]:
    found = value(item, keyword)
    if found is None:
        raise ImageError(f"a lookup table without {name_of(keyword)}")
    if isinstance(found, bytes):
        content = found[: len(found) // 2 * 2] if len(found) > 1 else found + b"\0"
        return np.frombuffer(content, ">u2" if is_big_endian(item) else "<u2").astype(np.uint16)
    values = [finite(one or 0, name_of(keyword)) for one in numbers(item, keyword)]
    return (np.array(values, np.float64).astype(np.int64) % _WORDS).astype(np.uint16)


def _expand(words: NDArray[np.uint16], count: int, keyword: str) -> NDArray[np.uint16]:
    """Write out a segmented palette (PS3.3 C.7.9.2)."""
    stream, entries, position = words.tolist(), list[int](), 0
    try:
        while position + 1 < len(stream) and len(entries) < count:
            position = _expand_segment(stream, position, entries, count)
    except IndexError:
        raise ImageError(f"its {name_of(keyword)} is damaged") from None
    if len(entries) < count:
        raise ImageError(f"a palette of {len(entries)} entries where {count} are announced")
    return np.array(entries[:count], np.uint16)


def _expand_segment(stream: list[int], position: int, entries: list[int], count: int) -> int:
    """Append one segment's entries: single ones, a straight line, or other segments once more.

    Returns:
        Where the next segment begins.
    """
    kind, length = stream[position : position + 2]
    if kind == 0:
        entries += stream[position + 2 : position + 2 + length]
        return position + 2 + length
    if kind == 1:
        start, end = entries[-1], stream[position + 2]
        entries += np.rint(np.linspace(start, end, length + 1)[1:]).astype(int).tolist()
        return position + 3
    # The offset is in bytes, its low word first.
    again = (stream[position + 2] + _WORDS * stream[position + 3]) // 2
    for _ in range(length):
        if len(entries) >= count:
            break
        if kind != 2 or stream[again] == 2:
            raise IndexError
        again = _expand_segment(stream, again, entries, count)
    return position + 4
