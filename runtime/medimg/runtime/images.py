"""From bytes on disk to the uint8 array that a network takes: the one way, for every room.

Training, calibration, verification, prediction and benchmarks call `load_frames`, `load_image` or `prepare`,
so that the array is the same, byte for byte, wherever it is used.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime import headers, tiff
from medimg.runtime.errors import ImageError
from medimg.runtime.spec import ImageRule

Image: TypeAlias = NDArray[np.uint8]
"""`(rows, columns, 3)` uint8 RGB."""

MAX_FILE_BYTES = 2**30
MAX_PIXELS = 2**28
"""Limit on the pixels that a file announces, checked before they are decoded."""

_DICOM_SUFFIXES = (".dcm", ".dicom")
_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_OTHERS = {
    b"GIF8": "GIF",
    b"RIFF": "WebP or another RIFF",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"%PDF": "PDF",
}
_TO_EIGHT_BITS = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)

# OpenCV would write its own complaint to standard error beside the one message that a bad file gets.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def load_image(path: str | Path, rule: ImageRule) -> Image:
    """Read a file that holds exactly one image.

    Args:
        path: a PNG, JPEG, TIFF, BMP or DICOM file.
        rule: how its pixels become the network's input.

    Returns:
        `(rule.rows, rule.columns, 3)` uint8 RGB.

    Raises:
        ImageError: it cannot be read, or holds several frames; the message begins with the path.
    """
    frames = load_frames(path, rule)
    image = next(frames)
    if next(frames, None) is not None:
        raise ImageError(
            f"{path}: holds several frames where one image is wanted: save each as a file of its own"
        )
    return image


def load_frames(path: str | Path, rule: ImageRule) -> Iterator[Image]:
    """Read every frame of a file; only DICOM holds more than one.

    Args:
        path: a PNG, JPEG, TIFF, BMP or DICOM file.
        rule: how its pixels become the network's input.

    Yields:
        `(rule.rows, rule.columns, 3)` uint8 RGB, at least one.

    Raises:
        ImageError: it cannot be read; the message begins with the path.
    """
    path = Path(path)
    try:
        for pixels in _decode(_read_bytes(path), path.suffix.lower(), rule):
            yield prepare(pixels, rule)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def prepare(pixels: NDArray[Any], rule: ImageRule) -> Image:
    """Turn any decoded array into the network's input.

    Grey becomes three equal channels, alpha is dropped, and of more than four channels the first three stay.
    16-bit samples become `round(value / 257)`, or with `min-max` the image's own range becomes 0 to 255.

    Args:
        pixels: `(rows, columns)` or `(rows, columns, channels)`, uint8 or uint16, colours in the order RGB.
        rule: size, resize rule and 16-bit rule.

    Returns:
        `(rule.rows, rule.columns, 3)` uint8 RGB; it may share memory with `pixels`.

    Raises:
        ImageError: shape or type are none of these.
    """
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ImageError(
            f"an array of shape {pixels.shape} is no image: (rows, columns[, channels]) is wanted"
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"samples are {pixels.dtype}; uint8 and uint16 can be used: convert them first")
    colour = _three_channels(pixels)
    eight_bits = colour if colour.dtype == np.uint8 else _to_eight_bits(colour, rule)
    return np.ascontiguousarray(_resize(eight_bits, rule))


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(
                "is a folder, not an image"
                if os.access(path, os.R_OK)
                else "is a folder that may not be opened"
            )
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("is no regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"has {status.st_size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(getattr(error, "strerror", None) or str(error)) from None
    if not content:
        raise ImageError("is empty")
    return content


def _decode(content: bytes, suffix: str, rule: ImageRule) -> Iterator[NDArray[Any]]:
    """Decode by the file's first bytes, whatever its name says."""
    if content[128:132] == b"DICM" or (suffix in _DICOM_SUFFIXES and _magic(content) is None):
        from medimg.runtime import dicom

        yield from dicom.decode_frames(content, rule.dicom_window, MAX_PIXELS)
        return
    magic = _magic(content)
    if magic == "PNG":
        _check_size(*headers.png_size(content))
    elif magic == "JPEG":
        _check_size(*headers.jpeg_frame(content)[:2])
    elif magic == "BMP":
        _check_size(*headers.bmp_size(content))
    elif magic == "TIFF":
        yield _decode_tiff(content, rule)
        return
    else:
        what = next((f"a {name} file, " for start, name in _OTHERS.items() if content.startswith(start)), "")
        raise ImageError(f"{what}not an image that can be read: PNG, JPEG, TIFF, BMP and DICOM are")
    yield _decode_with_opencv(content, magic, rule)


