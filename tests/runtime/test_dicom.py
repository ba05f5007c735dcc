"""DICOM to pixels: every real file against pydicom and dcmtk, each pipeline by hand, damaged files."""

import os
import random
import re
import shutil
import signal
import struct
import subprocess
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    SecondaryCaptureImageStorage,
)

from medimg.runtime.errors import ImageError
from medimg.runtime.images import dicom
from medimg.runtime.images.dicom import files as dicom_files
from medimg.runtime.images.dicom import frames
from medimg.runtime.images.limits import Limits
from medimg.runtime.images.load import load_frames, load_image, prepare, read_patient, read_size
from medimg.runtime.images.rule import ImageRule


def is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


PACKAGED = [
    path
    for folder in (
        Path(pydicom.__file__).parent / "data/test_files",
        Path(str(files("data_store"))) / "data",
    )
    for path in sorted(folder.rglob("*"))
    if path.is_file() and is_dicom(path)
]
BY_NAME = {path.name: path for path in PACKAGED}
RULE = ImageRule(64, 48)
Window = str

REASONS = {
    "ExplVR_BigEndNoMeta.dcm": "without pixels",
    "ExplVR_LitEndNoMeta.dcm": "without pixels",
    "JPEG2000-embedded-sequence-delimiter.dcm": "a compressed frame of 3722445056x1024 pixels",
    "MR_truncated.dcm": "a truncated DICOM file (8,130 of 8,192 bytes of pixels)",
    "badVR.dcm": "its Number of Frames is not a number",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "without pixels (Enhanced MR Image Storage)",
    "meta_missing_tsyntax.dcm": "without rows and columns",
    "nested_priv_SQ.dcm": "without rows and columns",
    "no_meta_group_length.dcm": "without pixels (RT Image Storage)",
    "test-SR.dcm": "without pixels (Comprehensive SR Storage)",
    "reportsi.dcm": "without pixels (Basic Text SR Storage)",
    "waveform_ecg.dcm": "without pixels (12-lead ECG Waveform Storage)",
    "DICOMDIR": "without pixels (Media Storage Directory Storage)",
}
"""What pydicom's own files are refused for; others without pixels say so."""


def decode(content: bytes, window: Window = "first") -> list[NDArray[np.uint8]]:
    return list(dicom.decode_frames(content, window, Limits()))


def shown_by_hand(dataset: Dataset, stored: NDArray[Any], frame: int) -> NDArray[np.float64]:
    """What DICOM says is shown of a frame, 0 to 255, written after the standard and not after the product."""
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)
        return np.asarray(colours / (256 if colours.max() > 255 else 1))
    if dataset.SamplesPerPixel == 3:
        return np.asarray(stored * (255 / (2**dataset.BitsStored - 1)))
    values = rescaled(dataset, stored, frame)
    if dataset.get("VOILUTSequence"):
        table = apply_voi(values, dataset)
        shown = table * (255 / (2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1))
    elif (window := of_frame(dataset, frame, "FrameVOILUTSequence", WINDOW)) is not None:
        # PS3.3 C.11.2.1.2.1, as it is written there.
        center, width = window
        x = values.astype(np.float64)
        shown = ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
        shown[x <= center - 0.5 - (width - 1) / 2] = 0
        shown[x > center - 0.5 + (width - 1) / 2] = 255
    else:
        low = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
        ends = rescaled(dataset, np.array([low, low + 2**dataset.BitsStored - 1], np.int64), frame)
        shown = (values - float(ends[0])) * (255 / (float(ends[1]) - float(ends[0])))
    return np.asarray(255 - shown if photometric == "MONOCHROME1" else shown)


WINDOW = ("WindowCenter", "WindowWidth")


def rescaled(dataset: Dataset, stored: NDArray[Any], frame: int) -> NDArray[Any]:
    if "ModalityLUTSequence" in dataset:
        table: NDArray[Any] = apply_modality_lut(stored, dataset)
        return table
    names = ("RescaleSlope", "RescaleIntercept")
    slope, intercept = of_frame(dataset, frame, "PixelValueTransformationSequence", names) or (1, 0)
    return stored * slope + intercept


def of_frame(dataset: Dataset, frame: int, macro: str, names: tuple[str, str]) -> tuple[float, float] | None:
    """Find two attributes of a frame: in its own macro, the shared one, or the data set."""
    holders = [dataset]
    if "SharedFunctionalGroupsSequence" in dataset:
        own, shared = (
            dataset.PerFrameFunctionalGroupsSequence[frame],
            dataset.SharedFunctionalGroupsSequence[0],
        )
        holders = [item[macro][0] for item in (own, shared) if macro in item] + holders
    for holder in holders:
        if names[0] in holder:
            first, second = (float(np.atleast_1d(np.array(holder[name].value, float))[0]) for name in names)
            return first, second
    return None


def stored_frames(dataset: Dataset) -> list[NDArray[Any]]:
    pixels = dataset.pixel_array
    return list(pixels) if int(dataset.get("NumberOfFrames") or 1) > 1 else [pixels]


def header(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True)


def unreadable_reason(path: Path) -> str | None:
    dataset = header(path)
    if "PixelData" not in dataset:
        return REASONS.get(path.name, "without pixels")
    return REASONS.get(path.name)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.name)
