"""The grey-scale and colour pipelines of DICOM (PS3.4 N.2): stored values to 8 bits as shown."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError

Values = NDArray[np.float64]


@dataclass(frozen=True)
class LookupTable:
    """A modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1)."""

    first: int
    """The input value of the first entry; smaller ones take the first entry, larger ones the last."""
    entries: Values
    bits: int
    """The range of the entries is 0 to `2**bits - 1`."""

    def apply(self, values: Values) -> Values:
        """Look values up; rescaled ones are rounded first."""
        indices = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        found: Values = self.entries[indices.astype(np.int64)]
        return found


@dataclass(frozen=True)
class Window:
    """A window (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    center: float
    width: float
    function: str = "LINEAR"

    def apply(self, values: Values) -> Values:
        """Map values to 0…1."""
        if self.function == "SIGMOID" and self.width > 0:
            # Beyond ±500 the exponential is 0 or infinite for any screen.
            exponents = np.clip(-4 * (values - self.center) / self.width, -500, 500)
            return np.asarray(1 / (1 + np.exp(exponents)))
        if self.function == "LINEAR_EXACT" and self.width > 0:
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        if self.function != "LINEAR" or self.width < 1:
            raise ImageError(
                f"its window of width {self.width:g} ({self.function}) is none that DICOM defines: "
                "use the rule min-max"
            )
        if self.width == 1:
            return (values > self.center - 0.5).astype(np.float64)
        return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)


def display(
    pixels: NDArray[Any],
    photometric: str,
    dataset: Any,  # noqa: ANN401  a pydicom Dataset
    frame: int,
    window: str,
) -> NDArray[np.uint8]:
    """Turn one frame's stored values into what is shown.

    Grey values go through the modality LUT, then through the VOI LUT or the first window. With neither, the
    whole range that the stored bits can hold becomes 0 to 255, as in dcmtk; float values, which have no such
    range, are stretched from their minimum to their maximum. MONOCHROME1 is inverted last.

    Args:
        pixels: `(rows, columns)` or `(rows, columns, 3)` stored values.
        photometric: their photometric interpretation (PS3.3 C.7.6.3.1.2), after decoding.
        dataset: the file's data set.
        frame: index of the frame, for what differs between frames.
        window: `first`; `window-N` for the N-th window, whatever tables there are; or `min-max` for the
            frame's own range instead of what the file says.

    Returns:
        `(rows, columns)` or `(rows, columns, 3)` uint8.

    Raises:
        ImageError: the photometric interpretation is unknown, or a window or table is missing or not valid.
    """
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        shown = _show_grey(pixels, dataset, frame, window)
        return 255 - shown if photometric == "MONOCHROME1" else shown
    if photometric == "PALETTE COLOR":
        return _show_palette(pixels, dataset)
    if photometric in ("RGB", "YBR_RCT", "YBR_ICT") and pixels.ndim == 3:
        bits = int(dataset.BitsStored)
        return pixels.astype(np.uint8, copy=False) if bits == 8 else _to_bytes(pixels / float(2**bits - 1))
    raise ImageError(f"its photometric interpretation {photometric} is not supported")


def _show_grey(
    pixels: NDArray[Any],
    dataset: Any,  # noqa: ANN401
    frame: int,
    window: str,
) -> NDArray[np.uint8]:
    is_float = pixels.dtype.kind == "f"
    if window == "min-max" or (is_float and _voi(dataset, frame, window) is None):
        values, _, _ = _modality_values(pixels, dataset, frame)
        return _stretch(values, np.isfinite(values) & ~_padding(pixels, dataset))
    if is_float:
        return _show_values(np.nan_to_num(pixels, nan=-1e30), dataset, frame, window)
    darkest, brightest = int(pixels.min()), int(pixels.max())
    if brightest - darkest >= pixels.size:
        return _show_values(pixels, dataset, frame, window)
    # Many pixels share few values, each of which is worked out once.
    every_value = np.arange(darkest, brightest + 1, dtype=np.int64)
    return _show_values(every_value, dataset, frame, window)[pixels.astype(np.int64) - darkest]


def _show_values(pixels: NDArray[Any], dataset: Any, frame: int, window: str) -> NDArray[np.uint8]:  # noqa: ANN401
    values, low, high = _modality_values(pixels, dataset, frame)
    voi = _voi(dataset, frame, window)
    if isinstance(voi, LookupTable):
        return _to_bytes(voi.apply(values) / (2**voi.bits - 1))
    if voi:
        return _to_bytes(voi.apply(values))
    return _to_bytes((values - low) / max(high - low, 1e-300))


def _voi(dataset: Any, frame: int, window: str) -> LookupTable | Window | None:  # noqa: ANN401
    """Choose among the views that the file offers, any of which may be shown (PS3.3 C.11.2.1)."""
    if window == "first":
        tables = dataset.get("VOILUTSequence")
        return _lookup_table(tables[0]) if tables else _window(dataset, frame, 1)
    number = int(window.removeprefix("window-"))
    found = _window(dataset, frame, number)
    if found is None:
        raise ImageError(f"it has no window {number}: use the rule first or min-max")
    return found


