"""From samples as decoded to stored values, one rule for every transfer syntax (PS3.5 8.1.1).

The bits from `high_bit` down are the value, those above do not count, and the highest one is the sign.
Uncompressed words are read so. A codestream says itself how many bits its samples have and whether they have
a sign; where that and the data set allow two readings that differ, the file is refused.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images.dicom.codestreams import Codestream
from medimg.runtime.images.dicom.header import PixelHeader

_CONVERT = "convert the file to Explicit VR Little Endian and correct its header"
_ROUGH = 1 / 8
"""Share of the stored range; where neighbours differ by more, values are not smooth."""


def from_words(words: NDArray[Any], header: PixelHeader) -> NDArray[Any]:
    """Read words of the allocated size.

    Args:
        words: unsigned, of any shape.
        header: what the data set says.

    Returns:
        Stored values of the same shape, signed where the header says so.

    Raises:
        ImageError: the high bit is lower than the stored bits are many, or lies outside the word.
    """
    bits, stored, high = 8 * words.itemsize, header.bits_stored, header.high_bit
    if not stored <= high + 1 <= bits:
        raise ImageError(f"its high bit is {high} where {stored} of {bits} bits are stored (PS3.5 8.1.1)")
    return _cut(words, high + 1 - stored, stored, is_signed=header.is_signed)


def from_codestream(samples: NDArray[Any], stream: Codestream, header: PixelHeader) -> NDArray[Any]:
    """Read the samples of a codestream.

    Args:
        samples: as decoded, of any shape.
        stream: what the codestream says.
        header: what the data set says.

    Returns:
        Stored values of the same shape, signed where the header says so.

    Raises:
        ImageError: the two contradict each other, and it makes a difference.
    """
    words = samples.view(f"u{samples.itemsize}")
    stored, high = header.bits_stored, header.high_bit
    if stream.is_signed and not header.is_signed and samples.min(initial=0) < 0:
        raise ImageError(
            f"its codestream has negative values where the header says that there are none: {_CONVERT}"
        )
    if stored > stream.bits:
        return _narrow(samples, stream, header)
    shift = high + 1 - stored
    if shift > 0 and stream.bits > high:
        return _cut(words, shift, stored, is_signed=header.is_signed)
    if shift != 0 and stream.bits != stored:
        raise ImageError(
            f"its high bit is {high} where {stored} bits are stored and its codestream has {stream.bits}: "
            f"{_CONVERT}"
        )
    values = _cut(words, 0, stored, is_signed=header.is_signed)
    if stream.bits > stored:
        _require_unused(samples, values, stream, header)
    return values


def _cut(words: NDArray[Any], shift: int, stored: int, *, is_signed: bool) -> NDArray[Any]:
    """Take `stored` bits from bit `shift` on, and extend the sign."""
    kind = np.dtype(f"{'i' if is_signed else 'u'}{words.itemsize}")
    spare = 8 * words.itemsize - stored
    # Shifted up as bits, and down as numbers, which extends the sign.
    raised = (words << words.dtype.type(max(spare - shift, 0))).view(kind)
    return np.asarray(raised >> kind.type(spare))


def _narrow(samples: NDArray[Any], stream: Codestream, header: PixelHeader) -> NDArray[Any]:
    """Take samples of fewer bits than are stored as they are, unless they may be negative."""
    if header.is_signed and not stream.is_signed and int(samples.max(initial=0)) >> (stream.bits - 1):
        raise ImageError(
            f"its codestream has {stream.bits} bits without a sign where the header says "
            f"{header.bits_stored} bits with a sign, so that large values may be negative ones: {_CONVERT}"
        )
    return samples


def _require_unused(
    samples: NDArray[Any], values: NDArray[Any], stream: Codestream, header: PixelHeader
) -> None:
    """Refuse samples whose bits above the stored ones seem to belong to the values.

    Overlays in those bits, which old files have, leave the values beneath them smooth. Where such a bit
    changes from a pixel to the next and the value jumps with it, the header's number of bits is wrong.
    """
    stored = header.bits_stored
    whole, low = samples.ravel().astype(np.int64), values.ravel().astype(np.int64)
    unused = (whole >> stored) & (2 ** (stream.bits - stored) - 1)
    of_sign = np.where(low < 0, 2 ** (stream.bits - stored) - 1, 0)
    if not unused.any() or np.array_equal(unused, of_sign):
        return
    changes = np.flatnonzero(np.diff(unused))
    if not changes.size:
        return
    if np.median(np.abs(np.diff(low)[changes])) > 2**stored * _ROUGH:
        raise ImageError(
            f"its codestream has {stream.bits} bits where the header says that {stored} are stored: "
            f"{_CONVERT}"
        )