def test_every_file_of_pydicom_is_shown_as_the_standard_says_or_has_its_reason(path: Path) -> None:
    reason = unreadable_reason(path)
    if reason is not None:
        with pytest.raises(ImageError, match=re.escape(reason)):
            list(load_frames(path, RULE))
        return
    shown = decode(path.read_bytes())
    dataset = pydicom.dcmread(path)
    if str(dataset.file_meta.TransferSyntaxUID) in frames._JPEG:
        # pydicom gives these to GDCM in this process; dcmtk is compared below.
        assert shown[0].shape[:2] == (dataset.Rows, dataset.Columns)
        return
    if "expb" in path.name and dataset.PhotometricInterpretation == "PALETTE COLOR":
        # pydicom takes no notice of the byte order of palettes; the same image exists in the other order.
        other = decode(BY_NAME[path.name.replace("_expb", "")].read_bytes())
        assert all(np.array_equal(one, two) for one, two in zip(shown, other, strict=True))
        return
    for index, (frame, stored) in enumerate(zip(shown, stored_frames(dataset), strict=True)):
        expected = shown_by_hand(dataset, stored, index)
        assert frame.shape == expected.shape
        assert np.abs(frame - np.clip(expected, 0, 255)).max() <= 1


def dcmtk_shows(path: Path, options: list[str], frame: int, folder: Path) -> NDArray[np.uint8] | None:
    """Convert one frame, counted from 1, with dcmtk; None where it cannot."""
    target = folder / "frame.pnm"
    target.unlink(missing_ok=True)
    command = ["dcmj2pnm", "--write-raw-pnm", "--frame", str(frame), "--no-overlays", *options]
    subprocess.run([*command, str(path), str(target)], capture_output=True, check=False)
    if not target.exists():
        return None
    pixels = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels.astype(np.uint8) if pixels.ndim == 2 else pixels[..., ::-1].astype(np.uint8)


