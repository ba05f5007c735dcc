"""How bytes on disk become the uint8 array that a network takes."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from medimg.runtime.errors import ModelError

ResizeRule: TypeAlias = Literal["stretch-linear", "stretch-area", "stretch-nearest", "letterbox", "crop"]
JpegRule: TypeAlias = Literal["full", "dct-scaled"]

_WINDOW = re.compile("first|min-max|window-[1-9][0-9]?")


@dataclass(frozen=True)
class ImageRule:
    """How bytes on disk become the uint8 array that the network takes."""

    rows: int
    """Height of the network's input, in pixels."""
    columns: int
    """Width of the network's input, in pixels."""
    resize: ResizeRule = "stretch-linear"
    """`stretch-*` ignore the aspect ratio; `letterbox` pads with black, `crop` takes the centre."""
    sixteen_bit: Literal["full-range", "min-max"] = "full-range"
    """Wider samples to 8 bits: the type's whole range (0 to 1 for floats), or the image's own range."""
    orientation: Literal["apply", "ignore"] = "apply"
    """Whether the EXIF orientation of a photograph is applied."""
    dicom_window: str = "first"
    """DICOM values to 8 bits: the file's VOI LUT or `first` window, its N-th as `window-N`, or `min-max`."""
    jpeg: JpegRule = "full"
    """JPEG files `full`, or by the largest of 1/2, 1/4 and 1/8 in the DCT domain that covers the input."""

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= 8192 and 1 <= self.columns <= 8192):
            raise ModelError(f"image size {self.rows}x{self.columns} is not within 1 to 8192 pixels a side")
        if not _WINDOW.fullmatch(self.dicom_window):
            raise ModelError(
                f"dicom_window {self.dicom_window!r} is none of first, min-max and window-1 to window-99"
            )
