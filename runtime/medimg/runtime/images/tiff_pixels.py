"""The pixels of a TIFF page: combinations of header fields that are known to be read right, and no others.

Section numbers are those of TIFF 6.0 (Adobe, 1992).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images import headers, opencv_decoder, tiff_codecs
from medimg.runtime.images.limits import Limits
from medimg.runtime.images.tiff import Page, Tag

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_READABLE_BITS: Final = {_UNSIGNED: (1, 2, 4, 8, 10, 12, 14, 16), _FLOAT: (32, 64)}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR = 0, 1, 2, 3, 5, 6
_OTHER_COLOURS: Final = {
    4: "a mask",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "CFA",
    34892: "LinearRaw",
}
_TOGETHER, _APART = 1, 2
_NO_PREDICTOR, _DIFFERENCES, _FLOAT_DIFFERENCES = 1, 2, 3
_CMYK: Final = 1
_MOST_CHANNELS, _MOST_PIECES = 64, 2**20
_SHOWN_CHANNELS: Final = 4
_WIDENED_AT_ONCE: Final = 2**20
_ADOBE: Final = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""An APP14 segment but for its last byte, the colour transform (Adobe Technical Note 5116, section 18)."""


@dataclass(frozen=True)
class _Layout:
    """How a page's samples lie in its strips or tiles."""

    rows: int
    columns: int
    channels: int
    """Samples per pixel."""
    bits: int
    """Bits per sample."""
    is_float: bool
    planes: int
    """1, or as many as channels where each channel is stored apart."""
    piece_rows: int
    """Rows of a strip or tile; the last strip may have fewer."""
    piece_columns: int
    is_tiled: bool

    @property
    def piece_channels(self) -> int:
        """Samples per pixel of a strip or tile."""
        return self.channels // self.planes

    @property
    def sample(self) -> np.dtype[Any]:
        """The type of a decoded sample."""
        kind = f"f{self.bits // 8}" if self.is_float else "u1" if self.bits <= 8 else "u2"
        return np.dtype(kind)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Give plane, first row and first column of each strip or tile, in the file's order (section 15)."""
        for plane in range(self.planes):
            for row in range(0, self.rows, self.piece_rows):
                for column in range(0, self.columns, self.piece_columns):
                    yield plane, row, column

    def count(self) -> int:
        """Number of strips or tiles."""
        down, across = -(-self.rows // self.piece_rows), -(-self.columns // self.piece_columns)
        return self.planes * down * across

    def rows_at(self, row: int) -> int:
        """Rows of the strip or tile that begins at a row."""
        return self.piece_rows if self.is_tiled else min(self.piece_rows, self.rows - row)

    def row_bytes(self) -> int:
        """Bytes per row of a strip or tile; a row ends with a whole byte."""
        return -(-self.piece_columns * self.piece_channels * self.bits // 8)


def pixel_bytes(page: Page) -> float:
    """Give the bytes per pixel, all channels together, that the header announces."""
    channels = page.first(Tag.SAMPLES, 1)
    if channels > _MOST_CHANNELS:
        raise ImageError(f"its header says {channels} channels; the limit is {_MOST_CHANNELS}")
    return channels * max(page.first(Tag.BITS, 1), 8) / 8


def read_pixels(page: Page, limits: Limits, *, ignore_orientation: bool) -> NDArray[Any]:
    """Decode a page.

    Args:
        page: of a file in memory.
        limits: on size; they hold for its tiles as well.
        ignore_orientation: whether pixels stay as they are stored.

    Returns:
        `(rows, columns, channels)` uint8, uint16, float32 or float64, grey or RGB; 10 to 14 bits are spread
        over 16, and of more than four channels the last are missing.

    Raises:
        ImageError: it is damaged, or its header has a combination that is not read.
    """
    layout = _layout(page)
    _require_readable(page, layout)
    limits.check_frame(
        layout.piece_rows, layout.piece_columns, layout.piece_channels * max(layout.bits, 8) / 8
    )
    if layout.count() > _MOST_PIECES:
        raise ImageError(f"its pixels lie in {layout.count():,} pieces; the limit is {_MOST_PIECES:,}")
    shown = _as_shown(page, _samples(page, layout, limits))
    return shown if ignore_orientation else _upright(shown, page.first(Tag.ORIENTATION, 1))


def _layout(page: Page) -> _Layout:
    channels, kind = page.first(Tag.SAMPLES, 1), page.same(Tag.SAMPLE_FORMAT, _UNSIGNED)
    bits, planar = page.same(Tag.BITS, 1), page.first(Tag.PLANAR, _TOGETHER)
    if bits not in _READABLE_BITS.get(kind, ()):
        name = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float"}.get(kind, "unusual")
        raise _refusal(page, f"{bits}-bit {name} samples", "save it with 8 or 16 bits, or as 32-bit float")
    if planar not in (_TOGETHER, _APART) or channels < 1:
        raise ImageError(f"a damaged TIFF{page.which} (it says {channels} channels, arrangement {planar})")
    is_tiled = Tag.TILE_WIDTH in page.entries or Tag.TILE_OFFSETS in page.entries
    if is_tiled:
        piece_rows, piece_columns = page.first(Tag.TILE_HEIGHT), page.first(Tag.TILE_WIDTH)
    else:
        piece_rows = min(page.first(Tag.STRIP_ROWS, page.rows), page.rows)
        piece_columns = page.columns
    if piece_rows < 1 or piece_columns < 1:
        raise ImageError(f"a damaged TIFF{page.which} (strips or tiles of no pixels)")
    return _Layout(
        rows=page.rows,
        columns=page.columns,
        channels=channels,
        bits=bits,
        is_float=kind == _FLOAT,
        planes=channels if planar == _APART else 1,
        piece_rows=piece_rows,
        piece_columns=piece_columns,
        is_tiled=is_tiled,
    )


def _refusal(page: Page, what: str, way_out: str) -> ImageError:
    return ImageError(f"a TIFF of {what}{page.which}: {way_out}")


def _require_readable(page: Page, layout: _Layout) -> None:
    """Let through what was compared with other decoders."""
    compression = page.first(Tag.COMPRESSION, tiff_codecs.UNCOMPRESSED)
    if compression not in tiff_codecs.READABLE:
        name = tiff_codecs.OTHERS.get(compression, f"number {compression}")
        raise _refusal(
            page, f"compression {name}, which is not read", "save it uncompressed, with LZW or deflate"
        )
    if page.first(Tag.FILL_ORDER, 1) != 1:
        raise _refusal(page, "bytes whose bits stand in the reverse order", "save it with FillOrder 1")
    _require_predictor(page, layout, compression)
    is_jpeg = compression == tiff_codecs.JPEG
    if (is_jpeg and not _is_readable_jpeg(page, layout)) or not _are_readable_colours(page, layout, is_jpeg):
        raise _refusal(page, _describe(page, layout), "save it as grey or RGB")


def _require_predictor(page: Page, layout: _Layout, compression: int) -> None:
    """Differences are for LZW and deflate (section 14); elsewhere readers do not agree what they mean."""
    predictor = page.first(Tag.PREDICTOR, _NO_PREDICTOR)
    if predictor == _NO_PREDICTOR or compression == tiff_codecs.JPEG:
        return
    usable = (
        layout.bits in (8, 16) if predictor == _DIFFERENCES else predictor == _FLOAT_DIFFERENCES
    ) and layout.is_float == (predictor == _FLOAT_DIFFERENCES)
    if not usable or compression not in (tiff_codecs.LZW, *tiff_codecs.DEFLATE):
        raise _refusal(
            page,
            f"predictor {predictor} with {layout.bits} bits and compression {compression}",
            "save it without a predictor",
        )


def _is_readable_jpeg(page: Page, layout: _Layout) -> bool:
    photometric = page.first(Tag.PHOTOMETRIC)
    return layout.bits == 8 and (
        (layout.piece_channels == 1 and photometric not in (_YCBCR, _PALETTE))
        or (layout.piece_channels == 3 and photometric in (_RGB, _YCBCR))
    )


def _are_readable_colours(page: Page, layout: _Layout, is_jpeg: bool) -> bool:
    photometric = page.first(Tag.PHOTOMETRIC)
    if layout.bits < 8 and layout.channels > 1:
        return False
    if photometric == _WHITE_IS_ZERO:
        return layout.channels <= 2
    if photometric == _BLACK_IS_ZERO:
        # Of three or four channels, some readers take the first for grey, others three for colours.
        return layout.channels not in (3, 4)
    if photometric == _RGB:
        return layout.channels >= 3
    if photometric == _PALETTE:
        return layout.channels == 1 and layout.bits <= 8
    if photometric == _INKS:
        inks = page.first(Tag.INK_SET, _CMYK) == _CMYK
        return layout.channels == 4 and layout.bits == 8 and inks and not is_jpeg
    return photometric == _YCBCR and is_jpeg


def _describe(page: Page, layout: _Layout) -> str:
    photometric = page.first(Tag.PHOTOMETRIC)
    names = {0: "white is zero", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", **_OTHER_COLOURS}
    name = names.get(photometric, f"photometric interpretation {photometric}")
    many = f"{layout.channels} channels, {name}, "
    return f"{many}{layout.bits}-bit samples that are neither grey nor RGB"


def _samples(page: Page, layout: _Layout, limits: Limits) -> NDArray[Any]:
    """Decode all strips or tiles into `(rows, columns, channels)`, at most four channels."""
    shown = min(layout.channels, _SHOWN_CHANNELS)
    samples = np.empty((layout.rows, layout.columns, shown), layout.sample)
    places = [place for place in layout.places() if place[0] < shown]
    for (plane, row, column), piece in zip(places, _pieces(page, layout, places, limits), strict=True):
        target = samples[row : row + piece.shape[0], column : column + piece.shape[1]]
        part = piece[: target.shape[0], : target.shape[1], :shown]
        target[..., slice(plane, plane + 1) if layout.planes > 1 else slice(None)] = part
    return samples


def _pieces(
    page: Page, layout: _Layout, places: list[tuple[int, int, int]], limits: Limits
) -> Iterator[NDArray[Any]]:
    """Give each strip or tile as `(rows, columns, samples)`."""
    compressed = _compressed(page, layout, len(places))
    rows = [layout.rows_at(row) for _, row, _ in places]
    compression = page.first(Tag.COMPRESSION, tiff_codecs.UNCOMPRESSED)
    if compression == tiff_codecs.JPEG:
        for data, many in zip(compressed, rows, strict=True):
            yield _decode_jpeg(page, layout, data, many, limits)
        return
    unpacked = tiff_codecs.unpack(compression, compressed, [many * layout.row_bytes() for many in rows])
    predictor = page.first(Tag.PREDICTOR, _NO_PREDICTOR)
    for data, many in zip(unpacked, rows, strict=True):
        if predictor == _FLOAT_DIFFERENCES:
            yield _add_float_differences(data, layout, many)
            continue
        piece = _widen(data, layout, many, page.order)
        yield np.cumsum(piece, axis=1, dtype=piece.dtype) if predictor == _DIFFERENCES else piece


def _compressed(page: Page, layout: _Layout, count: int) -> list[memoryview]:
    tags = (Tag.TILE_OFFSETS, Tag.TILE_SIZES) if layout.is_tiled else (Tag.STRIP_OFFSETS, Tag.STRIP_SIZES)
    offsets, sizes = (page.values(tag) for tag in tags)
    if not offsets or not sizes:
        raise ImageError(f"a damaged TIFF{page.which} (it has no strips)")
    if min(len(offsets), len(sizes)) < layout.count():
        raise ImageError(f"a damaged or truncated TIFF{page.which} (some of its strips are missing)")
    content = memoryview(page.content)
    pieces = []
    for offset, size in zip(offsets[:count], sizes[:count], strict=True):
        if offset + size > len(content):
            raise ImageError(f"a truncated TIFF{page.which}")
        pieces.append(content[offset : offset + size])
    return pieces


def _widen(data: memoryview, layout: _Layout, rows: int, order: Literal["<", ">"]) -> NDArray[Any]:
    """Give packed samples as whole bytes or words; those of 10 to 14 bits keep their value."""
    width = layout.piece_columns * layout.piece_channels
    shape = (rows, layout.piece_columns, layout.piece_channels)
    if layout.bits in (8, 16, 32, 64):
        stored = layout.sample.newbyteorder(order)
        return np.frombuffer(data, stored, rows * width).astype(layout.sample, copy=False).reshape(shape)
    packed = np.frombuffer(data, np.uint8).reshape(rows, layout.row_bytes())
    starts = np.arange(width) * layout.bits
    first, shifts = starts >> 3, (24 - (starts & 7) - layout.bits).astype(np.uint32)
    found = np.empty((rows, width), layout.sample)
    at_once = max(1, _WIDENED_AT_ONCE // width)
    for row in range(0, rows, at_once):
        part = np.pad(packed[row : row + at_once], ((0, 0), (0, 2))).astype(np.uint32)
        words = part[:, first] << 16 | part[:, first + 1] << 8 | part[:, first + 2]
        found[row : row + at_once] = words >> shifts & (1 << layout.bits) - 1
    return found.reshape(shape)


def _add_float_differences(data: memoryview, layout: _Layout, rows: int) -> NDArray[Any]:
    """Undo predictor 3: byte differences of rows that are ordered by significance (Technical Note 3)."""
    size = layout.bits // 8
    stored = np.frombuffer(data, np.uint8).reshape(rows, -1, layout.piece_channels)
    added = np.cumsum(stored, axis=1, dtype=np.uint8).reshape(rows, size, -1)
    ordered = np.ascontiguousarray(np.moveaxis(added, 1, 2)).view(layout.sample.newbyteorder(">"))
    shape = (rows, layout.piece_columns, layout.piece_channels)
    return ordered.reshape(shape).astype(layout.sample)


def _decode_jpeg(
    page: Page, layout: _Layout, data: memoryview, rows: int, limits: Limits
) -> NDArray[np.uint8]:
    """Decode one JPEG of a page, whose tables may stand apart (Technical Note 2, 1995)."""
    tables = bytes(page.values(Tag.JPEG_TABLES))
    # The page says what the channels are; without this, libjpeg would guess.
    transform = _ADOBE + bytes([page.first(Tag.PHOTOMETRIC) == _YCBCR]) if layout.piece_channels == 3 else b""
    stream = headers.jpeg_without_applications(bytes(data))
    whole = stream[:2] + transform + tables[2:-2] + stream[2:]
    frame = headers.jpeg_frame(whole)
    # The last strip may be as high as the others.
    most_rows = rows if layout.is_tiled else layout.piece_rows
    if (frame.columns, frame.samples) != (layout.piece_columns, layout.piece_channels) or not (
        rows <= frame.rows <= most_rows
    ):
        raise ImageError(f"a damaged TIFF{page.which} (a JPEG in it has another size than its header says)")
    limits.check_work("scans", frame.rows * frame.columns * frame.samples * frame.scans, len(whole))
    pixels = opencv_decoder.decode(whole, "JPEG", cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels.shape != (frame.rows, frame.columns, 3)[: 3 if frame.samples == 3 else 2]:
        raise ImageError(f"a damaged TIFF{page.which} (a JPEG in it is of an unusual kind)")
    return pixels.reshape(frame.rows, frame.columns, -1)[..., ::-1].astype(np.uint8, copy=False)


def _as_shown(page: Page, samples: NDArray[Any]) -> NDArray[Any]:
    """Turn samples into grey or RGB of 8 or 16 bits or floats."""
    photometric, bits = page.first(Tag.PHOTOMETRIC), page.same(Tag.BITS, 1)
    if photometric == _PALETTE:
        return np.asarray(_palette(page, bits)[samples[..., 0]])
    if photometric == _INKS:
        inks, black = 255 - samples[..., :3].astype(np.uint16), 255 - samples[..., 3:].astype(np.uint16)
        return ((inks * black + 127) // 255).astype(np.uint8)
    if bits in (1, 2, 4):
        samples = samples * np.uint8(255 // (2**bits - 1))
    elif bits in (10, 12, 14):
        values = np.arange(2**bits, dtype=np.uint32)
        largest = 2**bits - 1
        samples = ((values * 65535 + largest // 2) // largest).astype(np.uint16)[samples]
    if photometric == _WHITE_IS_ZERO:
        most = 1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
        samples = samples.dtype.type(most) - samples
    return samples


def _palette(page: Page, bits: int) -> NDArray[np.uint8]:
    """Read the colours `(values, 3)` of a palette of 16-bit values (section 5)."""
    values = page.values(Tag.COLOUR_MAP)
    if len(values) != 3 * 2**bits:
        raise ImageError(f"a damaged TIFF{page.which} (its palette has {len(values)} values)")
    if max(values) in range(1, 256):
        # Some writers put 8-bit values there; readers do not agree what to make of them.
        raise _refusal(page, "a palette of 8-bit values", "save it as RGB")
    return (np.array(values, np.uint16).reshape(3, -1).T >> 8).astype(np.uint8)


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror by the orientation field (section 8); unknown values are upright."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