def decompressed_by_gdcm(path: Path, folder: Path) -> Path | None:
    """Have gdcmconv decompress what dcmtk does not read: JPEG 2000, JPEG-LS in some forms, odd files."""
    target = folder / "raw.dcm"
    command = ["gdcmconv", "--raw", str(path), str(target)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    dataset, original = pydicom.dcmread(target), pydicom.dcmread(path, force=True)
    # gdcmconv writes the codestream's precision; which bits count, the data set says (PS3.5 8.1.1).
    dataset.BitsStored, dataset.HighBit = original.BitsStored, original.HighBit
    dataset.save_as(target)
    return target


DCMTK_DIFFERS = {
    # dcmtk shows the largest 1-bit value at half brightness; output spans the stored bits' range.
    "liver": "PS3.3 C.11.2.1.2.1 and PS3.4 N.2.1: without a VOI the stored range is the output's",
    # dcmtk mixes the bytes of 32-bit big-endian values; the little-endian twin is compared.
    "rtdose_expb": "PS3.5 7.3: the bytes of a 32-bit word stand in decreasing order",
    # dcmtk rounds twice on the way from YBR to RGB.
    "SC_ybr_full_uncompressed": "PS3.3 C.7.6.3.1.2: the equations of YBR_FULL",
    # dcmtk takes no notice of the windows of a frame's functional groups.
    "eCT_Supplemental": "PS3.3 C.7.6.16.2.10: the Frame VOI LUT macro",
    "CT0012": "PS3.3 C.7.6.16.2.10: the Frame VOI LUT macro",
}
"""Files whose pixels the standard decides: they are held against it by hand above."""

NEITHER_READS = {"SC_rgb_32bit_2frame.dcm", "SC_rgb_expb_32bit_2frame.dcm"}
"""Colours of 32 bits, which neither dcmtk nor gdcm converts: they are held against pydicom above."""


def options_for(dataset: Dataset, window: Window) -> list[str]:
    if window == "min-max":
        return ["--min-max-window"]
    if dataset.get("VOILUTSequence"):
        return ["--use-voi-lut", "1"]
    return ["--use-window", "1"] if dataset.get("WindowCenter") is not None else []


def compare_with_peers(path: Path, folder: Path, *windows: Window) -> None:
    """Compare the first and the last frame with dcmtk, by way of gdcm where it is needed."""
    if shutil.which("dcmj2pnm") is None or shutil.which("gdcmconv") is None:
        pytest.skip("dcmj2pnm and gdcmconv of the Debian packages dcmtk and libgdcm-tools are not installed")
    source = path
    for window in windows:
        shown = decode(path.read_bytes(), window)
        options = options_for(pydicom.dcmread(path, force=True), window)
        for number in sorted({1, len(shown)}):
            theirs = dcmtk_shows(source, options, number, folder)
            if theirs is None and source == path and (raw := decompressed_by_gdcm(path, folder)):
                source = raw
                theirs = dcmtk_shows(source, options, number, folder)
            assert theirs is not None, "neither dcmtk nor gdcm reads it"
            assert np.abs(shown[number - 1].astype(int) - theirs).max() <= 1


def has_peer(path: Path) -> bool:
    by_rule = any(path.name.startswith(name) for name in DCMTK_DIFFERS)
    return not by_rule and unreadable_reason(path) is None and path.name not in NEITHER_READS


def windows_of(path: Path) -> list[Window]:
    dataset = header(path)
    is_plain_grey = "MONOCHROME" in dataset.PhotometricInterpretation and "PixelPaddingValue" not in dataset
    return ["first", "min-max"] if is_plain_grey else ["first"]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("path", [path for path in PACKAGED if has_peer(path)], ids=lambda path: path.name)
def test_every_file_of_pydicom_is_shown_as_dcmtk_or_gdcm_shows_it(path: Path, tmp_path: Path) -> None:
    """Grey ones also stretched from their least value to their largest."""
    compare_with_peers(path, tmp_path, *windows_of(path))


@pytest.mark.real
def test_every_file_of_other_projects_is_shown_as_dcmtk_or_gdcm_shows_it(
    real_data: Path, tmp_path: Path
) -> None:
    paths = [path for path in sorted((real_data / "dicom").glob("*/*.dcm")) if path.name not in FOREIGN]
    assert len(paths) == 30
    for path in paths:
        windows = windows_of(path) if has_peer(path) else windows_of(path)[1:]
        compare_with_peers(path, tmp_path, *windows)


@pytest.mark.real
def test_frames_of_12_bit_jpeg_have_the_values_of_dcmdjpeg_and_their_own_window(
    real_data: Path, tmp_path: Path
) -> None:
    if shutil.which("dcmdjpeg") is None:
        pytest.skip("dcmdjpeg of the Debian package dcmtk is not installed")
    (path,) = (real_data / "dicom").glob("*/CT0012*.dcm")
    plain = tmp_path / "plain.dcm"
    subprocess.run(["dcmdjpeg", str(path), str(plain)], capture_output=True, check=True)
    dataset = pydicom.dcmread(plain)
    shown = decode(path.read_bytes())
    for index, (frame, stored) in enumerate(zip(shown, stored_frames(dataset), strict=True)):
        expected = shown_by_hand(dataset, stored, index)
        assert np.abs(frame - np.clip(expected, 0, 255)).max() <= 1


FOREIGN = {
    "CTImageEvenAligned.dat": "not an image that can be read",
    "CTImageOddAligned.dat": "not an image that can be read",
    "no-pixel-data.dcm": "DICOM without pixels (Basic Text SR Storage)",
}
FRAMES = {
    "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm": 2,
    "explicit_little.dcm": 16,
    "jpeg_baseline_8bit.dcm": 96,
}


@pytest.mark.real
def test_every_file_of_other_projects_has_its_frames_or_its_reason(real_data: Path) -> None:
    paths = sorted(path for path in (real_data / "dicom").rglob("*") if path.is_file())
    assert len(paths) == 33
    for path in paths:
        if path.name in FOREIGN:
            with pytest.raises(ImageError) as caught:
                list(load_frames(path, RULE))
            assert str(caught.value).startswith(f"{path}: {FOREIGN[path.name]}")
        else:
            frames = list(load_frames(path, RULE))
            assert len(frames) == FRAMES.get(path.name, 1)
            assert all(frame.shape == (64, 48, 3) and frame.max() > frame.min() for frame in frames)


@pytest.mark.real
def test_one_slice_is_the_same_in_every_lossless_transfer_syntax(real_data: Path) -> None:
    folder = real_data / "dicom/cornerstone"
    (expected,) = decode((folder / "CTImage.dcm").read_bytes())
    lossless = [
        path
        for path in sorted(folder.glob("CTImage.dcm_*"))
        if re.search(r"Explicit|Implicit|Deflated|JPEG2000Lossless|JPEGLSLossless|RLE", path.name)
    ]
    assert len(lossless) == 7
    for path in lossless:
        (found,) = decode(path.read_bytes())
        assert np.array_equal(found, expected), path.name


# Pipelines on files made here.


def make(pixels: NDArray[Any], syntax: str = ExplicitVRLittleEndian, **attributes: Any) -> Dataset:
    """Make a file of `(rows, columns)`, `(rows, columns, 3)` or, with NumberOfFrames, a stack."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("made", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    colour = pixels.ndim > 2 and "NumberOfFrames" not in attributes
    dataset.Rows, dataset.Columns = (
        pixels.shape[:2] if "NumberOfFrames" not in attributes else pixels.shape[1:3]
    )
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def saved(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def table(first: int, bits: int, entries: list[int]) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return item


SIGNED = np.array([[-1000, -100, 0, 40], [80, 200, 1000, 3000]], np.int16)


def one(dataset: Dataset, window: Window = "first") -> list[int]:
    (frame,) = decode(saved(dataset), window)
    return frame.ravel().tolist()


def test_window_after_rescale() -> None:
    dataset = make(SIGNED, RescaleSlope=2, RescaleIntercept=-24, WindowCenter=[40, 300], WindowWidth=[401, 1])
    values = SIGNED.ravel() * 2.0 - 24
    expected = np.clip(((values - 39.5) / 400 + 0.5) * 255, 0, 255)
    assert np.abs(np.array(one(dataset)) - expected).max() <= 0.5


def test_a_window_by_its_number() -> None:
    """Any of a file's windows may be shown (PS3.3 C.11.2.1.2), also where there is a table."""
    dataset = make(
        SIGNED, WindowCenter=[40, 300, 7], WindowWidth=[400, 201], VOILUTSequence=[table(0, 8, [9])]
    )
    values = SIGNED.ravel().astype(float)
    for number, (center, width) in enumerate([(40, 400), (300, 201)], start=1):
        expected = np.clip(((values - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
        assert np.abs(np.array(one(dataset, f"window-{number}")) - expected).max() <= 0.5
    assert one(dataset) == [9] * 8
    for window in ("window-3", "window-99"):
        with pytest.raises(
            ImageError, match=f"it has no {window.replace('-', ' ')}: use the rule first or min-max"
        ):
            one(dataset, window)
    with pytest.raises(ImageError, match="it has no window 1"):
        one(make(SIGNED), "window-1")


def test_a_rule_s_window_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(saved(make(SIGNED, WindowCenter=[40, 300], WindowWidth=[400, 200])))
    first, second = (load_image(path, ImageRule(2, 4, dicom_window=name)) for name in ("first", "window-2"))
    assert first[1, 1, 0] == 230
    assert second[1, 1, 0] == 0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", [0, 0, 0, 255]),
        ("LINEAR_EXACT", [0, 0, 128, 255]),
        ("SIGMOID", [0, 0, 128, 255]),
    ],
)
def test_each_voi_function_at_its_narrowest(function: str, expected: list[int]) -> None:
    pixels = np.array([[0, 90, 100, 110]], np.uint8)
    width = 1 if function == "LINEAR" else 2
    center = 101 if function == "LINEAR" else 100
    assert one(make(pixels, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)) == expected


def test_sigmoid_by_its_formula() -> None:
    pixels = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
    expected = 255 / (1 + np.exp(-4 * (pixels.ravel() - 100.0) / 80))
    shown = one(make(pixels, WindowCenter=100, WindowWidth=80, VOILUTFunction="SIGMOID"))
    assert np.abs(np.array(shown) - expected).max() <= 0.5


@pytest.mark.parametrize(("width", "function"), [(0.5, "LINEAR"), (-1, "SIGMOID"), (-4, "LINEAR_EXACT")])
def test_a_window_that_dicom_does_not_define_is_an_error(width: float, function: str) -> None:
    dataset = make(SIGNED, WindowCenter=40, WindowWidth=width, VOILUTFunction=function)
    with pytest.raises(ImageError, match=re.escape(f"its window of width {width:g} ({function})")):
        one(dataset)
    assert one(dataset, "min-max")[-1] == 255


def test_the_voi_table_goes_before_the_window() -> None:
    pixels = np.array([[0, 1, 2, 3]], np.uint8)
    dataset = make(pixels, WindowCenter=2, WindowWidth=2, VOILUTSequence=[table(1, 12, [0, 2048, 4095])])
    assert one(dataset) == [0, 0, 128, 255]


def test_the_modality_table_and_its_range() -> None:
    pixels = np.array([[0, 5, 6, 7, 250]], np.uint8)
    assert one(make(pixels, ModalityLUTSequence=[table(5, 8, [10, 20, 255])])) == [10, 10, 20, 255, 255]


def test_a_table_shorter_than_it_says_is_an_error() -> None:
    short = table(0, 16, [0, 1, 2])
    short.LUTDescriptor = [9, 0, 16]
    with pytest.raises(ImageError, match="where 9 are announced"):
        one(make(np.zeros((2, 2), np.uint8), VOILUTSequence=[short]))


@pytest.mark.parametrize(
    ("pixels", "stored", "expected"),
    [
        (np.array([[0, 10, 255]], np.uint8), 8, [0, 10, 255]),
        (np.array([[0, 819, 4095]], np.uint16), 12, [0, 51, 255]),
        (np.array([[0, 4112, 65535]], np.uint16), 16, [0, 16, 255]),
        (np.array([[-2048, 0, 2047]], np.int16), 12, [0, 128, 255]),
        (np.array([[0, 2**31, 2**32 - 1]], np.uint32), 32, [0, 128, 255]),
    ],
)
def test_without_a_window_the_stored_bits_span_the_range(
    pixels: NDArray[Any], stored: int, expected: list[int]
) -> None:
    assert one(make(pixels, BitsStored=stored, HighBit=stored - 1)) == expected


def test_monochrome1_is_turned_round_last() -> None:
    plain = make(SIGNED, WindowCenter=40, WindowWidth=400)
    turned = make(SIGNED, WindowCenter=40, WindowWidth=400, PhotometricInterpretation="MONOCHROME1")
    for window in ("first", "min-max"):
        assert [255 - value for value in one(plain, window)] == one(turned, window)


def test_min_max_leaves_padding_out() -> None:
    pixels = np.array([[-2000, -1990, 0, 50, 100]], np.int16)
    dataset = make(pixels, WindowCenter=40, WindowWidth=400)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    assert one(dataset, "min-max") == [0, 0, 243, 249, 255]
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1500)
    assert one(dataset, "min-max") == [0, 0, 0, 128, 255]


def test_a_flat_frame_is_black_in_min_max() -> None:
    assert one(make(np.full((2, 2), 7, np.int16)), "min-max") == [0] * 4


def test_float_pixels_span_their_own_range_or_the_window() -> None:
    dataset = make(np.zeros((1, 4), np.uint32))
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.FloatPixelData = np.array([[-1.5, 0.5, np.nan, 2.5]], "<f4").tobytes()
    assert one(dataset) == [0, 128, 0, 255]
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 0, 2, "LINEAR_EXACT"
    assert one(dataset) == [0, 191, 0, 255]
    assert one(dataset, "min-max") == [0, 128, 0, 255]


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(bits: int) -> None:
    pixels = np.array([[0, 1, 2, 9]], np.uint8)
    dataset = make(pixels, PhotometricInterpretation="PALETTE COLOR")
    kind, scale = ("<u1", 1) if bits == 8 else ("<u2", 257)
    for colour, entries in (("Red", [0, 100, 255, 7]), ("Green", [9, 8, 7, 6]), ("Blue", [255, 0, 1, 2])):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [4, 0, bits])
        dataset.add_new(
            f"{colour}PaletteColorLookupTableData", "OW", (np.array(entries) * scale).astype(kind).tobytes()
        )
    (frame,) = decode(saved(dataset))
    assert frame.tolist() == [[[0, 9, 255], [100, 8, 0], [255, 7, 1], [7, 6, 2]]]