def _modality_values(pixels: NDArray[Any], dataset: Any, frame: int) -> tuple[Values, float, float]:  # noqa: ANN401
    """Apply the modality LUT (PS3.3 C.11.1); also give the range of the values that could have come out."""
    values = pixels.astype(np.float64)
    if tables := dataset.get("ModalityLUTSequence"):
        table = _lookup_table(tables[0])
        return table.apply(values), 0.0, float(2**table.bits - 1)
    low, high = -np.inf, np.inf
    if pixels.dtype.kind != "f":
        span, signed = 2.0 ** int(dataset.BitsStored), bool(dataset.PixelRepresentation)
        low, high = (-span / 2, span / 2 - 1) if signed else (0.0, span - 1)
    slope = _number(dataset, frame, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _number(dataset, frame, "PixelValueTransformationSequence", "RescaleIntercept")
    if slope is None or intercept is None or slope == 0:
        return values, low, high
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    return values * slope + intercept, low, high


def _window(dataset: Any, frame: int, number: int) -> Window | None:  # noqa: ANN401
    center = _number(dataset, frame, "FrameVOILUTSequence", "WindowCenter", number)
    width = _number(dataset, frame, "FrameVOILUTSequence", "WindowWidth", number)
    if center is None or width is None:
        return None
    function = next(_attribute(dataset, frame, "FrameVOILUTSequence", "VOILUTFunction"), "LINEAR")
    return Window(center, width, str(function).upper())


def _number(dataset: Any, frame: int, group: str, keyword: str, number: int = 1) -> float | None:  # noqa: ANN401
    """Give the N-th value of an attribute, from 1."""
    value = next(_attribute(dataset, frame, group, keyword), None)
    if value is None:
        return None
    values = [value] if isinstance(value, (str, bytes, int, float)) else list(value)
    return float(values[number - 1]) if len(values) >= number else None


def _attribute(dataset: Any, frame: int, group: str, keyword: str) -> Iterator[Any]:  # noqa: ANN401
    """Find an attribute: the frame's own, then the frames' shared one (PS3.3 C.7.6.16), then the image's."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for item in (*per_frame[frame : frame + 1], *shared[:1]):
        for macro in (item.get(group) or ())[:1]:
            if macro.get(keyword) is not None:
                yield macro.get(keyword)
    if dataset.get(keyword) is not None:
        yield dataset.get(keyword)


def _padding(pixels: NDArray[Any], dataset: Any) -> NDArray[np.bool_]:  # noqa: ANN401
    """Mark the pixels that only fill the frame up (PS3.3 C.7.5.1.1.2)."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(pixels.shape, np.bool_)
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((first, last if isinstance(last, int) else first))
    return (pixels >= low) & (pixels <= high)


def _stretch(values: Values, counted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Map the range of the pixels that count to 0…255; the others are clipped to it."""
    if not counted.any():
        return np.zeros(values.shape, np.uint8)
    low, high = values[counted].min(), values[counted].max()
    return _to_bytes((np.nan_to_num(values, nan=low) - low) / (high - low or 1.0))


def _to_bytes(shares: Values) -> NDArray[np.uint8]:
    """Turn 0…1 into 0…255, rounding halves up."""
    return np.floor(np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)


def _lookup_table(item: Any) -> LookupTable:  # noqa: ANN401
    """Read a modality or VOI LUT."""
    count, first, bits = _descriptor(item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        entries = _entries(data, count, big_endian=item.original_encoding[1] is False)
    else:
        entries = np.asarray(data, np.uint16).reshape(-1)
    if len(entries) < count:
        raise ImageError(f"a lookup table of {len(entries)} entries where {count} are announced")
    return LookupTable(first, entries[:count].astype(np.float64), bits)


def _descriptor(values: Any) -> tuple[int, int, int]:  # noqa: ANN401
    """Read a table's number of entries, first input value and bits (PS3.3 C.7.6.3.1.5, C.11.1.1)."""
    count, first, bits = (int(value) for value in values)
    if not 1 <= bits <= 16 or count < 0:
        raise ImageError(f"a lookup table of {count} entries of {bits} bits")
    return count or 65536, first, bits


def _entries(data: bytes, count: int, *, big_endian: bool) -> NDArray[np.uint16]:
    """Read a table's entries, which are 8 or 16 bits wide whatever the number of bits that count."""
    words = np.frombuffer(data[: len(data) // 2 * 2], ">u2" if big_endian else "<u2").astype(np.uint16)
    return words if len(words) >= count else words.astype("<u2").view(np.uint8).astype(np.uint16)


def _show_palette(pixels: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:  # noqa: ANN401
    """Look colours up (PS3.3 C.7.6.3.1.5, C.7.9); of 16-bit entries the high byte is shown, as in dcmtk."""
    if "RedPaletteColorLookupTableData" not in dataset:
        from pydicom.pixels import apply_color_lut

        return _high_bytes(apply_color_lut(pixels, dataset)[..., :3])
    count, first, _ = _descriptor(dataset.RedPaletteColorLookupTableDescriptor)
    big_endian = dataset.original_encoding[1] is False
    # pydicom 3.0's own reading of these tables takes no notice of the byte order.
    tables = [
        _entries(dataset[f"{colour}PaletteColorLookupTableData"].value, count, big_endian=big_endian)
        for colour in ("Red", "Green", "Blue")
    ]
    if min(map(len, tables)) < count:
        raise ImageError(f"a palette of {min(map(len, tables))} entries where {count} are announced")
    indices = np.clip(pixels.astype(np.int64) - first, 0, count - 1)
    return _high_bytes(np.stack([table[:count][indices] for table in tables], axis=-1))


def _high_bytes(colours: NDArray[Any]) -> NDArray[np.uint8]:
    return (colours >> 8 if colours.dtype == np.uint16 and colours.max() > 255 else colours).astype(np.uint8)
