"""DICOM files that are easily shown wrongly, each against a file with the same pixels, or by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images import dicom
from medimg.runtime.images.limits import Limits
from medimg.runtime.images.load import load_frames
from medimg.runtime.images.rule import ImageRule

pytestmark = pytest.mark.real
Frames = list[NDArray[Any]]


@pytest.fixture(scope="module")
def cases(real_data: Path) -> Path:
    return real_data.parent / "cases" / "dicom"


def shown(path: Path, window: str = "first", notes: list[str] | None = None) -> Frames:
    note = (lambda _: None) if notes is None else notes.append
    return list(dicom.decode_frames(path.read_bytes(), window, Limits(), note))


def same(one: Frames, other: Frames, by: int = 0) -> bool:
    return len(one) == len(other) and all(
        np.abs(left.astype(int) - right).max() <= by for left, right in zip(one, other, strict=True)
    )


LUT, BITS = "dicom-lut-descriptor-sign", "dicom-unused-bits-compressed"
TWINS = [
    *((LUT, f"{name}.dcm", "reference-explicit-SS.dcm", "first") for name in ("implicit", "explicit-US")),
    *(
        (LUT, f"signed-pixels-{name}-US.dcm", "reference-explicit-SS.dcm", "first")
        for name in ("modality", "voi")
    ),
    *(
        (BITS, f"overlay-bits-{name}.dcm", "reference-overlay-bits.dcm", "first")
        for name in ("j2k", "jpegls")
    ),
    *(
        (BITS, f"overlay-bits-{name}-ok.dcm", "reference-overlay-bits.dcm", "first")
        for name in ("jpeg-lossless", "rle")
    ),
    *((BITS, f"signed12-{name}.dcm", "reference-signed12.dcm", "first") for name in ("j2k", "jpegls")),
    (BITS, "signed8-jpeg-lossless.dcm", "reference-signed8.dcm", "first"),
    ("bytes-after-end", "e_pad64.dcm", "e_plain.dcm", "first"),
    ("dicom-no-preamble", "nopreamble.IMA", "nopreamble.dcm", "first"),
    ("dicom-no-preamble", "nopreamble_nosuffix", "nopreamble.dcm", "first"),
    ("padding-us-signed", "padding_us.dcm", "padding.dcm", "min-max"),
    ("ybr-lossless-jpeg", "ybr_base_jpll.dcm", "ybr_base_jls.dcm", "first"),
    ("ybr-lossless-jpeg", "ybr_base_jpll_tl.dcm", "ybr_base_jls.dcm", "first"),
]


@pytest.mark.parametrize(("folder", "name", "twin", "window"), TWINS, ids=str)
def test_files_with_the_same_pixels_are_shown_alike(
    cases: Path, folder: str, name: str, twin: str, window: str
) -> None:
    rule = ImageRule(24, 40, dicom_window=window)
    found, expected = (list(load_frames(cases / folder / one, rule)) for one in (name, twin))
    assert same(found, expected)
    assert found[0].min() < found[0].max()


def stored(path: Path) -> NDArray[Any]:
    dataset = pydicom.dcmread(path)
    return np.frombuffer(dataset.PixelData, "<u2")[: dataset.Rows * dataset.Columns].reshape(
        dataset.Rows, dataset.Columns
    )


def full_range_of_12_bits(folder: Path) -> Frames:
    return [stored(folder / "window00.dcm") / 4095 * 255]


def left_justified(folder: Path) -> Frames:
    return [window_of_12_bits(stored(folder / "highbit15_stored12.dcm") >> 4)]


def second_window(folder: Path) -> Frames:
    return [window_of_12_bits(stored(folder / "window0_second.dcm"))]


def window_of_12_bits(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.clip(((values - 2047.5) / 4095 + 0.5) * 255, 0, 255))


def single_bits(folder: Path) -> Frames:
    content = np.frombuffer(pydicom.dcmread(folder / "onebit.dcm").PixelData, np.uint8)
    return list(np.unpackbits(content, bitorder="little")[:105].reshape(3, 7, 5) * 255)


def tables_of_frames(folder: Path) -> Frames:
    return list(np.load(folder / "perframe_lut_expected.npy").astype(int).reshape(-1, 32, 32))


def linear(folder: Path) -> Frames:
    return [window_of_12_bits(stored(folder / "voifunc_empty.dcm"))]


def by_the_high_byte(folder: Path) -> Frames:
    return [np.zeros((24, 40, 3)), shown(folder / "pal_full.dcm")[0]]


BY_HAND = [
    ("window-width-0", "window00.dcm", full_range_of_12_bits),
    ("window-width-0", "window0_second.dcm", second_window),
    ("high-bit", "highbit15_stored12.dcm", left_justified),
    ("one-bit-frames", "onebit.dcm", single_bits),
    ("frame-voi-lut", "perframe_lut.dcm", tables_of_frames),
    ("dicom-empty-voi-function", "voifunc_empty.dcm", linear),
    ("dicom-empty-voi-function", "fn_multi.dcm", linear),
    ("dicom-palette-dark-frame", "pal_mf.dcm", by_the_high_byte),
]


@pytest.mark.parametrize(
    ("folder", "name", "expected"), BY_HAND, ids=lambda value: getattr(value, "__name__", value)
)
def test_pixels_are_those_worked_out_by_hand(
    cases: Path, folder: str, name: str, expected: Callable[[Path], Frames]
) -> None:
    frames, wanted = shown(cases / folder / name), expected(cases / folder)
    assert same(frames, wanted, by=1)


def test_a_dark_frame_of_a_bright_palette_is_dark(cases: Path) -> None:
    (frame,) = shown(cases / "dicom-palette-dark-frame" / "pal_dark_frame.dcm")
    assert not frame.any()


def test_zero_bytes_after_the_end_of_jpeg_2000_do_not_count(cases: Path) -> None:
    (frame,) = shown(cases / "bytes-after-end" / "k_j2k___40_zero_bytes.dcm")
    assert frame.shape == (64, 64)


@pytest.mark.parametrize(
    ("name", "reason", "window"),
    [
        ("dicom-nonfinite-numbers/nan_ww.dcm", "its window width is NaN: use the rule min-max", "first"),
        ("dicom-nonfinite-numbers/wc_nan.dcm", "its window center is NaN: use the rule min-max", "first"),
        ("dicom-nonfinite-numbers/slope_nan.dcm", "its Rescale Slope is NaN", "min-max"),
        ("dicom-nonfinite-numbers/icept_inf.dcm", "its Rescale Intercept is infinite", "first"),
        (
            "j2k-precision/k_j2k_16_bit_stream__header_says_stored_12.dcm",
            "its codestream has 16 bits where the header says that 12 are stored",
            "first",
        ),
    ],
)
def test_contradictions_have_their_reason(cases: Path, name: str, reason: str, window: str) -> None:
    with pytest.raises(ImageError, match=reason):
        shown(cases / name, window)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("window-width-0/window00.dcm", "its window 1 has a width of 0 and was passed over"),
        ("dicom-presentation-lut-shape/mono1_plut_identity.dcm", "IDENTITY contradicts its photometric"),
        ("dicom-presentation-lut-shape/mono2_plut_inverse.dcm", "INVERSE contradicts its photometric"),
    ],
)
def test_what_a_user_must_know_is_a_note(cases: Path, name: str, note: str) -> None:
    notes: list[str] = []
    shown(cases / name, notes=notes)
    assert any(note in one for one in notes)
