"""From bytes on disk to the uint8 array that a network takes: the one way, for every room.

Training, calibration, verification, prediction and benchmarks call `load_frames`, `load_image` or `prepare`,
so that the array is the same, byte for byte, wherever it is used.
"""

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DecoderError, ImageError
from medimg.runtime.files.paths import first_bytes
from medimg.runtime.images import bmp, headers, opencv_decoder, tiff, tiff_pixels
from medimg.runtime.images.limits import Limits
from medimg.runtime.images.notes import Note
from medimg.runtime.images.rule import ImageRule

Image: TypeAlias = NDArray[np.uint8]
"""`(rows, columns, 3)` uint8 RGB."""

_LOG = logging.getLogger(__name__)
_HEAD_BYTES = 1024
"""What of a file tells its kind."""
_DICOM_SUFFIXES = (".dcm", ".dicom")
_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_OTHERS = {
    b"GIF8": "GIF (a still or animated one; save a frame as PNG)",
    b"RIFF": "WebP or another RIFF",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x00\x00\x00\x0cJXL": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"%PDF": "PDF",
}
_LOSSLESS = 0xC3
_READ_JPEG_PROCESSES = (0xC0, 0xC1, 0xC2, _LOSSLESS, 0xC9, 0xCA)
"""Sequential, progressive and lossless, and the first two with arithmetic coding (ITU-T T.81, table B.1)."""
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""OpenCV's flags; ANYCOLOR beside them keeps colours."""
_SMALLEST = ImageRule(1, 1, jpeg="dct-scaled")
"""Decodes an eighth of each side: the least that meets every code word of a JPEG."""
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange rows and columns (EXIF 2.32, 4.6.4 A)."""
_TO_EIGHT_BITS = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)
_BLOCK_SAMPLES = 2**20
"""Samples that are turned from floats into bytes at once."""


def load_image(path: str | Path, rule: ImageRule, limits: Limits | None = None) -> Image:
    """Read a file that holds exactly one image.

    Args:
        path: a PNG, JPEG, TIFF, BMP or DICOM file.
        rule: how its pixels become the network's input.
        limits: on size; those of the environment unless given.

    Returns:
        `(rule.rows, rule.columns, 3)` uint8 RGB.

    Raises:
        ImageError: it cannot be read, or holds several frames; the message begins with the path.
    """
    frames = load_frames(path, rule, limits)
    image = next(frames)
    if next(frames, None) is not None:
        raise ImageError(
            f"{path}: holds several frames where one image is wanted: save each as a file of its own"
        )
    return image


def load_frames(
    path: str | Path, rule: ImageRule, limits: Limits | None = None, note: Note | None = None
) -> Iterator[Image]:
    """Read every frame of a DICOM file or page of a TIFF, one at a time; other files hold one image.

    Args:
        path: a PNG, JPEG, TIFF, BMP or DICOM file.
        rule: how its pixels become the network's input.
        limits: on size; those of the environment unless given.
        note: is told what a user must know about an image before that image is given; it is logged unless
            given.

    Yields:
        `(rule.rows, rule.columns, 3)` uint8 RGB, at least one.

    Raises:
        ImageError: it cannot be read; the message begins with the path.
    """
    path, limits = Path(path), limits or Limits.from_environment()
    try:
        content, tell = _read_bytes(path, limits), note or partial(_LOG.info, "%s: %s", path)
        for pixels in _decode(content, path.suffix.lower(), rule, limits, tell):
            yield prepare(pixels, rule)
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from None
    except MemoryError:
        raise DecoderError(f"{path}: its pixels need more memory than there is") from None


def read_jpeg(path: str | Path, limits: Limits | None = None) -> bytes | None:
    """Read a JPEG file that is whole and within the limits, for a decoder elsewhere; None for other files.

    Raises:
        ImageError: it cannot be read; the message begins with the path.
    """
    limits = limits or Limits.from_environment()
    try:
        content = _read_bytes(Path(path), limits)
        if _magic(content) != "JPEG":
            return None
        _decode_jpeg(content, _SMALLEST, limits)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    return content


def read_size(path: Path, rule: ImageRule, limits: Limits | None = None) -> tuple[int, int]:
    """Decode a file's first image and give its rows and columns, as they are before any resize.

    Raises:
        ImageError: it cannot be read; the message begins with the path.
    """
    limits = limits or Limits.from_environment()
    try:
        rows, columns, *_ = next(_decode(_read_bytes(path, limits), path.suffix.lower(), rule, limits)).shape
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    return rows, columns


def read_patient(path: Path, limits: Limits | None = None) -> str | None:
    """Give the PatientID (0010,0020) of a DICOM file; None where it is empty, and for other files.

    Raises:
        ImageError: it cannot be read; the message begins with the path.
    """
    values = read_elements(path, ("PatientID",), limits)
    return values["PatientID"] or None if values else None


def read_elements(path: Path, names: Sequence[str], limits: Limits | None = None) -> dict[str, str] | None:
    """Give elements of a DICOM file as text, by keyword, empty where it has none; None for other files.

    Raises:
        ImageError: it cannot be read; the message begins with the path.
    """
    try:
        if not _is_dicom(first_bytes(path, _HEAD_BYTES), path.suffix.lower()):
            return None
        from medimg.runtime.images import dicom

        return dicom.read_values(_read_bytes(path, limits or Limits.from_environment()), names)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def may_hold_image(path: Path) -> bool:
    """Tell by a file's first bytes, whatever its name says, whether it is of a kind that is read."""
    try:
        head = first_bytes(path, _HEAD_BYTES)
    except OSError:
        return False
    # A text may begin with BM too; a bitmap goes on with its size and four bytes that are 0.
    return headers.is_dicom(head) or _magic(head) in ("PNG", "JPEG", "TIFF") or _is_bitmap(head)


