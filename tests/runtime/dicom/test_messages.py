"""What a refusal says, and what it must not: a patient's name."""

import random
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medimg.runtime.errors import ImageError
from medimg.runtime.images import dicom
from medimg.runtime.images.limits import Limits

from .recipes import EXPLICIT, SYNTAXES, Bits, add_pixels, empty, written

PATIENT = "NIGHTINGALE^FLO"


def image(syntax: str = EXPLICIT) -> Dataset:
    dataset, bits = empty(syntax, 40, 40, 1), Bits(8, 8, 7, False, "zero")
    bits.describe(dataset)
    dataset.PatientName = dataset.PatientID = PATIENT
    dataset.PhotometricInterpretation, dataset.WindowCenter, dataset.WindowWidth = "MONOCHROME2", 128, 256
    add_pixels(dataset, syntax, np.add.outer(np.arange(40), np.arange(40)).astype(np.uint8)[np.newaxis], bits)
    return dataset


def reason(content: bytes, window: str = "first") -> str | None:
    """Why a file is refused, and nothing else that is known of it."""
    try:
        list(dicom.decode_frames(content, window, Limits()))
    except ImageError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
        ("1.2.840.10008.1.2.4.111", "JPEG XL JPEG Recompression"),
        ("1.2.840.10008.1.2.4.112", "JPEG XL"),
        ("1.2.840.10008.1.2.8.1", "Deflated Image Frame Compression"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1"),
        ("1.2.840.113619.5.2", "1.2.840.113619.5.2"),
        ("1.2.3.4", "1.2.3.4"),
    ],
)
def test_a_transfer_syntax_that_nothing_here_decodes_is_named(uid: str, name: str) -> None:
    content = written(image()).replace(EXPLICIT.encode() + b"\0", b"%s")
    meta = uid.encode() + b"\0" * (len(uid) % 2)
    # The length of the element and of its group change with it.
    at = content.index(b"%s")
    grown = len(meta) - 20
    head = content[: at - 2] + len(meta).to_bytes(2, "little") + meta + content[at + 2 :]
    length = int.from_bytes(head[140:144], "little") + grown
    found = reason(head[:140] + length.to_bytes(4, "little") + head[144:])
    assert found is not None
    assert found.startswith(f"nothing here decodes {name}")
    assert f"({uid}): convert the file" in found


TEXTS = [
    *("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "VOILUTFunction", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PhotometricInterpretation", "PlanarConfiguration", "PixelPaddingValue", "VOILUTSequence"),
    *("ModalityLUTSequence", "PerFrameFunctionalGroupsSequence", "PresentationLUTShape"),
]


@pytest.mark.parametrize("keyword", TEXTS)
@pytest.mark.parametrize("vr", ["LO", "PN", "UT"])
def test_a_name_in_the_place_of_a_number_is_not_repeated(keyword: str, vr: str) -> None:
    dataset = image()
    dataset.RescaleSlope = dataset.RescaleIntercept = 1
    if keyword in dataset:
        del dataset[keyword]
    dataset.add_new(keyword, vr, PATIENT)
    for window in ("first", "min-max", "window-1"):
        found = reason(written(dataset), window)
        assert found is None or "NIGHT" not in found.upper()


def test_no_damage_makes_a_message_name_the_patient() -> None:
    refused = set()
    for seed in range(200):
        chance = random.Random(seed)
        content: Any = bytearray(written(image(chance.choice(SYNTAXES))))
        for _ in range(chance.choice([1, 2, 6])):
            content[chance.randrange(132, len(content))] = chance.randrange(256)
        found = reason(bytes(content), chance.choice(["first", "min-max"]))
        refused.add(found)
        assert found is None or "NIGHT" not in found.upper()
    assert len(refused) > 10
