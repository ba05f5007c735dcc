"""What a file may ask for before it is refused, against decompression bombs."""

import os
from dataclasses import dataclass

from medimg.runtime.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Bounds on one image file, which hold before anything is decoded."""

    file_bytes: int = 2**30
    """Size of the file; `MEDIMG_MAX_FILE_BYTES` in the environment."""
    pixels: int = 2**28
    """Pixels that the header announces for one frame; `MEDIMG_MAX_PIXELS` in the environment."""

    def __post_init__(self) -> None:
        if self.file_bytes < 1 or self.pixels < 1:
            raise UsageError(f"limits of {self.file_bytes} bytes and {self.pixels} pixels: 1 is the least")

    @classmethod
    def from_environment(cls) -> "Limits":
        """Take the limits that the environment sets, and the defaults for the others.

        Raises:
            UsageError: one of the variables is no positive whole number.
        """
        return cls(
            _variable("MEDIMG_MAX_FILE_BYTES", cls.file_bytes), _variable("MEDIMG_MAX_PIXELS", cls.pixels)
        )


def _variable(name: str, default: int) -> int:
    value = os.environ.get(name)
    if not value:
        return default
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        raise UsageError(f"{name} is {value!r}: a whole number of at least 1 is wanted")
    return int(value)