def test_colours_of_16_bits_and_by_plane() -> None:
    colours = np.array([[[0, 257, 65535], [128 * 257, 5, 0]]], np.uint16)
    by_plane = make(colours, PlanarConfiguration=1)
    by_plane.PixelData = np.moveaxis(colours, -1, 0).tobytes()
    for dataset in (make(colours), by_plane):
        (frame,) = decode(saved(dataset))
        assert frame.tolist() == [[[0, 1, 255], [128, 0, 0]]]


def test_each_frame_of_an_enhanced_file_has_its_own_window_and_rescale() -> None:
    stack = np.array([[[0, 100]], [[0, 100]], [[0, 100]]], np.int16)
    dataset = make(stack, NumberOfFrames=3)
    frames = [Dataset(), Dataset(), Dataset()]
    for frame, width in zip(frames, (101, 201), strict=False):
        voi = Dataset()
        voi.WindowCenter, voi.WindowWidth = 50.5, width
        frame.FrameVOILUTSequence = [voi]
    rescale = Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, 0
    frames[1].PixelValueTransformationSequence = [rescale]
    shared, common, halved = Dataset(), Dataset(), Dataset()
    common.WindowCenter, common.WindowWidth = 25.5, 51
    halved.RescaleSlope, halved.RescaleIntercept = 0.5, 0
    shared.FrameVOILUTSequence, shared.PixelValueTransformationSequence = [common], [halved]
    dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence = frames, [shared]
    shown = [frame.ravel().tolist() for frame in decode(saved(dataset))]
    assert shown == [[0, 128], [64, 191], [0, 255]]


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        100,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    done, encoded = cv2.imencode(".jpg", pixels, options)
    assert done
    return encoded.tobytes()


