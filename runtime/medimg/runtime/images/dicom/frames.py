"""Which decoder each transfer syntax has, and stored values from it.

In this process compressed pixels go only through decoders that survive damaged data: OpenJPEG for JPEG 2000,
CharLS for JPEG-LS and OpenCV's libjpeg-turbo for 8-bit JPEG. GDCM, for other JPEG and for JPEG-LS that the
first decoder refuses, can end its process, which is therefore one of its own.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images import gdcm_frames, opencv_decoder
from medimg.runtime.images.decoder_pool import DecoderPool
from medimg.runtime.images.dicom.codestreams import Codestream, compressed_frames, read_codestream
from medimg.runtime.images.dicom.elements import DAMAGED, DataSet, uid_name
from medimg.runtime.images.dicom.header import PixelHeader
from medimg.runtime.images.dicom.native import native_words, rle_words
from medimg.runtime.images.dicom.stored import from_codestream, from_words
from medimg.runtime.images.limits import Limits

Stored: TypeAlias = tuple[NDArray[Any], str]
"""Stored values, and the photometric interpretation that holds for them."""
_Decode: TypeAlias = Callable[[Codestream, PixelHeader, str], Stored]

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{part}" for part in (50, 51, 53, 55, 57, 70))
"""Of these 53 and 55, progressive JPEG, are retired."""
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{part}" for part in (90, 91, 201, 202, 203))
_RLE = "1.2.840.10008.1.2.5"
_MODULES = {**dict.fromkeys(_JPEG_LS, "jpeg_ls"), **dict.fromkeys(_JPEG_2000, "openjpeg")}
_NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
"""Transfer syntaxes that pydicom has no name for."""
DECODED_HERE = (*_NATIVE, _BIG_ENDIAN, _RLE, *_JPEG, *_JPEG_LS, *_JPEG_2000)

_CONVERT = "convert the file to Explicit VR Little Endian, for instance with dcmdjpeg"
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""A JPEG segment that says: three components are RGB."""
_GDCM = DecoderPool(gdcm_frames.__name__)


def stored_frames(dataset: DataSet, header: PixelHeader, limits: Limits) -> Iterator[Stored]:
    """Decode one frame after the other.

    Args:
        dataset: the file's data set.
        header: what it says of its pixels.
        limits: on what is decoded.

    Yields:
        `(rows, columns)` or `(rows, columns, 3)` stored values, and their photometric interpretation.

    Raises:
        ImageError: nothing here decodes it, or it is damaged or contradicts its header.
    """
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    _require_decoder(syntax, header)
    if syntax in _NATIVE or syntax == _BIG_ENDIAN:
        for words in native_words(dataset, header, big_endian=syntax == _BIG_ENDIAN):
            yield (words if header.is_float else from_words(words, header)), header.photometric
        return
    for frame in compressed_frames(dataset, header):
        if syntax == _RLE:
            yield from_words(rle_words(frame, header), header), header.photometric
            continue
        stream = read_codestream(frame, header)
        limits.check_work("scans", header.frame_bytes * stream.scans, len(frame))
        if header.samples > 1 and stream.bits < header.bits_stored:
            raise ImageError(
                f"a compressed frame of {stream.bits} bits per sample, where the header says "
                f"{header.bits_stored}"
            )
        samples, photometric = _decoder(syntax, stream)(stream, header, syntax)
        yield from_codestream(samples, stream, header), photometric