def _magic(content: bytes) -> str | None:
    if content.startswith(headers.PNG_SIGNATURE):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(_TIFF_MAGIC):
        return "TIFF"
    return "BMP" if content.startswith(b"BM") else None


def _decode_tiff(content: bytes, rule: ImageRule) -> NDArray[Any]:
    page = tiff.read_page(content)
    _check_size(page.rows, page.columns)
    if page.channels > 4:
        return tiff.read_many_channels(content, page)
    content = tiff.without_surprises(content, page, ignore_orientation=rule.orientation == "ignore")
    pixels = _decode_with_opencv(content, "TIFF", rule)
    if page.white_is_zero and pixels.dtype == np.uint16:
        return np.iinfo(np.uint16).max - pixels
    return pixels


def _decode_with_opencv(content: bytes, magic: str, rule: ImageRule) -> NDArray[Any]:
    # Not IMREAD_COLOR_RGB: OpenCV 5.0.0 gives unwritten memory with it for 16-bit RGB TIFF.
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    if rule.orientation == "ignore":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"a {magic} that cannot be decoded ({error.err or error})") from None
    if pixels is None:
        raise ImageError(f"a damaged or truncated {magic}, or one of an unusual kind")
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _check_size(rows: int, columns: int) -> None:
    if rows < 1 or columns < 1:
        raise ImageError(f"its header says {columns}x{rows} pixels")
    if rows * columns > MAX_PIXELS:
        raise ImageError(f"its header says {columns}x{rows} pixels; the limit is {MAX_PIXELS:,}")


def _three_channels(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    if pixels.shape[2] < 3:
        # One channel, or grey and alpha.
        return np.repeat(pixels[..., :1], 3, axis=2)
    return pixels[..., :3]


def _to_eight_bits(pixels: NDArray[np.uint16], rule: ImageRule) -> Image:
    if rule.sixteen_bit == "full-range":
        return _TO_EIGHT_BITS[pixels]
    low, high = int(pixels.min()), int(pixels.max())
    span = max(high - low, 1)
    table = ((np.arange(span + 1, dtype=np.uint32) * 510 + span) // (2 * span)).astype(np.uint8)
    return cast("Image", table[pixels - np.uint16(low)])


def _resize(image: Image, rule: ImageRule) -> Image:
    rows, columns = image.shape[:2]
    if (rows, columns) == (rule.rows, rule.columns):
        return image
    if rule.resize == "letterbox":
        return _letterbox(image, rule)
    if rule.resize == "crop":
        return _crop(image, rule)
    # INTER_NEAREST_EXACT takes the pixel that Pillow takes; INTER_NEAREST does not always.
    flags = {
        "stretch-linear": cv2.INTER_LINEAR_EXACT,
        "stretch-area": cv2.INTER_AREA,
        "stretch-nearest": cv2.INTER_NEAREST_EXACT,
    }
    return _stretch(image, rule.rows, rule.columns, flags[rule.resize])


def _letterbox(image: Image, rule: ImageRule) -> Image:
    """Fit the whole image in, aspect ratio kept, and pad with black on both sides alike."""
    rows, columns = image.shape[:2]
    scale = min(rule.rows / rows, rule.columns / columns)
    fitted = _stretch(image, *_scaled(image, scale), cv2.INTER_LINEAR_EXACT)
    padded = np.zeros((rule.rows, rule.columns, 3), np.uint8)
    top, left = (rule.rows - fitted.shape[0]) // 2, (rule.columns - fitted.shape[1]) // 2
    padded[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return padded


def _crop(image: Image, rule: ImageRule) -> Image:
    """Cover the whole input, aspect ratio kept, and take the centre."""
    rows, columns = image.shape[:2]
    scale = max(rule.rows / rows, rule.columns / columns)
    height, width = _scaled(image, scale)
    if height * width > MAX_PIXELS:
        raise ImageError(f"{columns}x{rows} pixels are too long and narrow for the resize rule crop")
    covering = _stretch(image, height, width, cv2.INTER_LINEAR_EXACT)
    top, left = (height - rule.rows) // 2, (width - rule.columns) // 2
    return covering[top : top + rule.rows, left : left + rule.columns]


def _scaled(image: Image, scale: float) -> tuple[int, int]:
    return max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))


def _stretch(image: Image, rows: int, columns: int, interpolation: int) -> Image:
    if image.shape[:2] == (rows, columns):
        return image
    try:
        resized = cv2.resize(np.ascontiguousarray(image), (columns, rows), interpolation=interpolation)
    except cv2.error as error:
        raise ImageError(
            f"{image.shape[1]}x{image.shape[0]} pixels cannot be resized ({error.err or error})"
        ) from None
    return resized.astype(np.uint8, copy=False)
