"""OpenCV's decoders for PNG and JPEG, which are told of nothing that their libraries complain about."""

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images.stderr_capture import StderrCapture

_CAPTURE: Final = StderrCapture()

# Files are decoded side by side in threads; OpenCV's own threads would get in their way.
cv2.setNumThreads(1)
# OpenCV would write its own complaint to standard error beside the one message that a bad file gets.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(content: bytes | bytearray, kind: str, flags: int) -> NDArray[Any]:
    """Decode a PNG or JPEG.

    Args:
        content: the whole file.
        kind: what to call it in a message; words about a `JPEG` are errors.
        flags: of `cv2.imread`.

    Returns:
        `(rows, columns)` or `(rows, columns, channels)` uint8 or uint16, colours in the order BGR.

    Raises:
        ImageError: it is damaged.
    """
    buffer = np.frombuffer(content, np.uint8)
    try:
        pixels, said = _CAPTURE.run(lambda: cv2.imdecode(buffer, flags))
    except cv2.error as error:
        raise ImageError(f"a {kind} that cannot be decoded ({error.err or error})") from None
    if pixels is None:
        raise ImageError(f"a damaged or truncated {kind}, or one of an unusual kind")
    if said and kind != "PNG":
        # libpng gives no picture where pixels are wrong; libjpeg makes pixels up and goes on.
        raise ImageError(f"a damaged {kind} ({said}): make it anew from its source")
    return pixels