@pytest.mark.parametrize("fragments", [1, 3])
def test_jpeg_frames_in_several_fragments(fragments: int) -> None:
    frames = [np.full((16, 16), level, np.uint8) for level in (10, 100, 200)]
    dataset = make(np.stack(frames), JPEGBaseline8Bit, NumberOfFrames=3)
    dataset.PixelData = encapsulate([jpeg(frame) for frame in frames], fragments_per_frame=fragments)
    shown = decode(saved(dataset))
    assert [frame.shape for frame in shown] == [(16, 16)] * 3
    assert all(np.abs(one.astype(int) - two).max() <= 1 for one, two in zip(shown, frames, strict=True))


def test_jpeg_without_a_marker_takes_its_colours_from_the_header() -> None:
    """The three components are RGB where the data set says so, though libjpeg would guess YCbCr."""
    levels = np.full((16, 16, 3), (30, 120, 210), np.uint8)
    content = jpeg(levels[..., ::-1])
    assert content[2:4] == b"\xff\xe0"
    without_jfif = content[:2] + content[4 + struct.unpack_from(">H", content, 4)[0] :]
    stored = cv2.cvtColor(levels[:1, :1], cv2.COLOR_RGB2YCrCb)[0, 0][[0, 2, 1]]
    for photometric, expected in (("YBR_FULL_422", levels[0, 0]), ("RGB", stored)):
        dataset = make(levels, JPEGBaseline8Bit, PhotometricInterpretation=photometric)
        dataset.PixelData = encapsulate([without_jfif])
        (frame,) = decode(saved(dataset))
        assert np.abs(frame.astype(int) - expected).max() <= 2


# What is refused.