def _is_bitmap(head: bytes) -> bool:
    return head.startswith(b"BM") and head[6:10] == bytes(4)


def prepare(pixels: NDArray[Any], rule: ImageRule) -> Image:
    """Turn any decoded array into the network's input.

    Grey becomes three equal channels, alpha is dropped, and of more than four channels the first three stay.
    16-bit samples become `round(value / 257)` and float ones `round(value * 255)`, or with `min-max` the
    image's own range becomes 0 to 255.

    Args:
        pixels: `(rows, columns)` or `(rows, columns, channels)`, uint8, uint16, float32 or
            float64, colours in the order RGB.
        rule: size, resize rule and 16-bit rule.

    Returns:
        `(rule.rows, rule.columns, 3)` uint8 RGB; it may share memory with `pixels`.

    Raises:
        ImageError: shape or type are none of these, or floats are not within 0 to 1.
    """
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ImageError(
            f"an array of shape {pixels.shape} is no image: (rows, columns[, channels]) is wanted"
        )
    if pixels.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise ImageError(
            f"samples are {pixels.dtype}; uint8, uint16, float32 and float64 can be used: convert them first"
        )
    colour = _three_channels(pixels)
    eight_bits = colour if colour.dtype == np.uint8 else _to_eight_bits(colour, rule)
    return np.ascontiguousarray(_resize(eight_bits, rule))


def _read_bytes(path: Path, limits: Limits) -> bytes:
    file, size_bytes = _open(path)
    with file:
        if size_bytes > limits.file_bytes:
            raise ImageError(f"has {size_bytes:,} bytes; the limit is {limits.file_bytes:,}")
        try:
            # No more than was looked at, should the file be growing.
            content = file.read(size_bytes)
        except OSError as error:
            raise ImageError(error.strerror) from None
    if not content:
        raise ImageError("is empty")
    return content