def _require_decoder(syntax: str, header: PixelHeader) -> None:
    name = _name(syntax)
    if syntax not in DECODED_HERE:
        which = f"{name} ({syntax})" if name != "unknown" else "its transfer syntax, which is no UID"
        raise ImageError(f"nothing here decodes {which}: {_CONVERT}")
    if header.is_float and syntax not in (*_NATIVE, _BIG_ENDIAN):
        raise ImageError(f"its pixels are floats, which {name} cannot hold")
    if header.photometric in ("YBR_ICT", "YBR_RCT") and syntax not in _JPEG_2000:
        # PS3.3 C.7.6.3.1.2 defines these colours for JPEG 2000 alone.
        raise ImageError(f"its photometric interpretation {header.photometric} is not supported in {name}")
    if header.bits_allocated == 1 and (header.samples > 1 or syntax == _RLE):
        raise ImageError(f"samples of 1 bit in {name} are not supported for {header.photometric}")
    if find_spec(_MODULES.get(syntax, "numpy")) is None:
        raise ImageError(f"its transfer syntax {name} needs a decoder: pip install 'medimg[dicom]'")


def _name(syntax: str) -> str:
    return _NAMES.get(syntax) or uid_name(syntax)


def _decoder(syntax: str, stream: Codestream) -> _Decode:
    if syntax in _JPEG_2000:
        return _with_openjpeg
    if syntax in _JPEG_LS:
        return _with_charls
    return _with_libjpeg if stream.is_dct and stream.bits == 8 else _with_gdcm


def _with_libjpeg(stream: Codestream, header: PixelHeader, _: str) -> Stored:
    content = stream.content
    if header.photometric == "RGB":
        # The header decides where the codestream says nothing; its own marker would override this one.
        content = content[:2] + _ADOBE_RGB + content[2:]
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = opencv_decoder.decode(content, "JPEG frame", flags)
    if pixels.ndim == 3:
        return np.ascontiguousarray(pixels[..., ::-1]), "RGB"
    return pixels, header.photometric


def _with_openjpeg(stream: Codestream, header: PixelHeader, _: str) -> Stored:
    import openjpeg

    if header.photometric in ("YBR_ICT", "YBR_RCT") and not stream.is_mixed:
        raise ImageError(
            f"its photometric interpretation is {header.photometric}, but its codestream has no such colours"
        )
    try:
        samples = openjpeg.decode(stream.content)
    except DAMAGED:
        raise ImageError("a damaged JPEG 2000 frame") from None
    photometric = "RGB" if header.photometric in ("YBR_ICT", "YBR_RCT") else header.photometric
    return _shaped(samples, header), photometric


def _with_charls(stream: Codestream, header: PixelHeader, syntax: str) -> Stored:
    import jpeg_ls

    try:
        content, found = jpeg_ls.decode_pixel_data(stream.content)
    except DAMAGED:
        # This one stops at what another of its versions reads.
        return _with_gdcm(stream, header, syntax)
    samples = np.frombuffer(content, np.uint8 if stream.bits <= 8 else np.dtype("<u2"))
    by_plane = header.samples > 1 and found["interleave_mode"] == 0
    return _shaped(samples, header, by_plane=by_plane), header.photometric


def _with_gdcm(stream: Codestream, header: PixelHeader, syntax: str) -> Stored:
    name = f"{stream.bits}-bit {_name(syntax)}"
    if stream.is_dct and stream.samples != 1 and header.photometric != "RGB":
        raise ImageError(f"nothing here decodes {name} ({syntax}) in colour: {_CONVERT}")
    if find_spec("gdcm") is None:
        raise ImageError(f"its {name} needs a decoder: pip install 'medimg[dicom]'")
    request = gdcm_frames.CompressedFrame(
        stream.rows, stream.columns, stream.samples, stream.bits, syntax, stream.content
    )
    decoded = _GDCM.run(request.pack(), request.decoded_bytes)
    return _shaped(np.frombuffer(decoded, f"<u{request.sample_bytes}"), header), header.photometric


def _shaped(samples: NDArray[Any], header: PixelHeader, *, by_plane: bool = False) -> NDArray[Any]:
    wanted = (header.rows, header.columns, *((3,) if header.samples == 3 else ()))
    if samples.size != np.prod(wanted):
        raise ImageError("a damaged compressed frame (it has another size than it says)")
    if by_plane:
        return np.moveaxis(samples.reshape(3, header.rows, header.columns), 0, -1)
    return samples.reshape(wanted)
