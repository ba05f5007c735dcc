"""Generated DICOM files, headers times encodings, against the formulas of the standard and against dcmtk."""

import collections
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jpeg_ls
import numpy as np
import pytest
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medimg.runtime.errors import ImageError
from medimg.runtime.images import dicom
from medimg.runtime.images.limits import Limits

from .recipes import (
    EXPLICIT,
    JPEG_2000,
    JPEG_LS,
    LOSSLESS_JPEG,
    RLE,
    SYNTAXES,
    Bits,
    Recipe,
    add_pixels,
    empty,
    recipe,
    smooth,
    written,
)

Frames = list[NDArray[np.uint8]]


def shown(content: bytes, window: str = "first") -> Frames:
    return list(dicom.decode_frames(content, window, Limits()))


def compare(made: Recipe, seed: int) -> Iterator[str]:
    """Hold one file against the formulas, with both rules; give the reasons of refusals."""
    for window, expected in (("first", made.frames), ("min-max", made.by_range)):
        if not expected:
            continue
        try:
            found = shown(made.content(), window)
        except ImageError as error:
            yield str(error)
            continue
        assert len(found) == len(expected), f"seed {seed}"
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape, f"seed {seed}"
            assert np.abs(one - other).max() <= 1, f"seed {seed}: {made.syntax}, {made.kinds}"


def compare_many(seeds: range) -> None:
    """Nothing but GDCM's crash over differences of 32,768 may keep a file from being shown."""
    refused: collections.Counter[str] = collections.Counter()
    kinds: set[str] = set()
    for seed in seeds:
        made = recipe(seed)
        kinds |= made.kinds | {made.syntax}
        refused.update(compare(made, seed))
    assert {reason.partition(" (")[0] for reason in refused} <= {"its decoder crashed"}
    assert sum(refused.values()) <= len(seeds) / 100
    wanted = {"groups", "voi table", "modality table", "negative first", "packed table", "width 0", "padding"}
    assert kinds >= wanted | {"high bit", "spare overlay", "palette", "RGB", "YBR_FULL", *SYNTAXES}


def test_generated_files_are_shown_as_the_standard_says() -> None:
    compare_many(range(80))


@pytest.mark.soak
def test_thousands_of_generated_files_are_shown_as_the_standard_says() -> None:
    compare_many(range(1000, 4000))


def dcmtk_shows(made: Recipe, folder: Path) -> NDArray[Any] | None:
    """Convert the first frame with dcmtk; None where it cannot."""
    source, target = folder / "a.dcm", folder / "a.pnm"
    source.write_bytes(made.content())
    target.unlink(missing_ok=True)
    widths = np.atleast_1d(made.dataset.get("WindowWidth") or [])
    options = []
    if made.dataset.get("VOILUTSequence"):
        options = ["--use-voi-lut", "1"]
    elif widths.size:
        options = ["--use-window", str(1 + int(widths[0] == 0))]
    tool = "dcml2pnm" if made.syntax == JPEG_LS else "dcmj2pnm"
    command = [tool, "--write-raw-pnm", "--no-overlays", *options, str(source), str(target)]
    subprocess.run(command, capture_output=True, check=False)
    if not target.exists():
        return None
    pixels = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels if pixels.ndim == 2 else pixels[..., ::-1]


def dcmtk_follows(made: Recipe) -> bool:
    """Leave out what dcmtk 3.6.7 has no notion of.

    It reads no functional groups and no JPEG 2000, rounds rescaled values to whole numbers and YBR twice,
    ignores LINEAR_EXACT, and stretches fewer than 8 stored bits to another range.
    """
    dataset = made.dataset
    whole = float(dataset.get("RescaleSlope") or 1).is_integer()
    plain = made.syntax != JPEG_2000 and not {"groups", "YBR_FULL", "YBR_FULL_422"} & made.kinds
    return whole and plain and dataset.BitsStored >= 8 and dataset.get("VOILUTFunction") != "LINEAR_EXACT"


def compare_with_dcmtk(seeds: range, folder: Path) -> None:
    if shutil.which("dcml2pnm") is None:
        pytest.skip("dcmj2pnm and gdcmconv of the Debian packages dcmtk and libgdcm-tools are not installed")
    compared = 0
    for seed in seeds:
        made = recipe(seed)
        if not dcmtk_follows(made):
            continue
        theirs = dcmtk_shows(made, folder)
        if theirs is None:
            continue
        try:
            ours = shown(made.content())[0]
        except ImageError:
            continue
        assert np.abs(ours.astype(int) - theirs).max() <= 1, f"seed {seed}: {made.syntax}, {made.kinds}"
        compared += 1
    assert compared > len(seeds) / 3


@pytest.mark.long
def test_generated_files_are_shown_as_dcmtk_shows_them(tmp_path: Path) -> None:
    compare_with_dcmtk(range(40), tmp_path)


@pytest.mark.soak
def test_many_generated_files_are_shown_as_dcmtk_shows_them(tmp_path: Path) -> None:
    compare_with_dcmtk(range(1000, 2500), tmp_path)


