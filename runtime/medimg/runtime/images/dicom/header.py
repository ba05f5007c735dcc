"""The elements that describe pixels (PS3.3 C.7.6.3), read and checked once, before anything is decoded."""

from dataclasses import dataclass

from medimg.runtime.errors import ImageError
from medimg.runtime.images.dicom.elements import DataSet, code, name_of, uid_name, value, whole

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_ALLOCATED = (1, 8, 16, 32, 64)
_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
_UNREAD = ("ARGB", "CMYK", "HSV", "XYB", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
"""What else DICOM defines or has defined."""
_MOST_FRAMES = 2**31 - 1


@dataclass(frozen=True)
class PixelHeader:
    """What the data set says of its pixels."""

    keyword: str
    """The element that holds them."""
    rows: int
    columns: int
    samples: int
    """Samples per pixel, 1 or 3."""
    photometric: str
    planar: int | None
    """Whether the samples of uncompressed colours stand plane after plane; None where it is not said."""
    bits_allocated: int
    """Bits of the word that a sample has in uncompressed pixels."""
    bits_stored: int
    high_bit: int
    is_signed: bool
    frames: int

    @property
    def is_float(self) -> bool:
        """Tell pixels that have no stored bits."""
        return self.keyword in _FLOAT_BITS

    @property
    def frame_bytes(self) -> int:
        """Size of a decoded frame."""
        return self.rows * self.columns * self.samples * max(self.bits_allocated // 8, 1)

    @property
    def lowest(self) -> float:
        """The smallest value that the stored bits can hold."""
        return -(2.0 ** (self.bits_stored - 1)) if self.is_signed else 0.0

    @property
    def highest(self) -> float:
        """The largest value that the stored bits can hold."""
        return self.lowest + 2.0**self.bits_stored - 1


def read_header(dataset: DataSet) -> PixelHeader:
    """Read and check what describes the pixels.

    Raises:
        ImageError: there are no pixels, or an element is missing or cannot be.
    """
    uid = value(dataset, "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    kind = uid_name(uid) if uid else "unknown kind"
    keyword = next((name for name in PIXELS if name in dataset), None)
    if keyword is None:
        raise ImageError(f"DICOM without pixels ({kind})")
    rows, columns = whole(dataset, "Rows"), whole(dataset, "Columns")
    if not rows or not columns or rows < 0 or columns < 0:
        raise ImageError(f"DICOM pixels without rows and columns ({kind})")
    photometric, samples = _colours(dataset)
    allocated, stored, high, is_signed = _bits(dataset, keyword)
    frames = whole(dataset, "NumberOfFrames")
    frames = 1 if frames is None else frames or 1
    if not 1 <= frames <= _MOST_FRAMES:
        raise ImageError(f"its Number of Frames is {frames}")
    planar = whole(dataset, "PlanarConfiguration")
    return PixelHeader(
        keyword, rows, columns, samples, photometric, planar, allocated, stored, high, is_signed, frames
    )


def _colours(dataset: DataSet) -> tuple[str, int]:
    photometric = code(dataset, "PhotometricInterpretation")
    if not photometric:
        raise missing("PhotometricInterpretation")
    samples = _required(dataset, "SamplesPerPixel")
    if photometric not in _SAMPLES:
        which = photometric if photometric in _UNREAD else "that it names"
        raise ImageError(
            f"the photometric interpretation {which} is not supported: {', '.join(_SAMPLES)} are"
        )
    if samples != _SAMPLES[photometric]:
        raise ImageError(
            f"its photometric interpretation is {photometric}, which has "
            f"{_SAMPLES[photometric]} samples per pixel; its header says {samples}"
        )
    return photometric, samples


def _bits(dataset: DataSet, keyword: str) -> tuple[int, int, int, bool]:
    """Read bits allocated and stored, the high bit and the sign."""
    allocated = _required(dataset, "BitsAllocated")
    if keyword in _FLOAT_BITS:
        if allocated != _FLOAT_BITS[keyword]:
            raise ImageError(f"its {name_of(keyword)} has {allocated} bits allocated")
        return allocated, allocated, allocated - 1, True
    if allocated not in _ALLOCATED:
        raise ImageError(f"{allocated} bits are allocated for a sample; 1, 8, 16, 32 and 64 can be read")
    stored, is_signed = _required(dataset, "BitsStored"), _required(dataset, "PixelRepresentation")
    high = whole(dataset, "HighBit")
    if not 1 <= stored <= allocated:
        raise ImageError(f"{stored} bits are stored of {allocated} allocated ones, which cannot be")
    if is_signed not in (0, 1):
        raise ImageError(f"its Pixel Representation is {is_signed}, where 0 and 1 are defined")
    return allocated, stored, stored - 1 if high is None else high, bool(is_signed)


def _required(dataset: DataSet, keyword: str) -> int:
    found = whole(dataset, keyword)
    if found is None:
        raise missing(keyword)
    return found


def missing(keyword: str) -> ImageError:
    """Return the error that names an element that must be there."""
    return ImageError(f"a DICOM file without {name_of(keyword)}")