def test_fewer_frames_than_announced_is_an_error() -> None:
    dataset = make(np.zeros((3, 16, 16), np.uint8), JPEGBaseline8Bit, NumberOfFrames=3)
    dataset.PixelData = encapsulate([jpeg(np.zeros((16, 16), np.uint8))] * 2)
    with pytest.raises(ImageError, match=re.escape("a truncated DICOM file (2 of 3 frames)")):
        decode(saved(dataset))


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded() -> None:
    dataset = make(np.zeros((16, 16), np.uint8), JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([jpeg(np.zeros((8, 24), np.uint8))])
    with pytest.raises(ImageError, match="a compressed frame of 24x8 pixels, where the header says 16x16"):
        decode(saved(dataset))


def test_a_compressed_frame_without_its_end_is_refused() -> None:
    dataset = make(np.zeros((16, 16), np.uint8), JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([jpeg(np.zeros((16, 16), np.uint8))[:-20]])
    with pytest.raises(ImageError, match="it has no end"):
        decode(saved(dataset))


def test_what_a_frame_and_all_frames_unpack_to_is_bounded() -> None:
    """Rows times columns times samples times bytes, and that times frames."""
    pixels = np.zeros((40, 40, 3), np.uint16)
    (frame,) = dicom.decode_frames(saved(make(pixels)), "first", Limits(decoded_bytes=9600))
    assert frame.shape == (40, 40, 3)
    with pytest.raises(ImageError, match="40x40 pixels of 6 bytes each; the limit is 9,599 bytes"):
        next(dicom.decode_frames(saved(make(pixels)), "first", Limits(decoded_bytes=9599)))
    many = make(np.zeros((1, 40, 40), np.uint8), JPEGBaseline8Bit, NumberOfFrames=100_000)
    many.PixelData = encapsulate([jpeg(np.zeros((40, 40), np.uint8))])
    with pytest.raises(ImageError, match="its frames come to 160,000,000 bytes; the limit is"):
        next(dicom.decode_frames(saved(many), "first", Limits(decoded_bytes=10_000_000)))


@pytest.mark.parametrize("colour", [False, True])
def test_pixels_that_libjpeg_makes_up_are_not_shown(colour: bool, capfd: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)[: 3 if colour else 2], dtype=np.uint8)
    dataset = make(pixels, JPEGBaseline8Bit, **({"PhotometricInterpretation": "YBR_FULL"} if colour else {}))
    content = jpeg(pixels)
    dataset.PixelData = encapsulate([content[: len(content) // 2] + b"\xff\xd9"])
    with pytest.raises(ImageError, match="a damaged JPEG frame"):
        decode(saved(dataset))
    assert not capfd.readouterr().err


def test_pixels_over_the_limit_and_an_unbounded_deflated_file(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = make(np.zeros((2, 2), np.uint8))
    huge.Rows = huge.Columns = 60000
    with pytest.raises(ImageError, match="its header says 60000x60000 pixels; the limit is"):
        decode(saved(huge))
    deflated = saved(make(np.zeros((500, 500), np.uint8), DeflatedExplicitVRLittleEndian))
    assert len(deflated) < 2000
    assert decode(deflated)[0].shape == (500, 500)
    monkeypatch.setattr(dicom_files, "_MAX_INFLATED_BYTES", 100_000)
    with pytest.raises(ImageError, match="unpacks to more than 100,000 bytes"):
        decode(deflated)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"HighBit": 6}, "its high bit is 6 where 8 of 8 bits are stored (PS3.5 8.1.1)"),
        (
            {"PhotometricInterpretation": "YBR_ICT", "SamplesPerPixel": 3},
            "its photometric interpretation YBR_ICT is not supported in Explicit VR Little Endian",
        ),
        ({"PhotometricInterpretation": "HSV"}, "the photometric interpretation HSV is not supported"),
        (
            {"PhotometricInterpretation": "RGB"},
            "its photometric interpretation is RGB, which has 3 samples per pixel; its header says 1",
        ),
        (
            {"PhotometricInterpretation": "PALETTE COLOR"},
            "its Red Palette Color Lookup Table Descriptor has 0",
        ),
        ({"Rows": 0}, "DICOM pixels without rows and columns"),
        ({"BitsAllocated": 13}, "13 bits are allocated for a sample"),
        ({"BitsStored": 0}, "0 bits are stored of 8 allocated ones"),
        ({"PixelRepresentation": 2}, "its Pixel Representation is 2"),
        ({"Rows": 3}, "a truncated DICOM file (4 of 6 bytes of pixels)"),
    ],
)
def test_unusable_headers_have_one_line_reasons(
    attributes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(saved(make(np.zeros((2, 2), np.uint8), **attributes)))
    with pytest.raises(ImageError) as caught:
        load_image(path, RULE)
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keyword",
    [
        "PhotometricInterpretation",
        "SamplesPerPixel",
        "BitsAllocated",
        "BitsStored",
        "PixelRepresentation",
        "PlanarConfiguration",
    ],
)
def test_a_missing_element_is_named(keyword: str) -> None:
    dataset = make(np.zeros((2, 2, 3), np.uint8))
    delattr(dataset, keyword)
    name = pydicom.datadict.dictionary_description(keyword)
    with pytest.raises(ImageError, match=f"a DICOM file without {name}"):
        decode(saved(dataset))


@pytest.mark.parametrize(
    "attributes",
    [
        {"HighBit": None},
        {"NumberOfFrames": None},
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleIntercept": 5},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowWidth": 9},
    ],
)
def test_elements_that_may_be_missing_or_empty(attributes: dict[str, Any]) -> None:
    dataset = make(np.array([[0, 100, 255]], np.uint8))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    assert one(dataset) == [0, 100, 255]


def test_bits_above_the_stored_ones_do_not_count() -> None:
    """They may hold overlays in old files (PS3.5 8.1.1)."""
    pixels = np.array([[0x1000 | 819, 0xF000 | 4095, 0]], np.uint16)
    assert one(make(pixels, BitsStored=12, HighBit=11)) == [51, 255, 0]


def test_colours_of_ybr_full() -> None:
    """The equations of PS3.3 C.7.6.3.1.2."""
    stored = np.array([[[100, 120, 130], [200, 128, 128], [50, 90, 200]]], np.uint8)
    (frame,) = decode(saved(make(stored, PhotometricInterpretation="YBR_FULL")))
    y, blue, red = np.moveaxis(stored.astype(float), -1, 0)
    expected = np.stack(
        [
            y + 1.402 * (red - 128),
            y - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
            y + 1.772 * (blue - 128),
        ],
        axis=-1,
    )
    assert np.abs(frame - np.clip(expected, 0, 255)).max() <= 1


def test_frames_are_decoded_one_at_a_time() -> None:
    """The first frame comes before a later one, which is damaged, is looked at."""
    dataset = make(np.zeros((2, 16, 16), np.uint8), JPEGBaseline8Bit, NumberOfFrames=2)
    good = jpeg(np.full((16, 16), 90, np.uint8))
    dataset.PixelData = encapsulate([good, jpeg(np.zeros((8, 8), np.uint8))])
    frames = dicom.decode_frames(saved(dataset), "first", Limits())
    assert next(frames).shape == (16, 16)
    with pytest.raises(ImageError, match="a compressed frame of 8x8 pixels"):
        next(frames)


def test_every_syntax_that_pydicom_decodes_is_decoded_here() -> None:
    from pydicom.pixels.decoders.base import _PIXEL_DATA_DECODERS

    assert {uid for uid in _PIXEL_DATA_DECODERS if uid.is_encapsulated} <= {*frames.DECODED_HERE}


