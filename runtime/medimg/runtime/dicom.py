"""DICOM files to 8-bit pixels: which of them hold an image, and how each transfer syntax is decoded.

In this process compressed pixels go only through decoders that survive damaged data: OpenJPEG for JPEG
2000, CharLS for JPEG-LS, pydicom's own for RLE and OpenCV's libjpeg-turbo for 8-bit JPEG. GDCM, for other
JPEG, can end its process, which is therefore one of its own. "PS3.x" are parts of the DICOM standard.
"""

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime import gdcm_frames, headers
from medimg.runtime.decoder_pool import DecoderPool
from medimg.runtime.dicom_display import display
from medimg.runtime.errors import ImageError
from medimg.runtime.optional import require
from medimg.runtime.text import printable

_JPEG = tuple(f"1.2.840.10008.1.2.4.{part}" for part in (50, 51, 53, 55, 57, 70))
"""Of these 53 and 55, progressive JPEG, are retired."""
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{part}" for part in (90, 91, 201, 202, 203))
_RLE = "1.2.840.10008.1.2.5"
_PLUGINS = {**dict.fromkeys(_JPEG_LS, "pyjpegls"), **dict.fromkeys(_JPEG_2000, "pylibjpeg"), _RLE: "pydicom"}
"""Transfer syntax to the one plug-in of pydicom that may decode it."""

_GDCM = DecoderPool(gdcm_frames.__name__)
_FIRST_IMPORT = threading.Lock()
"""Decoding threads that begin together would meet modules of pydicom that are half made."""

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES = 2**31
_CONVERT = "convert the file to Explicit VR Little Endian, for instance with dcmdjpeg"
_REWRITE = "rewrite the file with its pixels in the low bits"
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""A JPEG segment that says: three components are RGB."""

# What pydicom and its plug-ins raise on damaged files, found by flipping bits in its own test files.
DAMAGED = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def decode_frames(content: bytes, window: str, max_pixels: int) -> Iterator[NDArray[np.uint8]]:
    """Decode every frame of a DICOM file as it would be shown.

    Args:
        content: the whole file.
        window: for grey values, the file's VOI LUT or `first` window, its N-th as `window-N`, or the
            frame's `min-max`.
        max_pixels: limit on the pixels of a frame.

    Yields:
        `(rows, columns)` grey or `(rows, columns, 3)` RGB, uint8.

    Raises:
        ImageError: it holds no image, is damaged, or nothing here decodes it.
        MissingDependencyError: pydicom is not installed.
    """
    pydicom = quiet_pydicom()
    try:
        dataset = _read(content, pydicom)
        _require_image(dataset, max_pixels)
        wanted = int(dataset.get("NumberOfFrames") or 1)
        count = 0
        # JPEG data without an offset table can seem to hold more frames than there are.
        for pixels, photometric in islice(_stored_frames(dataset), wanted):
            yield display(pixels, photometric, dataset, count, window)
            count += 1
    except (*DAMAGED, pydicom.errors.BytesLengthException, pydicom.errors.InvalidDicomError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"a damaged or unusual DICOM file ({printable(reason[:200])})") from None
    if count < wanted:
        raise ImageError(f"a truncated DICOM file ({count} of {wanted} frames)")


def read_patient_id(content: bytes) -> str | None:
    """Give the PatientID (0010,0020) of a file, or None where it has none.

    Args:
        content: the whole file.

    Raises:
        ImageError: it is damaged.
        MissingDependencyError: pydicom is not installed.
    """
    pydicom = quiet_pydicom()
    try:
        _check_inflated_size(content)
        tags = {"stop_before_pixels": True, "specific_tags": ["PatientID"]}
        value = pydicom.dcmread(BytesIO(content), force=True, **tags).get("PatientID")
    except (*DAMAGED, pydicom.errors.BytesLengthException, pydicom.errors.InvalidDicomError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"a damaged or unusual DICOM file ({printable(reason[:200])})") from None
    return str(value).strip() or None if value is not None else None


def quiet_pydicom() -> Any:  # noqa: ANN401  a module without types
    """Import pydicom, and keep its remarks and logged tracebacks out of a bad file's one-line reason."""
    with _FIRST_IMPORT:
        pydicom = require("pydicom", "dicom")
        for part in ("pydicom.encaps", "pydicom.pixels"):
            require(part, "dicom")
    logger = logging.getLogger("pydicom")
    if not pydicom.config.debugging:
        logger.setLevel(logging.CRITICAL)
    # Not catch_warnings, which threads would undo for one another.
    if not any(rule[0] == "ignore" and "pydicom" in str(rule[3]) for rule in warnings.filters):
        warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


