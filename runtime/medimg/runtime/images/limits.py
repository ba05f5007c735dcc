"""What a file may ask for before it is refused, against decompression bombs."""

import os
from dataclasses import dataclass

from medimg.runtime.errors import ImageError, UsageError

_MOST_RATIO = 64
"""All images of a file may unpack to so many times its size, or to what one may take, whichever is more."""


@dataclass(frozen=True)
class Limits:
    """Bounds on one image file, which hold before anything is decoded."""

    file_bytes: int = 2**30
    """Size of the file; `MEDIMG_MAX_FILE_BYTES` in the environment."""
    pixels: int = 2**28
    """Pixels that the header announces for one frame; `MEDIMG_MAX_PIXELS` in the environment."""
    decoded_bytes: int = 2**30
    """Rows times columns times channels times bytes per sample of a frame; `MEDIMG_MAX_DECODED_BYTES`."""

    def __post_init__(self) -> None:
        if min(self.file_bytes, self.pixels, self.decoded_bytes) < 1:
            raise UsageError(
                f"limits of {self.file_bytes} bytes, {self.pixels} pixels and {self.decoded_bytes} decoded "
                "bytes: 1 is the least"
            )

    @classmethod
    def from_environment(cls) -> "Limits":
        """Take the limits that the environment sets, and the defaults for the others.

        Raises:
            UsageError: one of the variables is no positive whole number.
        """
        return cls(
            _variable("MEDIMG_MAX_FILE_BYTES", cls.file_bytes),
            _variable("MEDIMG_MAX_PIXELS", cls.pixels),
            _variable("MEDIMG_MAX_DECODED_BYTES", cls.decoded_bytes),
        )

    def check_frame(self, rows: int, columns: int, pixel_bytes: float) -> None:
        """Check what a header announces for one frame.

        Args:
            rows: height in pixels.
            columns: width in pixels.
            pixel_bytes: memory that a pixel takes while it is decoded, all channels together.

        Raises:
            ImageError: it has no pixels, or too many.
        """
        if rows < 1 or columns < 1:
            raise ImageError(f"its header says {columns}x{rows} pixels")
        if rows * columns > self.pixels:
            raise ImageError(f"its header says {columns}x{rows} pixels; the limit is {self.pixels:,}")
        if rows * columns * pixel_bytes > self.decoded_bytes:
            raise ImageError(
                f"its header says {columns}x{rows} pixels of {pixel_bytes:g} bytes each; "
                f"the limit is {self.decoded_bytes:,} bytes"
            )

    def check_work(self, what: str, decoded_bytes: float, file_bytes: int) -> None:
        """Check what all pages or scans of a file come to together.

        Raises:
            ImageError: it is more than one frame may take, and far more than the file's size explains.
        """
        most = max(self.decoded_bytes, _MOST_RATIO * file_bytes)
        if decoded_bytes > most:
            raise ImageError(f"its {what} come to {int(decoded_bytes):,} bytes; the limit is {most:,}")


def _variable(name: str, default: int) -> int:
    value = os.environ.get(name)
    if not value:
        return default
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        raise UsageError(f"{name} is {value!r}: a whole number of at least 1 is wanted")
    return int(value)