def test_a_transfer_syntax_that_nothing_decodes_is_named() -> None:
    dataset = make(np.zeros((2, 2), np.uint8), MPEG2MPML)
    dataset.PixelData = encapsulate([b"\0\0\1\xb3"])
    with pytest.raises(
        ImageError,
        match=re.escape("nothing here decodes MPEG2 Main Profile / Main Level (1.2.840.10008.1.2.4.100)"),
    ):
        decode(saved(dataset))


def test_gdcm_is_asked_in_no_process_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders import gdcm

    def fail(*_: object) -> None:
        raise AssertionError("GDCM was used")

    monkeypatch.setattr(gdcm, "_decode_frame", fail)
    monkeypatch.setattr(gdcm.gdcm, "Image", fail)
    for name in (
        "JPEG-LL.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
    ):
        assert decode(BY_NAME[name].read_bytes())


# JPEG of more than 8 bits, in a worker.


def lossless_jpeg(samples: NDArray[np.uint16], bits: int) -> bytes:
    """Encode by hand: first-order prediction, each difference in its category (ITU-T T.81, annex H)."""
    rows, columns = samples.shape
    values = samples.astype(int)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << bits - 1
    # Categories 0 to 15 have codes of 5 bits each; one of 16, which has no further bits, is not needed.
    stream = []
    for difference in (values - predicted).ravel().tolist():
        category = abs(difference).bit_length()
        stream.append(f"{category:05b}")
        if category:
            stream.append(
                f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}"
            )
    text = "".join(stream)
    text += "1" * (-len(text) % 8)
    entropy = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    table = (
        b"\xff\xc4"
        + struct.pack(">HB", 2 + 17 + 16, 0)
        + bytes([0, 0, 0, 0, 16, *[0] * 11])
        + bytes(range(16))
    )
    frame = b"\xff\xc3" + struct.pack(">HBHHB", 11, bits, rows, columns, 1) + bytes([1, 0x11, 0])
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, 1, 0, 0])
    return b"\xff\xd8" + table + frame + scan + entropy + b"\xff\xd9"


RAMP = ((np.add.outer(np.arange(24) * 90, np.arange(16) * 100) + 7) % 4096).astype(np.uint16)


@pytest.mark.parametrize(
    ("bits", "stored", "signed"),
    [(12, 12, False), (16, 16, False), (12, 12, True), (10, 10, False), (16, 12, True), (16, 12, False)],
)
def test_lossless_jpeg_of_each_depth_is_the_same_as_uncompressed(
    bits: int, stored: int, signed: bool
) -> None:
    """Bits above the high bit do not count, and the sign is extended (PS3.5 8.1.1)."""
    samples = RAMP & np.uint16(2**stored - 1)
    attributes: dict[str, Any] = {
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": int(signed),
    }
    plain = make(samples, **attributes, WindowCenter=300, WindowWidth=3000)
    if signed:
        values = (samples << 16 - stored).view(np.int16) >> 16 - stored
        plain.PixelData = values.tobytes()
    spare = np.uint16(0xF000) if bits > stored else np.uint16(0)
    packed = make(samples, JPEGLosslessSV1, **attributes, WindowCenter=300, WindowWidth=3000)
    packed.PixelData = encapsulate([lossless_jpeg(samples | spare, bits)])
    (expected,), (found,) = decode(saved(plain)), decode(saved(packed))
    assert np.array_equal(found, expected)
    assert found.min() < found.max()


def test_jpeg_of_many_bits_in_colour_has_its_reason() -> None:
    dataset = make(np.zeros((24, 16, 3), np.uint16), JPEGLosslessSV1)
    frame = lossless_jpeg(RAMP, 12)
    start = frame.index(b"\xff\xc3")
    # Of the DCT kind, with three components, which is all that is looked at.
    colour = struct.pack(">BBHBHHB9B", 0xFF, 0xC1, 17, 12, 24, 16, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0)
    dataset.PixelData = encapsulate([frame[:start] + colour + frame[start + 13 :]])
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.HighBit = "YBR_FULL", 12, 11
    with pytest.raises(ImageError, match=r"nothing here decodes 12-bit JPEG Lossless.* in colour: convert"):
        decode(saved(dataset))


def test_a_decoder_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "find_spec", lambda name: None if name == "gdcm" else name)
    with pytest.raises(
        ImageError, match=r"its 16-bit JPEG Lossless.* needs a decoder: pip install 'medimg\[dicom\]'"
    ):
        decode(BY_NAME["JPEG-LL.dcm"].read_bytes())


def test_entropy_coded_data_cut_short_are_not_shown() -> None:
    """libjpeg makes up what is missing, and says so."""
    dataset = make(RAMP, JPEGLosslessSV1)
    whole = lossless_jpeg(RAMP, 16)
    dataset.PixelData = encapsulate([whole[: len(whole) // 2] + b"\xff\xd9"])
    with pytest.raises(ImageError, match=r"a damaged JPEG frame \(Corrupt JPEG data: "):
        decode(saved(dataset))


def worker_pids() -> list[int]:
    """Find this process's decoders, whether they are at work or not."""
    pids = [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    return [pid for pid in pids if b"gdcm_frames" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.long
@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.soak)])
def test_a_crash_in_the_middle_of_a_run_costs_one_file_its_answer(count: int) -> None:
    """Workers are killed at random while four threads decode."""
    content = BY_NAME["JPEG-LL.dcm"].read_bytes()
    (expected,) = decode(content)
    stop = threading.Event()

    killed = []

    def kill() -> None:
        generator = random.Random(0)
        while not stop.wait(0.1):
            if pids := worker_pids():
                killed.append(generator.choice(pids))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda _: outcome(content, "first"), range(count)))
    finally:
        stop.set()
        killer.join()
    assert all(np.array_equal(result[0], expected) for result in results if result)
    assert killed
    assert count - len(killed) <= sum(map(bool, results)) <= count