def _read(content: bytes, pydicom: Any) -> Any:  # noqa: ANN401
    _check_inflated_size(content)
    dataset = pydicom.dcmread(BytesIO(content), force=True)
    if "SOPClassUID" not in dataset and "Rows" not in dataset and not dataset.file_meta:
        raise ImageError("not a DICOM file, or one without an image")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _check_inflated_size(content: bytes) -> None:
    """Refuse a deflated data set (PS3.5 A.5) that unpacks without bound."""
    if content[128:132] != b"DICM" or _DEFLATED not in content[:1024]:
        return
    (meta_bytes,) = struct.unpack_from("<I", content, 140)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed, size_bytes = content[144 + meta_bytes :], 0
    while packed and not inflater.eof:
        size_bytes += len(inflater.decompress(packed, 2**24))
        packed = inflater.unconsumed_tail
        if size_bytes > _MAX_INFLATED_BYTES:
            raise ImageError(f"unpacks to more than {_MAX_INFLATED_BYTES:,} bytes")


def _require_image(dataset: Any, max_pixels: int) -> None:  # noqa: ANN401
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    kind = getattr(uid, "name", "unknown kind")
    if not any(name in dataset for name in _PIXELS):
        raise ImageError(f"DICOM without pixels ({kind})")
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise ImageError(f"DICOM pixels without rows and columns ({kind})")
    if rows * columns > max_pixels:
        raise ImageError(f"its header says {columns}x{rows} pixels; the limit is {max_pixels:,}")


