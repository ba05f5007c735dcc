"""GDCM's JPEG decoders (an Apache-2.0 wheel of a BSD library), for what other decoders do not give.

GDCM can end its process on damaged data, so `start` runs in a worker of `decoder_pool`. It decodes lossless
JPEG of up to 16 bits and lossy JPEG of 12, sequential and progressive; the results equal dcmtk's. Its CharLS
also reads JPEG-LS with padding or comments before its end, which pyjpegls refuses.
"""

import mmap
import os
import struct
import tempfile
from dataclasses import dataclass
from typing import IO, Any

from medimg.runtime.images.decoder_worker import Decode

_HEAD = struct.Struct("<IIBB64s")


@dataclass(frozen=True)
class CompressedFrame:
    """A JPEG codestream and what its own header says of it."""

    rows: int
    columns: int
    samples: int
    """Samples a pixel, 1 or 3."""
    bits: int
    """Bits a sample, 2 to 16."""
    transfer_syntax: str
    """Its UID."""
    codestream: bytes

    @property
    def sample_bytes(self) -> int:
        """Width of a decoded sample."""
        return 1 if self.bits <= 8 else 2

    @property
    def decoded_bytes(self) -> int:
        """Size of `(rows, columns, samples)` little-endian unsigned integers."""
        return self.rows * self.columns * self.samples * self.sample_bytes

    def pack(self) -> bytes:
        """Write the request to a worker."""
        uid = self.transfer_syntax.encode()
        return _HEAD.pack(self.rows, self.columns, self.samples, self.bits, uid) + self.codestream

    @classmethod
    def unpack(cls, request: bytes) -> "CompressedFrame":
        """Read it in the worker."""
        rows, columns, samples, bits, uid = _HEAD.unpack_from(request)
        return cls(rows, columns, samples, bits, uid.rstrip(b"\0").decode(), request[_HEAD.size :])


def start() -> Decode:
    """Load GDCM, and keep what its libjpeg writes to standard error."""
    import gdcm

    complaints = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process is
    os.dup2(complaints.fileno(), 2)

    def decode(request: bytes, answer: mmap.mmap) -> None:
        complaints.seek(0)
        complaints.truncate()
        decoded = _decode(CompressedFrame.unpack(request), gdcm)
        complaint = _corrupt(complaints)
        if decoded is None or len(decoded) != len(answer) or complaint:
            raise ValueError(f"a damaged JPEG frame{complaint}")
        answer[:] = decoded

    return decode


def _corrupt(complaints: IO[bytes]) -> str:
    """Find libjpeg's warning that it made pixels up; its other remarks change nothing."""
    lines = os.pread(complaints.fileno(), 4096, 0).decode(errors="replace").splitlines()
    return next((f" ({line})" for line in lines if line.startswith("Corrupt JPEG data")), "")


def _decode(frame: CompressedFrame, gdcm: Any) -> bytes | None:  # noqa: ANN401  a module without types
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((frame.columns, frame.rows, 1))
    # Neither colours nor signs are GDCM's to change.
    kind = (
        gdcm.PhotometricInterpretation.MONOCHROME2
        if frame.samples == 1
        else gdcm.PhotometricInterpretation.RGB
    )
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetPixelFormat(
        gdcm.PixelFormat(frame.samples, 8 * frame.sample_bytes, frame.bits, frame.bits - 1, 0)
    )
    syntax = gdcm.TransferSyntax.GetTSType(frame.transfer_syntax)
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame.codestream)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ImplicitVRLittleEndian))
    change.SetInput(image)
    # `change` counts references and deletes the image, which Python must not do a second time.
    image.thisown = False
    # Image.GetBuffer() alone gives memory that nobody wrote where decoding fails; Change() says so.
    if not change.Change():
        return None
    pixels: str = change.GetOutput().GetBuffer()
    return pixels.encode("utf-8", "surrogateescape")