def test_a_file_without_preamble_is_known_by_its_elements(tmp_path: Path) -> None:
    content = saved(make(np.array([[0, 255]], np.uint8)))
    without = content[132:]
    (tmp_path / "a.dcm").write_bytes(without)
    assert load_image(tmp_path / "a.dcm", ImageRule(1, 2))[0, :, 0].tolist() == [0, 255]
    for name in ("a.png", "a.IMA", "a"):
        (tmp_path / name).write_bytes(without)
        assert load_image(tmp_path / name, ImageRule(1, 2))[0, :, 0].tolist() == [0, 255]
    (tmp_path / "notes.dcm").write_bytes(b"these are notes, not pixels\n" * 20)
    with pytest.raises(ImageError, match="DICOM"):
        load_image(tmp_path / "notes.dcm", ImageRule(1, 2))


def test_an_image_where_one_frame_is_wanted() -> None:
    with pytest.raises(ImageError, match="holds several frames where one image is wanted"):
        load_image(BY_NAME["emri_small.dcm"], RULE)
    assert len(list(load_frames(BY_NAME["emri_small.dcm"], RULE))) == 10


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "emri_small.dcm", "examples_palette.dcm", "RG1_UNCR.dcm", "vlut_04.dcm"]
)
@pytest.mark.parametrize("window", ["first", "min-max"])
def test_a_file_and_its_decoded_array_give_the_same_bytes(name: str, window: Window) -> None:
    rule = ImageRule(40, 56, dicom_window=window)
    path = BY_NAME[name]
    loaded = list(load_frames(path, rule))
    decoded = [prepare(pixels, rule) for pixels in decode(path.read_bytes(), window)]
    assert all(np.array_equal(one, two) for one, two in zip(loaded, decoded, strict=True))


# Damage.

SMALL = [
    "CT_small.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_RLE.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "image_dfl.dcm",
    "emri_small.dcm",
    "vlut_04.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
]


def damaged(content: bytes, seed: int) -> Iterator[bytes]:
    """Cut a file, or flip bits anywhere or among its first elements."""
    generator = random.Random(seed)
    for _ in range(12):
        changed = bytearray(content)
        end = generator.choice([len(changed), min(len(changed), 2500)])
        for _ in range(generator.choice([1, 2, 8])):
            changed[generator.randrange(132, end)] ^= 1 << generator.randrange(8)
        yield bytes(changed)
    for _ in range(4):
        yield content[: generator.randrange(132, len(content))]


def outcome(content: bytes, window: Window) -> list[NDArray[np.uint8]]:
    """Give the frames, or none where the file is refused; any other error is the test's failure."""
    try:
        return decode(content, window)
    except ImageError:
        return []


@pytest.mark.parametrize("name", SMALL)
def test_damaged_files_give_frames_or_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, answered = BY_NAME[name].read_bytes(), 0
    for changed in damaged(content, seed=zlib.crc32(name.encode())):
        for window in ("first", "min-max"):
            answered += bool(outcome(changed, window))
    assert 0 < answered < 32
    # libjpeg itself writes "Corrupt JPEG data" there, and nothing but its own words.
    printed = [line for line in capfd.readouterr().err.splitlines() if "JPEG" not in line]
    assert not printed


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_never_shown_in_part(name: str, share: float) -> None:
    content = BY_NAME[name].read_bytes()
    whole, shown = decode(content), outcome(content[: int(len(content) * share)], "first")
    # Some files end in padding, whose loss costs no pixel.
    assert share > 0.9 or not shown
    assert all(np.array_equal(one, two) for one, two in zip(shown, whole, strict=bool(shown)))


# Whose image it is.


def test_the_patient_of_every_real_file_is_pydicom_s() -> None:
    known = 0
    for path in PACKAGED:
        patient = read_patient(path)
        expected = str(pydicom.dcmread(path, force=True).get("PatientID") or "").strip()
        assert patient == (expected or None)
        known += patient is not None
    assert known > 100


def test_other_files_have_no_patient(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4), np.uint8))
    (tmp_path / "b.txt").write_bytes(b"DICM")
    assert read_patient(tmp_path / "a.png") is read_patient(tmp_path / "b.txt") is None
    with pytest.raises(ImageError, match=r"absent\.dcm: No such file"):
        read_patient(tmp_path / "absent.dcm")


def test_damaged_headers_name_a_patient_or_a_reason(tmp_path: Path) -> None:
    whole, generator = BY_NAME["CT_small.dcm"].read_bytes(), random.Random(0)
    path = tmp_path / "a.dcm"
    for _ in range(300):
        content = bytearray(whole[: generator.randrange(133, 4000)])
        for _ in range(3):
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        try:
            assert read_patient(path) != ""
        except ImageError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017  either outcome is right


def test_the_size_is_that_of_the_file(tmp_path: Path) -> None:
    file = pydicom.dcmread(BY_NAME["CT_small.dcm"])
    assert read_size(BY_NAME["CT_small.dcm"], RULE) == (file.Rows, file.Columns)
    for suffix in ("png", "jpg", "tiff", "bmp"):
        cv2.imwrite(str(tmp_path / f"a.{suffix}"), np.zeros((30, 20, 3), np.uint8))
        assert read_size(tmp_path / f"a.{suffix}", RULE) == (30, 20)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(ImageError, match=r"b\.png: a truncated PNG"):
        read_size(tmp_path / "b.png", RULE)
