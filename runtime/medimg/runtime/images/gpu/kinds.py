"""Kinds of JPEG, each of which a decoder is right or wrong about as a whole, and test images of each."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.images.headers import jpeg_orientation, jpeg_segments

_BASELINE, _APP14 = 0xC0, 0xEE
_SAMPLING = {
    (0x11,): None,
    (0x11, 0x11, 0x11): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    (0x21, 0x11, 0x11): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    (0x22, 0x11, 0x11): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    (0x12, 0x11, 0x11): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    (0x41, 0x11, 0x11): cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}
"""OpenCV's name for each combination of sampling factors (ITU-T T.81, B.2.2); None for grey."""
_SIZES = ((64, 64), (203, 317), (512, 512))
_QUALITIES = (50, 75, 90, 100)


@dataclass(frozen=True)
class JpegKind:
    """What decides how the samples of a baseline JPEG of 8 bits become pixels."""

    sampling: tuple[int, ...]
    """Sampling factors of each component, as the frame header holds them."""


ALL = tuple(JpegKind(sampling) for sampling in _SAMPLING)


def kind_of(content: bytes) -> JpegKind | None:
    """Tell a file's kind; None for all that is not an upright baseline JPEG, grey or YCbCr, of 8 bits."""
    found = None
    for marker, start, end in jpeg_segments(content):
        body = content[start:end]
        if marker == _APP14 and body[:5] == b"Adobe" and body[11:12] != b"\x01":
            return None
        if marker == _BASELINE and len(body) >= 6:
            bits, _, _, components = struct.unpack_from(">BHHB", body)
            found = tuple(body[7 + 3 * number] for number in range(components) if 7 + 3 * number < len(body))
            if bits != 8:
                return None
    kind = JpegKind(found) if found else None
    return kind if kind in ALL and jpeg_orientation(content) == 1 else None


def examples(kind: JpegKind) -> Iterator[bytes]:
    """Make JPEG files of a kind: noise, edges and gradients, of several sizes and qualities."""
    generator = np.random.default_rng(0)
    for rows, columns in _SIZES:
        for quality, pixels in zip(_QUALITIES, _pictures(generator, rows, columns), strict=True):
            options = [cv2.IMWRITE_JPEG_QUALITY, quality]
            sampling = _SAMPLING[kind.sampling]
            if sampling is not None:
                options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
            image = pixels if sampling is not None else pixels[..., 0]
            yield cv2.imencode(".jpg", np.ascontiguousarray(image), options)[1].tobytes()


def _pictures(generator: "np.random.Generator", rows: int, columns: int) -> Iterator[NDArray[np.uint8]]:
    down, across = np.mgrid[0:rows, 0:columns]
    noise = generator.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    yield cv2.GaussianBlur(noise, (0, 0), 2).astype(np.uint8)
    yield np.stack([down % 256, across % 256, (down + across) % 256], axis=-1).astype(np.uint8)
    yield (255 * ((down // 9 + across // 7) % 2))[..., None].repeat(3, axis=-1).astype(np.uint8)
    yield noise