def test_a_first_value_with_two_readings_is_signed_where_values_can_be_negative() -> None:
    """Both lie in the range of -32768 to 98302; PS3.3 C.11.2.1.1 decides."""
    dataset, header = empty(EXPLICIT, 1, 4, 1), Bits(16, 16, 15, False, "zero")
    header.describe(dataset)
    dataset.PhotometricInterpretation, dataset.RescaleSlope, dataset.RescaleIntercept = (
        "MONOCHROME2",
        2,
        -32768,
    )
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [100, 65536 - 500, 8])
    item.add_new("LUTData", "US", list(range(0, 200, 2)))
    dataset.VOILUTSequence = [item]
    # Rescaled to -600, -500, -480 and -402.
    words = np.array([[16084, 16134, 16144, 16183]], np.uint16)
    add_pixels(dataset, EXPLICIT, words[np.newaxis], header)
    assert shown(written(dataset))[0].tolist() == [[0, 0, 40, 196]]


# Codestreams that contradict their header.

LOW_BITS = smooth(np.random.default_rng(0), 40, 48, 0, 4095)
NOISE = np.random.default_rng(1).integers(0, 65536, (40, 48))


def with_stream(header: Bits, stream: bytes, syntax: str = JPEG_2000) -> bytes:
    dataset = empty(syntax, 40, 48, 1)
    header.describe(dataset)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def stream_of(values: NDArray[Any], bits: int, *, signed: bool) -> bytes:
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    return bytes(
        encode_array(values.astype(kind), bits_stored=bits, photometric_interpretation=2, use_mct=False)
    )


def bits(stored: int, *, signed: bool = False, allocated: int = 16) -> Bits:
    return Bits(allocated, stored, stored - 1, signed, "zero")


@pytest.mark.parametrize(
    ("header", "values", "precision", "signed"),
    [
        (bits(12), smooth(np.random.default_rng(2), 40, 48, 0, 65535), 16, False),
        (bits(12), NOISE, 16, False),
        (bits(8, allocated=8), LOW_BITS, 12, False),
        (bits(12), LOW_BITS - 2048, 12, True),
        (bits(16, signed=True), LOW_BITS, 12, False),
        (bits(12, signed=True), NOISE - 32768, 16, True),
    ],
)
def test_a_codestream_with_two_readings_is_refused(
    header: Bits, values: NDArray[Any], precision: int, signed: bool
) -> None:
    content = with_stream(header, stream_of(values, precision, signed=signed))
    for window in ("first", "min-max"):
        with pytest.raises(ImageError, match=r"its codestream has .*: convert the file"):
            shown(content, window)


@pytest.mark.parametrize(
    ("header", "values", "precision", "signed"),
    [
        (bits(16), LOW_BITS, 12, False),
        (bits(12), LOW_BITS, 16, False),
        (bits(12, signed=True), LOW_BITS - 2048, 16, True),
        (bits(12, signed=True), LOW_BITS - 2048, 12, True),
        (bits(16, signed=True), LOW_BITS - 2048, 12, True),
        (bits(16, signed=True), LOW_BITS // 2, 12, False),
        (bits(12), LOW_BITS // 2, 12, True),
    ],
)
def test_a_codestream_of_other_bits_with_one_reading_is_shown(
    header: Bits, values: NDArray[Any], precision: int, signed: bool
) -> None:
    (frame,) = shown(with_stream(header, stream_of(values, precision, signed=signed)))
    expected = (values - header.low) / (header.high - header.low) * 255
    assert np.abs(frame - expected).max() <= 1


def test_a_stream_without_a_sign_takes_it_from_the_header() -> None:
    values = LOW_BITS - 2048
    content = with_stream(bits(12, signed=True), stream_of(values & 4095, 12, signed=False))
    assert np.abs(shown(content)[0] - (values + 2048) / 4095 * 255).max() <= 1


@pytest.mark.parametrize("syntax", [JPEG_LS, LOSSLESS_JPEG, JPEG_2000, RLE, EXPLICIT])
@pytest.mark.parametrize("signed", [False, True])
def test_the_same_words_are_the_same_image_in_every_transfer_syntax(syntax: str, signed: bool) -> None:
    header = Bits(16, 12, 11, signed, "overlay")
    values = LOW_BITS + header.low
    dataset: Dataset = empty(syntax, 40, 48, 1)
    header.describe(dataset)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    add_pixels(dataset, syntax, header.words(values, np.random.default_rng(5))[np.newaxis], header)
    assert np.abs(shown(written(dataset))[0] - (values - header.low) / 4095 * 255).max() <= 1


# JPEG-LS that one CharLS refuses and another reads.


@pytest.mark.parametrize("before_the_end", [b"\0", b"\xff\xfe\0\4ab"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_jpeg_ls_that_the_first_decoder_refuses_is_read_by_the_second(
    before_the_end: bytes, samples: int, mode: int
) -> None:
    planes = np.stack([LOW_BITS // 16, 255 - LOW_BITS // 16, LOW_BITS // 32], axis=-1).astype(np.uint8)
    pixels = planes[..., :samples]
    ordered = np.moveaxis(pixels, -1, 0) if mode == 0 else pixels
    encoded = jpeg_ls.encode_buffer(
        ordered.tobytes(), 40, 48, samples, 8, interleave_mode=mode if samples > 1 else 0
    )
    stream = bytes(encoded)[:-2] + before_the_end + b"\xff\xd9"
    with pytest.raises(RuntimeError):
        jpeg_ls.decode_pixel_data(stream)
    dataset = empty(JPEG_LS, 40, 48, 1)
    bits(8, allocated=8).describe(dataset)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = samples, 0
    dataset.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    dataset.PixelData = encapsulate([stream])
    assert np.array_equal(shown(written(dataset))[0], pixels if samples == 3 else pixels[..., 0])
