"""The one reader of a data set: what is absent, empty, no number, of another sign, or in a frame's groups.

Nothing here repeats what a file holds but numbers, for a message must not name a patient.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from medimg.runtime.errors import ImageError

DataSet: TypeAlias = Any
"""A `pydicom.Dataset`, which has no types."""

# What pydicom and decoders raise on damaged files, found by flipping bits in pydicom's own test files.
DAMAGED = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_UID = re.compile(r"[0-9.]{1,64}")


def name_of(keyword: str) -> str:
    """Return the name of an element as the standard writes it, such as `Window Width`."""
    from pydicom.datadict import dictionary_description

    return str(dictionary_description(keyword))


def value(item: DataSet, keyword: str) -> Any:  # noqa: ANN401  whatever pydicom makes of the element
    """Return an element's value, or None where it is absent or empty.

    Raises:
        ImageError: the value is none of its kind.
    """
    try:
        found = item.get(keyword)
    except DAMAGED:
        raise ImageError(f"its {name_of(keyword)} cannot be read") from None
    is_empty = found is None or (hasattr(found, "__len__") and len(found) == 0)
    return None if is_empty else found


def items(item: DataSet, keyword: str) -> list[DataSet]:
    """Return the items of a sequence that hold anything; none where it is absent or empty.

    Raises:
        ImageError: it is no sequence.
    """
    found = value(item, keyword)
    if found is None:
        return []
    if isinstance(found, (str, bytes, int, float)):
        raise ImageError(f"its {name_of(keyword)} cannot be read")
    return [one for one in found if len(one)]


def numbers(item: DataSet, keyword: str) -> list[float | None]:
    """Return the values of an element, None for each that is empty.

    Raises:
        ImageError: one is no number.
    """
    found = value(item, keyword)
    if found is None:
        return []
    values = [found] if isinstance(found, (str, bytes, int, float)) else list(found)
    try:
        return [None if one is None or one == "" else float(one) for one in values]
    except (TypeError, ValueError, OverflowError):
        raise ImageError(f"its {name_of(keyword)} is not a number") from None


def number(item: DataSet, keyword: str) -> float | None:
    """Return the first value of an element.

    Raises:
        ImageError: it is no number, or not finite.
    """
    found = next(iter(numbers(item, keyword)), None)
    return None if found is None else finite(found, name_of(keyword))


def whole(item: DataSet, keyword: str) -> int | None:
    """Return the first value of an element that counts something.

    Raises:
        ImageError: it is no whole number.
    """
    found = number(item, keyword)
    if found is not None and not found.is_integer():
        raise ImageError(f"its {name_of(keyword)} is {found:g}: a whole number is wanted")
    return None if found is None else int(found)


def finite(found: float, name: str, way_out: str = "correct the file") -> float:
    """Pass a number on.

    Raises:
        ImageError: it is infinite or not a number.
    """
    if not math.isfinite(found):
        raise ImageError(f"its {name} is {'NaN' if math.isnan(found) else 'infinite'}: {way_out}")
    return found


def codes(item: DataSet, keyword: str) -> list[str]:
    """Return the values of a code string in capitals; only terms that DICOM defines may be shown."""
    found = value(item, keyword)
    values = list(found) if isinstance(found, Iterable) and not isinstance(found, (str, bytes)) else [found]
    return [str(one).strip().upper() for one in values if one is not None]


def uid_name(uid: object) -> str:
    """Return the name of a UID, itself where it has none, or `unknown` where it is no UID at all."""
    from pydicom.uid import UID

    text = str(uid)
    return str(UID(text).name) if _UID.fullmatch(text) else "unknown"


def code(item: DataSet, keyword: str) -> str:
    """Return the first value of a code string, or an empty text."""
    return next(iter(codes(item, keyword)), "")


def holders(dataset: DataSet, frame: int, macro: str) -> Iterator[DataSet]:
    """Give what may describe a frame, first what holds for it: its own macro, the shared one, the data set.

    Args:
        dataset: the file's data set.
        frame: index of the frame.
        macro: keyword of the functional group's sequence (PS3.3 C.7.6.16).
    """
    groups = value(dataset, "PerFrameFunctionalGroupsSequence") or ()
    shared = value(dataset, "SharedFunctionalGroupsSequence") or ()
    for group in (*groups[frame : frame + 1], *shared[:1]):
        yield from items(group, macro)[:1]
    yield dataset


def is_big_endian(item: DataSet) -> bool:
    """Tell the byte order of words that pydicom leaves as bytes."""
    return getattr(item, "original_encoding", (None, True))[1] is False
