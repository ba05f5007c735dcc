"""Windows bitmaps, read here because OpenCV heeds neither masks nor headers but the commonest.

The structures are BITMAPCOREHEADER, BITMAPINFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER of the Windows API.
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError

_FILE_HEADER_BYTES: Final = 14
_CORE, _INFO, _V2, _V3, _OS2, _V4, _V5 = 12, 40, 52, 56, 64, 108, 124
_RGB, _BITFIELDS = 0, 3
_OTHERS: Final = {
    1: "RLE8",
    2: "RLE4",
    4: "JPEG",
    5: "PNG",
    6: "with alpha masks",
    11: "CMYK",
    12: "CMYK",
    13: "CMYK",
}
_USUAL_MASKS: Final = {16: (0x7C00, 0x03E0, 0x001F), 32: (0xFF0000, 0xFF00, 0xFF)}


@dataclass(frozen=True)
class Bitmap:
    """What a header says."""

    rows: int
    columns: int
    is_upside_down: bool
    """Whether the last row is stored first, as is usual."""
    bits: int
    """Bits per pixel: 1, 4, 8, 16, 24 or 32."""
    masks: tuple[int, ...]
    """Which bits of a pixel are red, green and blue, where it has 16 or 32."""
    palette: NDArray[np.uint8]
    """`(values, 3)` RGB, of no values where there are more than 8 bits."""
    pixels_at: int
    """Where the pixels lie in the file."""

    @property
    def row_bytes(self) -> int:
        """Bytes per row, which is filled up to four."""
        return -(-self.columns * self.bits // 32) * 4


def read_header(content: bytes) -> Bitmap:
    """Read the header of a bitmap.

    Raises:
        ImageError: it is truncated, or of a kind that is not read.
    """
    try:
        return _read_header(content)
    except struct.error:
        raise ImageError("a truncated BMP") from None


def read_pixels(content: bytes, bitmap: Bitmap) -> NDArray[np.uint8]:
    """Decode `(rows, columns, 3)` RGB.

    Raises:
        ImageError: pixels are missing, or beyond the palette.
    """
    size = bitmap.rows * bitmap.row_bytes
    if bitmap.pixels_at + size > len(content):
        raise ImageError("a truncated BMP")
    stored = np.frombuffer(content, np.uint8, size, bitmap.pixels_at).reshape(bitmap.rows, -1)
    if bitmap.is_upside_down:
        stored = stored[::-1]
    if bitmap.bits <= 8:
        return _with_palette(stored, bitmap)
    if bitmap.bits == 24:
        pixels = np.ascontiguousarray(stored[:, : 3 * bitmap.columns]).reshape(bitmap.rows, -1, 3)
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
    return _with_masks(stored, bitmap)


def _read_header(content: bytes) -> Bitmap:
    pixels_at, header_bytes = struct.unpack_from("<II", content, 10)
    if header_bytes not in (_CORE, _INFO, _V2, _V3, _OS2, _V4, _V5):
        raise ImageError(f"a BMP whose header has {header_bytes} bytes, which is not read: save it as PNG")
    compression, used = _RGB, 0
    if header_bytes == _CORE:
        columns, rows, planes, bits = struct.unpack_from("<HHHH", content, 18)
    else:
        columns, rows, planes, bits, compression = struct.unpack_from("<iiHHI", content, 18)
        (used,) = struct.unpack_from("<I", content, 46)
    masks, after = _masks(content, header_bytes, bits, compression)
    if planes != 1 or bits not in (1, 4, 8, 16, 24, 32):
        raise ImageError(f"a BMP of {bits} bits in {planes} planes, which is not read: save it as PNG")
    if not after <= pixels_at <= len(content):
        raise ImageError("a damaged or truncated BMP (its pixels begin outside of it)")
    entry_bytes = 3 if header_bytes == _CORE else 4
    room = (pixels_at - after) // entry_bytes
    palette = _palette(content, after, entry_bytes, min(used or 2**bits, room)) if bits <= 8 else _NO_PALETTE
    if used > 2**bits and bits <= 8:
        raise ImageError(f"a damaged BMP (a palette of {used} colours for {bits} bits)")
    return Bitmap(abs(rows), columns, rows > 0, bits, masks, palette, pixels_at)


def _masks(content: bytes, header_bytes: int, bits: int, compression: int) -> tuple[tuple[int, ...], int]:
    """Give the masks and where the palette would begin."""
    after = _FILE_HEADER_BYTES + header_bytes
    if compression == _RGB:
        return _USUAL_MASKS.get(bits, ()), after
    # OS/2 numbers its compressions otherwise.
    is_masks = compression == _BITFIELDS and header_bytes != _OS2
    if not is_masks or bits not in _USUAL_MASKS:
        name = _OTHERS.get(compression, f"number {compression}")
        raise ImageError(f"a BMP of compression {name} and {bits} bits, which is not read: save it as PNG")
    masks = struct.unpack_from("<III", content, _FILE_HEADER_BYTES + _INFO)
    if header_bytes == _INFO:
        after += 12
    for mask in masks:
        run = mask >> _lowest(mask) if mask else 0
        if not mask or mask >> bits or run & (run + 1):
            raise ImageError(f"a BMP with the colour mask {mask:#x}, which is not read: save it as PNG")
    if masks[0] & masks[1] or masks[1] & masks[2] or masks[0] & masks[2]:
        raise ImageError("a BMP whose colour masks overlap: save it as PNG")
    return masks, after


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


_NO_PALETTE: Final = np.zeros((0, 3), np.uint8)


def _palette(content: bytes, start: int, entry_bytes: int, count: int) -> NDArray[np.uint8]:
    entries = np.frombuffer(content, np.uint8, count * entry_bytes, start).reshape(count, entry_bytes)
    return np.ascontiguousarray(entries[:, 2::-1])


def _with_palette(stored: NDArray[np.uint8], bitmap: Bitmap) -> NDArray[np.uint8]:
    values: NDArray[Any] = stored
    if bitmap.bits < 8:
        shifts = np.arange(8 - bitmap.bits, -1, -bitmap.bits, dtype=np.uint8)
        values = (stored[..., np.newaxis] >> shifts & (1 << bitmap.bits) - 1).reshape(bitmap.rows, -1)
    values = values[:, : bitmap.columns]
    if values.max() >= len(bitmap.palette):
        raise ImageError("a damaged BMP (its palette has fewer colours than its pixels name)")
    return np.take(bitmap.palette, values, axis=0)


def _with_masks(stored: NDArray[np.uint8], bitmap: Bitmap) -> NDArray[np.uint8]:
    if bitmap.masks == _USUAL_MASKS[32]:
        pixels = np.ascontiguousarray(stored).reshape(bitmap.rows, -1, 4)
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB).astype(np.uint8, copy=False)
    words = stored.view(f"<u{bitmap.bits // 8}")[:, : bitmap.columns]
    image = np.empty((bitmap.rows, bitmap.columns, 3), np.uint8)
    for channel, mask in enumerate(bitmap.masks):
        values = (words & words.dtype.type(mask)) >> words.dtype.type(_lowest(mask))
        most = mask >> _lowest(mask)
        image[..., channel] = values if most == 255 else np.rint(values * (255 / most))
    return image
