"""What a file says of its grey values: the modality step and the views that it offers (PS3.3 C.11.1, C.11.2).

Each is looked for in the frame's own functional group, then in the shared one, then in the data set. A group
that says nothing usable is passed over, and a note says so where it said something.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images.dicom.elements import DataSet, codes, finite, holders, items, number, numbers
from medimg.runtime.images.dicom.header import PixelHeader
from medimg.runtime.images.dicom.tables import LookupTable, read_table
from medimg.runtime.images.notes import Note

Values = NDArray[np.float64]
_MIN_MAX = "use the rule min-max"
_NARROWEST = {"LINEAR": 1.0, "LINEAR_EXACT": 1e-300, "SIGMOID": 1e-300}
"""The smallest width of a window, by its function."""


@dataclass(frozen=True)
class Window:
    """A window (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    center: float
    width: float
    function: str = "LINEAR"

    def __post_init__(self) -> None:
        finite(self.center, "window center", _MIN_MAX)
        finite(self.width, "window width", _MIN_MAX)
        if self.function not in _NARROWEST:
            raise ImageError(f"its VOI LUT Function is none of {', '.join(_NARROWEST)}: {_MIN_MAX}")
        if self.width < _NARROWEST[self.function]:
            raise ImageError(
                f"its window of width {self.width:g} ({self.function}) is none that DICOM defines: {_MIN_MAX}"
            )

    def apply(self, values: Values) -> Values:
        """Map values to 0…1."""
        with np.errstate(over="ignore"):
            if self.function == "SIGMOID":
                # Beyond ±500 the exponential is 0 or infinite for any screen.
                exponents = np.clip(-4 * ((values - self.center) / self.width), -500, 500)
                return np.asarray(1 / (1 + np.exp(exponents)))
            if self.function == "LINEAR_EXACT":
                return np.clip((values - self.center) / self.width + 0.5, 0, 1)
            if self.width == 1:
                return (values > self.center - 0.5).astype(np.float64)
            return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclass(frozen=True)
class Modality:
    """From stored values to those of the modality, such as Hounsfield units."""

    low: float
    """The smallest value that can come out; infinite for float pixels."""
    high: float
    slope: float = 1.0
    intercept: float = 0.0
    table: LookupTable | None = None

    def apply(self, values: Values) -> Values:
        """Turn stored values into the modality's."""
        if self.table is not None:
            return self.table.apply(values).astype(np.float64)
        return values * self.slope + self.intercept


def modality(dataset: DataSet, header: PixelHeader, frame: int, note: Note) -> Modality:
    """Find the modality step of a frame.

    Raises:
        ImageError: its table or numbers cannot be used.
    """
    low, high = (-np.inf, np.inf) if header.is_float else (header.lowest, header.highest)
    for holder in holders(dataset, frame, "PixelValueTransformationSequence"):
        for item in items(holder, "ModalityLUTSequence")[:1]:
            table = read_table(item, low, high)
            if table is not None:
                return Modality(0.0, 2.0**table.bits - 1, table=table)
        slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
        if slope == 0:
            note("its Rescale Slope is 0, so its values were not rescaled")
        elif slope is not None and intercept is not None:
            ends = sorted((low * slope + intercept, high * slope + intercept))
            if not header.is_float:
                finite(ends[1] - ends[0], "range of rescaled values")
            return Modality(ends[0], ends[1], slope, intercept)
    return Modality(low, high)


def voi(dataset: DataSet, frame: int, rule: str, values: Modality, note: Note) -> LookupTable | Window | None:
    """Choose among the views that the file offers, any of which may be shown (PS3.3 C.11.2.1).

    Args:
        dataset: the file's data set.
        frame: index of the frame.
        rule: `first`, for a table before a window, or `window-N`.
        values: the modality step, whose results are looked up.
        note: is told of windows that are passed over.

    Raises:
        ImageError: the window that is asked for is missing, or what is chosen cannot be used.
    """
    if rule != "first":
        return _window_by_number(dataset, frame, int(rule.removeprefix("window-")))
    for holder in holders(dataset, frame, "FrameVOILUTSequence"):
        for item in items(holder, "VOILUTSequence")[:1]:
            table = read_table(item, values.low, values.high)
            if table is not None:
                return table
        for place, (center, width, function) in _windows(holder):
            if width != 0:
                return Window(center, width, function)
            note(f"its window {place} has a width of 0 and was passed over")
    return None


def _window_by_number(dataset: DataSet, frame: int, wanted: int) -> Window:
    for holder in holders(dataset, frame, "FrameVOILUTSequence"):
        for place, (center, width, function) in _windows(holder):
            if place == wanted:
                return Window(center, width, function)
    raise ImageError(f"it has no window {wanted}: use the rule first or min-max")


def _windows(holder: DataSet) -> Iterator[tuple[int, tuple[float, float, str]]]:
    """Give the windows that have both numbers, with their place from 1."""
    centers, widths = numbers(holder, "WindowCenter"), numbers(holder, "WindowWidth")
    functions = codes(holder, "VOILUTFunction")
    for place, (center, width) in enumerate(zip(centers, widths, strict=False)):
        if center is not None and width is not None:
            # One function is that of all windows.
            function = functions[place] if place < len(functions) else "".join(functions[:1])
            yield place + 1, (center, width, function or "LINEAR")


def padding(pixels: NDArray[Any], dataset: DataSet, header: PixelHeader) -> NDArray[np.bool_]:
    """Mark the pixels that only fill the frame up (PS3.3 C.7.5.1.1.2)."""
    first, last = number(dataset, "PixelPaddingValue"), number(dataset, "PixelPaddingRangeLimit")
    if header.is_float or first is None:
        return np.zeros(pixels.shape, np.bool_)
    ends = [_as_stored(one, header) for one in (first, first if last is None else last)]
    return np.asarray((pixels >= min(ends)) & (pixels <= max(ends)))


def _as_stored(found: float, header: PixelHeader) -> float:
    """Give a value the sign of the pixels, which its VR may lack or have in excess."""
    for bits in (header.bits_allocated, header.bits_stored):
        span, below = 2.0**bits, 2.0 ** (bits - 1) if header.is_signed else 0.0
        wrapped = (found + below) % span - below
        if header.lowest <= wrapped <= header.highest:
            return wrapped
    return found