def _stored_frames(dataset: Any) -> Iterator[tuple[NDArray[Any], str]]:  # noqa: ANN401
    """Decode frames to their stored values, each with the photometric interpretation that holds for them."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _JPEG:
        yield from _jpeg_frames(dataset)
        return
    plugin = _PLUGINS.get(syntax, "")
    if syntax.is_encapsulated and not plugin:
        raise ImageError(f"nothing here decodes {syntax.name} ({syntax}): {_CONVERT}")
    decoder = get_decoder(syntax)
    if plugin and plugin not in decoder.available_plugins:
        raise ImageError(f"its transfer syntax {syntax.name} needs a decoder: pip install 'medimg[dicom]'")
    if syntax in _JPEG_LS or syntax in _JPEG_2000:
        for codestream in _codestreams(dataset):
            _check_codestream(codestream, dataset)
    _require_plain_bits(dataset, syntax)
    for pixels, properties in decoder.iter_array(dataset, decoding_plugin=plugin):
        yield pixels, str(properties["photometric_interpretation"])


def _require_plain_bits(dataset: Any, syntax: Any) -> None:  # noqa: ANN401
    """Refuse what pydicom would take for something else without a word."""
    photometric = dataset.get("PhotometricInterpretation")
    if photometric in ("YBR_ICT", "YBR_RCT") and syntax not in _JPEG_2000:
        # PS3.3 C.7.6.3.1.2 defines these colours for JPEG 2000 alone.
        raise ImageError(f"its photometric interpretation {photometric} is not supported in {syntax.name}")
    high_bit, stored = dataset.get("HighBit"), dataset.get("BitsStored")
    if not syntax.is_encapsulated and high_bit is not None and stored and high_bit != stored - 1:
        raise ImageError(
            f"its high bit is {high_bit} where {stored} bits are stored (PS3.5 8.1.1): {_REWRITE}"
        )


def _codestreams(dataset: Any) -> Iterator[bytes]:  # noqa: ANN401
    """Give the compressed frames (PS3.5 A.4)."""
    from pydicom.encaps import generate_frames

    count = int(dataset.get("NumberOfFrames") or 1)
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    frames = generate_frames(
        dataset.PixelData, number_of_frames=count, extended_offsets=offsets if all(offsets) else None
    )
    yield from islice(frames, count)


def _check_codestream(codestream: bytes, dataset: Any) -> None:  # noqa: ANN401
    """Check that a compressed frame is whole and as large as the header says, before a decoder allocates."""
    if b"\xff\xd9" not in codestream[-16:]:
        raise ImageError("a truncated DICOM file (a compressed frame has no end)")
    start = codestream.find(b"\xff\x4f\xff\x51")
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">IIII", codestream, start + 8)
        rows, columns = bottom - top, right - left
    else:
        rows, columns = headers.jpeg_frame(codestream)[:2]
    if (rows, columns) != (dataset.Rows, dataset.Columns):
        raise ImageError(
            f"a compressed frame of {columns}x{rows} pixels, where the header says "
            f"{dataset.Columns}x{dataset.Rows}"
        )


def _jpeg_frames(dataset: Any) -> Iterator[tuple[NDArray[Any], str]]:  # noqa: ANN401
    """Decode JPEG: samples of 8 bits here, others in a process of their own."""
    for codestream in _codestreams(dataset):
        _check_codestream(codestream, dataset)
        frame = headers.jpeg_frame(codestream)
        decode = _decode_eight_bits if frame.bits == 8 else _decode_with_gdcm
        yield decode(codestream, frame, dataset)


def _decode_eight_bits(codestream: bytes, _: headers.JpegFrame, dataset: Any) -> tuple[NDArray[Any], str]:  # noqa: ANN401
    photometric = str(dataset.get("PhotometricInterpretation"))
    if photometric == "RGB":
        # The header decides where the codestream says nothing; its own marker would override this one.
        codestream = codestream[:2] + _ADOBE_RGB + codestream[2:]
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(codestream, np.uint8), flags)
    if pixels is None:
        raise ImageError("a damaged JPEG frame")
    return (pixels[..., ::-1], "RGB") if pixels.ndim == 3 else (pixels, photometric)


def _decode_with_gdcm(
    codestream: bytes,
    frame: headers.JpegFrame,
    dataset: Any,  # noqa: ANN401
) -> tuple[NDArray[Any], str]:
    syntax = dataset.file_meta.TransferSyntaxUID
    photometric = str(dataset.get("PhotometricInterpretation"))
    if frame.samples != dataset.SamplesPerPixel or (frame.samples != 1 and photometric != "RGB"):
        raise ImageError(
            f"nothing here decodes {frame.bits}-bit {syntax.name} ({syntax}) in colour: {_CONVERT}"
        )
    if find_spec("gdcm") is None:
        raise ImageError(f"its {frame.bits}-bit {syntax.name} needs a decoder: pip install 'medimg[dicom]'")
    request = gdcm_frames.CompressedFrame(
        frame.rows, frame.columns, frame.samples, frame.bits, str(syntax), codestream
    )
    decoded = _GDCM.run(request.pack(), request.decoded_bytes)
    shape = (frame.rows, frame.columns) if frame.samples == 1 else (frame.rows, frame.columns, frame.samples)
    stored = np.frombuffer(decoded, f"<u{request.sample_bytes}").reshape(shape)
    return _only_stored_bits(stored, dataset), photometric


def _only_stored_bits(samples: NDArray[Any], dataset: Any) -> NDArray[Any]:  # noqa: ANN401
    """Drop the bits above the high bit, and extend the sign (PS3.5 8.1.1)."""
    spare = max(8 * samples.itemsize - int(dataset.BitsStored), 0)
    kind = "i" if dataset.PixelRepresentation else "u"
    shifted = samples << samples.dtype.type(spare)
    signed = shifted.view(f"{kind}{samples.itemsize}")
    return np.asarray(signed >> signed.dtype.type(spare))
