"""JPEG files to the network's input on an NVIDIA GPU.

A GPU answers faster than the processors beside it decode: one H100 wants about 30 cores of JPEG decoding. So
nvImageCodec decodes on the card, and the pixels are resized there. First its pixels are compared with the
CPU's, kind by kind, on images made for that: a kind that differs by more than one grey level is the CPU's.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import BackendError
from medimg.runtime.images.gpu.kinds import ALL, JpegKind, examples, kind_of
from medimg.runtime.images.gpu.resizer import Resizer
from medimg.runtime.images.load import read_jpeg
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.machine.cuda import Cuda
from medimg.runtime.optional import require

LARGEST_DIFFERENCE = 1
"""In grey levels, before any resize."""
Image = NDArray[np.uint8]


class Codec(Protocol):
    """Decodes JPEG files into a device's memory."""

    def decode(self, contents: Sequence[bytes]) -> "Sequence[OnDevice | None]":
        """Decode; None in the place of a file that it cannot read."""


class OnDevice(Protocol):
    """An image in a device's memory."""

    @property
    def rows(self) -> int:
        """Height in pixels."""

    @property
    def columns(self) -> int:
        """Width in pixels."""

    @property
    def address(self) -> int:
        """Where `(rows, columns, 3)` uint8 RGB lies, contiguous."""

    def pixels(self) -> Image:
        """Copy it to the host."""


class GpuDecoder:
    """Decodes and resizes JPEG files on a card; several threads may use one instance at once.

    Args:
        codec: makes a decoder, one for each thread.
        resizer: resizes where the codec's images lie.

    Raises:
        BackendError: the card's pixels are the CPU's for no kind of JPEG.
    """

    def __init__(self, codec: Callable[[], Codec], resizer: Resizer) -> None:
        self._make_codec = codec
        self._resizer = resizer
        self._of_thread = threading.local()
        self.kinds: frozenset[JpegKind] = frozenset(kind for kind in ALL if self._is_right(kind))
        """Those that are decoded on the card; others are for the CPU."""
        if not self.kinds:
            raise BackendError(
                "this GPU decodes no kind of JPEG to the processors' pixels: leave --decode gpu out"
            )

    def read(self, path: Path) -> bytes | None:
        """Read a file that is decoded on the card; None for one that is the processors'.

        The card does not tell of damage, so the processors decode an eighth of each side, which takes them a
        quarter of the time that the whole would.

        Raises:
            ImageError: it cannot be read, or is damaged.
        """
        content = read_jpeg(path)
        return content if content is not None and kind_of(content) in self.kinds else None

    def decode(self, contents: Sequence[bytes]) -> list[Image | None]:
        """Decode and resize files that `read` has given.

        Returns:
            `(rows, columns, 3)` uint8 RGB each, as the CPU gives it but for one grey level; None where the
            card cannot decode the file.
        """
        return [
            None if image is None else self._resizer.resize(image.address, image.rows, image.columns)
            for image in self._codec().decode(contents)
        ]

    def _codec(self) -> Codec:
        if not hasattr(self._of_thread, "codec"):
            self._of_thread.codec = self._make_codec()
        found: Codec = self._of_thread.codec
        return found

    def _is_right(self, kind: JpegKind) -> bool:
        contents = list(examples(kind))
        found = self._codec().decode(contents)
        return all(
            image is not None and _difference(image.pixels(), content) <= LARGEST_DIFFERENCE
            for image, content in zip(found, contents, strict=True)
        )


def open_decoder(device: str, rule: ImageRule) -> GpuDecoder:
    """Make the decoder of a GPU.

    Args:
        device: `gpu:N`.
        rule: what the network's input is like.

    Raises:
        MissingDependencyError: a package is missing.
        BackendError: the device is no GPU, the rule is not one that the card follows, or its pixels differ.
    """
    if not device.startswith("gpu"):
        raise BackendError(
            f"--decode gpu decodes on the GPU that answers, and {device} answers: --device gpu"
        )
    if rule.resize != "stretch-linear" or rule.jpeg != "full":
        raise BackendError(
            f"--decode gpu follows the resize rule stretch-linear, and this model has {rule.resize} "
            f"(JPEG {rule.jpeg}): leave it out"
        )
    number = int(device.partition(":")[2] or 0)
    return GpuDecoder(lambda: NvImageCodec(number), Resizer(rule.rows, rule.columns, "cuda", number))


class NvImageCodec:
    """NVIDIA's nvImageCodec with the GPU's JPEG engines.

    Its other decoders share the work between GPU and CPU, and differ by up to three grey levels
    (`benchmarks/results/gpu-kit.json`).
    """

    def __init__(self, number: int) -> None:
        library = require("nvidia.nvimgcodec", "gpu-decode")
        self._cuda = Cuda()
        self._cuda.select(number)
        engines = [library.Backend(library.HW_GPU_ONLY)]
        self._decoder: Any = library.Decoder(
            device_id=number, backends=engines, options=":fancy_upsampling=1"
        )

    def decode(self, contents: Sequence[bytes]) -> list[OnDevice | None]:
        """Decode on the default stream, and wait for it."""
        images = self._decoder.decode(list(contents))
        self._cuda.wait(0)
        return [None if image is None else _OnCard(image) for image in images]


class _OnCard:
    """An image of nvImageCodec, which frees its memory."""

    def __init__(self, image: Any) -> None:  # noqa: ANN401  no types
        described = image.__cuda_array_interface__
        self._image = image
        self.rows: int = described["shape"][0]
        self.columns: int = described["shape"][1]
        self.address: int = described["data"][0]

    def pixels(self) -> Image:
        return np.asarray(self._image.cpu(), np.uint8)


def _difference(pixels: Image, content: bytes) -> int:
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if expected is None or expected.shape != pixels.shape:
        return 255
    return int(np.abs(pixels.astype(np.int16) - expected).max())