def _open(path: Path) -> tuple[IO[bytes], int]:
    """Open a regular file and give its size; others, which may have no end, are not waited for."""
    try:
        _require_regular(path, path.stat().st_mode)
        # Without O_NONBLOCK, a FIFO that took the file's place meanwhile would hold this thread.
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115, PTH123
        status = os.fstat(file.fileno())
    except (OSError, ValueError) as error:
        raise ImageError(getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise ImageError("is no regular file")
    return file, status.st_size


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        may = os.access(path, os.R_OK)
        raise ImageError("is a folder, not an image" if may else "is a folder that may not be opened")
    if not stat.S_ISREG(mode):
        raise ImageError("is no regular file")


def _decode(
    content: bytes, suffix: str, rule: ImageRule, limits: Limits, note: Note = lambda _: None
) -> Iterator[NDArray[Any]]:
    """Decode by the file's first bytes, whatever its name says."""
    if _is_dicom(content, suffix):
        from medimg.runtime.images import dicom

        yield from dicom.decode_frames(content, rule.dicom_window, limits, note)
        return
    magic = _magic(content)
    if magic == "TIFF":
        yield from _decode_tiff(content, rule, limits)
    elif magic == "PNG":
        yield _decode_png(content, rule, limits)
    elif magic == "JPEG":
        yield _decode_jpeg(content, rule, limits)
    elif magic == "BMP":
        bitmap = bmp.read_header(content)
        limits.check_frame(bitmap.rows, bitmap.columns, 3)
        yield bmp.read_pixels(content, bitmap)
    else:
        what = next((f"a {name} file, " for start, name in _OTHERS.items() if content.startswith(start)), "")
        raise ImageError(f"{what}not an image that can be read: PNG, JPEG, TIFF, BMP and DICOM are")


def _is_dicom(content: bytes, suffix: str) -> bool:
    return headers.is_dicom(content) or (suffix in _DICOM_SUFFIXES and _magic(content) is None)


def _magic(content: bytes) -> str | None:
    if content.startswith(headers.PNG_SIGNATURE):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(_TIFF_MAGIC):
        return "TIFF"
    return "BMP" if content.startswith(b"BM") else None


def _decode_tiff(content: bytes, rule: ImageRule, limits: Limits) -> Iterator[NDArray[Any]]:
    pages, in_all = [], 0.0
    for page in tiff.read_pages(content):
        pixel_bytes = tiff_pixels.pixel_bytes(page)
        limits.check_frame(page.rows, page.columns, pixel_bytes)
        in_all += page.rows * page.columns * pixel_bytes
        limits.check_work("pages", in_all, len(content))
        pages.append(page)
    for page in pages:
        yield tiff_pixels.read_pixels(page, limits, ignore_orientation=rule.orientation == "ignore")


def _decode_png(content: bytes, rule: ImageRule, limits: Limits) -> NDArray[Any]:
    header, content = headers.png_header(content)
    limits.check_frame(header.rows, header.columns, header.pixel_bytes)
    return _decode_with_opencv(content, "PNG", rule, (header.rows, header.columns))


def _decode_jpeg(content: bytes, rule: ImageRule, limits: Limits) -> NDArray[Any]:
    frame = headers.jpeg_frame(content)
    known = frame.marker in _READ_JPEG_PROCESSES and frame.bits == 8 and frame.samples in (1, 3, 4)
    # OpenCV takes a file with "ftyp" at this place for AVIF.
    if not known or content[4:8] == b"ftyp":
        raise ImageError(
            f"a JPEG of {frame.samples} channels of {frame.bits} bits, process {frame.marker:#x}, "
            "which is not read: save it as PNG"
        )
    # Of several scans, the coefficients of the whole image are kept, in two bytes each.
    pixel_bytes = max(frame.samples, 3) * (3 if frame.scans > 1 else 1)
    limits.check_frame(frame.rows, frame.columns, pixel_bytes)
    limits.check_work("scans", frame.rows * frame.columns * frame.samples * frame.scans, len(content))
    by = _reduction(content, frame, rule)
    size = -(-frame.rows // by), -(-frame.columns // by)
    pixels = _decode_with_opencv(content, "JPEG", rule, size, _REDUCED[by])
    if frame.samples == 4:
        # From inks OpenCV takes a shift by 8 for a division by 255, and gives up to two too much.
        pixels = pixels - ((pixels > 0) & (pixels < 255))
    return pixels


def _decode_with_opencv(
    content: bytes, kind: str, rule: ImageRule, size: tuple[int, int], reduced: int = 0
) -> NDArray[Any]:
    # Not IMREAD_COLOR_RGB: OpenCV 5.0.0 gives unwritten memory with it for 16-bit RGB.
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | reduced
    if rule.orientation == "ignore":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    pixels = opencv_decoder.decode(content, kind, flags)
    if sorted(pixels.shape[:2]) != sorted(size):
        raise ImageError(f"a damaged {kind} (its pixels are not as many as its header says)")
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _reduction(content: bytes, frame: headers.JpegFrame, rule: ImageRule) -> int:
    """Find the largest of 1, 2, 4 and 8 by which a JPEG can be divided and still cover the network's input.

    Of a side of n pixels libjpeg keeps `ceil(n / reduction)`.
    """
    if rule.jpeg != "dct-scaled" or frame.marker == _LOSSLESS:
        return 1
    rows, columns = frame.rows, frame.columns
    if rule.orientation == "apply" and headers.jpeg_orientation(content) in _TURNED:
        rows, columns = columns, rows
    covering = [by for by in _REDUCED if -(-rows // by) >= rule.rows and -(-columns // by) >= rule.columns]
    return max(covering, default=1)


def _three_channels(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    if pixels.shape[2] < 3:
        # One channel, or grey and alpha.
        return np.repeat(pixels[..., :1], 3, axis=2)
    return pixels[..., :3]


def _to_eight_bits(pixels: NDArray[Any], rule: ImageRule) -> Image:
    if pixels.dtype.kind == "f":
        return _floats_to_eight_bits(pixels, rule)
    if rule.sixteen_bit == "full-range":
        return np.asarray(_TO_EIGHT_BITS[pixels])
    low, high = int(pixels.min()), int(pixels.max())
    span = max(high - low, 1)
    table = ((np.arange(span + 1, dtype=np.uint32) * 510 + span) // (2 * span)).astype(np.uint8)
    return np.asarray(table[pixels - np.uint16(low)])


def _floats_to_eight_bits(pixels: NDArray[Any], rule: ImageRule) -> Image:
    low, high, finite = _finite_range(pixels)
    if rule.sixteen_bit != "min-max" and (not finite or low < 0 or high > 1):
        raise ImageError(
            f"float samples from {low:g} to {high:g}{' and not finite ones' * (not finite)}, "
            "where the rule full-range takes 0 to 1: use the rule min-max"
        )
    image = np.empty(pixels.shape, np.uint8)
    for block, result in zip(_blocks(pixels), _blocks(image), strict=True):
        shares = block.astype(np.float64)
        if rule.sixteen_bit == "min-max":
            # What is not a number is black, and infinities are clipped.
            shares = np.nan_to_num(shares, nan=low, posinf=high, neginf=low) - low
            shares /= (high - low) or 1.0
        result[...] = np.floor(shares * 255 + 0.5)
    return image


def _finite_range(pixels: NDArray[Any]) -> tuple[float, float, bool]:
    """Give the least and the largest finite value, 0 where there is none, and whether all are finite."""
    ranges, all_finite = [], True
    for block in _blocks(pixels):
        finite = block[np.isfinite(block)]
        all_finite = all_finite and finite.size == block.size
        if finite.size:
            ranges.append((float(finite.min()), float(finite.max())))
    lows, highs = zip(*ranges, strict=True) if ranges else ((0.0,), (0.0,))
    return min(lows), max(highs), all_finite


def _blocks(pixels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut into rows that are few enough to need little memory more."""
    step = max(1, _BLOCK_SAMPLES // (pixels.shape[1] * pixels.shape[2]))
    return (pixels[row : row + step] for row in range(0, pixels.shape[0], step))


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
    if height * width > Limits.from_environment().pixels:
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
