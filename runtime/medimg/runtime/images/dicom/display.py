"""The grey-scale and colour pipelines of DICOM (PS3.4 N.2): stored values to 8 bits as shown."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images.dicom.elements import DataSet, code
from medimg.runtime.images.dicom.header import PixelHeader
from medimg.runtime.images.dicom.tables import LookupTable, read_palette
from medimg.runtime.images.dicom.views import Values, modality, padding, voi
from medimg.runtime.images.notes import Note

_CONTRADICTORY = {"MONOCHROME1": "IDENTITY", "MONOCHROME2": "INVERSE"}
"""Presentation LUT Shapes that say the opposite (PS3.3 C.8.11.3.1.2)."""


def display(
    pixels: NDArray[Any],
    photometric: str,
    dataset: DataSet,
    header: PixelHeader,
    frame: int,
    window: str,
    note: Note,
) -> NDArray[np.uint8]:
    """Turn one frame's stored values into what is shown.

    Grey values go through the modality LUT, then through the VOI LUT or the first window. With neither, the
    whole range that the stored bits can hold becomes 0 to 255, as in dcmtk; float values, which have no such
    range, are stretched from their minimum to their maximum. MONOCHROME1 is inverted last.

    Args:
        pixels: `(rows, columns)` or `(rows, columns, 3)` stored values.
        photometric: their photometric interpretation (PS3.3 C.7.6.3.1.2), after decoding.
        dataset: the file's data set.
        header: what it says of its pixels.
        frame: index of the frame, for what differs between frames.
        window: `first`; `window-N` for the N-th window, whatever tables there are; or `min-max` for the
            frame's own range instead of what the file says.
        note: is told what a user must know about the frame.

    Returns:
        `(rows, columns)` or `(rows, columns, 3)` uint8.

    Raises:
        ImageError: a window or table is missing or not valid.
    """
    if photometric == "PALETTE COLOR":
        return _show_palette(pixels, dataset, header)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return _show_colours(pixels, photometric, header)
    shape = code(dataset, "PresentationLUTShape")
    if shape == _CONTRADICTORY[photometric]:
        note(
            f"its Presentation LUT Shape {shape} contradicts its photometric interpretation {photometric}, "
            "which was followed: it may be shown inverted"
        )
    shown = _show_grey(pixels, dataset, header, frame, window, note)
    return 255 - shown if photometric == "MONOCHROME1" else shown


def _show_grey(
    pixels: NDArray[Any], dataset: DataSet, header: PixelHeader, frame: int, window: str, note: Note
) -> NDArray[np.uint8]:
    step = modality(dataset, header, frame, note)
    view = None if window == "min-max" else voi(dataset, frame, window, step, note)
    if window == "min-max" or (header.is_float and view is None):
        values = step.apply(pixels.astype(np.float64))
        return _stretch(values, np.isfinite(values) & ~padding(pixels, dataset, header))

    def show(stored: NDArray[Any]) -> NDArray[np.uint8]:
        values = step.apply(stored.astype(np.float64))
        if isinstance(view, LookupTable):
            return _to_bytes(view.apply(values) / (2.0**view.bits - 1))
        return _to_bytes(view.apply(values) if view else (values - step.low) / (step.high - step.low or 1.0))

    if header.is_float:
        return show(np.nan_to_num(pixels, nan=-1e30))
    darkest, brightest = int(pixels.min()), int(pixels.max())
    if brightest - darkest >= pixels.size:
        return show(pixels)
    # Many pixels share few values, each of which is worked out once.
    every_value = np.arange(darkest, brightest + 1, dtype=np.int64)
    return show(every_value)[pixels.astype(np.int64) - darkest]


def _stretch(values: Values, counted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Map the range of the pixels that count to 0…255; the others are clipped to it."""
    if not counted.any():
        return np.zeros(values.shape, np.uint8)
    low, high = values[counted].min(), values[counted].max()
    return _to_bytes((np.nan_to_num(values, nan=low) - low) / (high - low or 1.0))


def _show_palette(pixels: NDArray[Any], dataset: DataSet, header: PixelHeader) -> NDArray[np.uint8]:
    """Look colours up; of 16-bit entries the high byte is shown, as in dcmtk."""
    tables = read_palette(dataset, header.lowest, header.highest)
    return np.stack([table.apply(pixels) for table in tables], axis=-1).astype(np.uint8)


def _show_colours(pixels: NDArray[Any], photometric: str, header: PixelHeader) -> NDArray[np.uint8]:
    if header.is_signed:
        raise ImageError(f"its {photometric} samples have a sign, which DICOM defines for none")
    largest = 2.0**header.bits_stored - 1
    if photometric == "RGB":
        return pixels.astype(np.uint8) if header.bits_stored == 8 else _to_bytes(pixels / largest)
    return _to_bytes(_from_ybr(pixels.astype(np.float64), 2.0 ** (header.bits_stored - 1)) / largest)


def _from_ybr(samples: Values, middle: float) -> Values:
    """Turn YBR_FULL into RGB by the equations of PS3.3 C.7.6.3.1.2."""
    luma, blue, red = samples[..., 0], samples[..., 1] - middle, samples[..., 2] - middle
    return np.stack(
        [
            luma + 1.402 * red,
            luma - 0.114 * 1.772 / 0.587 * blue - 0.299 * 1.402 / 0.587 * red,
            luma + 1.772 * blue,
        ],
        axis=-1,
    )


def _to_bytes(shares: Values) -> NDArray[np.uint8]:
    """Turn 0…1 into 0…255, rounding halves up."""
    return np.floor(np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)
