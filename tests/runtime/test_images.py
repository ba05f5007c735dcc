"""Bytes on disk to the network's input: formats, bit depths, channels, orientation, damage, resize rules."""

import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError, UsageError
from medimg.runtime.images.limits import Limits
from medimg.runtime.images.load import load_frames, load_image, prepare
from medimg.runtime.images.rule import ImageRule

ROWS, COLUMNS = 40, 60
SAME_SIZE = ImageRule(ROWS, COLUMNS)

GREY = (np.add.outer(np.arange(ROWS) * 3, np.arange(COLUMNS) * 2) % 256).astype(np.uint8)
RGB = np.stack([GREY, GREY[:, ::-1], 255 - GREY], axis=-1)
ALPHA = np.dstack([RGB, GREY])
FIVE = np.dstack([RGB, GREY, 255 - GREY])


def three(grey: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(grey[..., None], 3, axis=2)


def wide(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """8-bit values spread over 16 bits; 257 maps 255 to 65535."""
    return pixels.astype(np.uint16) * 257


def encode(suffix: str, pixels: NDArray[Any], *options: int) -> bytes:
    """Encode RGB or grey pixels with OpenCV."""
    ordered = pixels
    if pixels.ndim == 3:
        ordered = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    done, encoded = cv2.imencode(suffix, np.ascontiguousarray(ordered), options)
    assert done
    return encoded.tobytes()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(header: tuple[int, int, int, int], *chunks: bytes, rows: bytes) -> bytes:
    """Write a PNG by hand: (columns, rows, bits, colour type), chunks before the pixels, filtered rows."""
    start = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    end = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + start + b"".join(chunks) + end


def palette_png() -> bytes:
    colours = b"".join(bytes((index, 255 - index, index // 2)) for index in range(256))
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    return png((COLUMNS, ROWS, 8, 3), png_chunk(b"PLTE", colours), png_chunk(b"tRNS", bytes(9)), rows=rows)


def tiff(
    pixels: NDArray[Any], *, photometric: int, extra: int = 0, order: str = "<", pages: int = 1, **tags: int
) -> bytes:
    """Write a TIFF by hand: one strip, directory first; `tags` are named t274 and so on."""
    samples = pixels[..., None] if pixels.ndim == 2 else pixels
    rows, columns, channels = samples.shape
    data = samples.astype(f"{order}{samples.dtype.kind}{samples.dtype.itemsize}").tobytes()
    if tags.get("t259") == 8:
        data = zlib.compress(data)
    formats = {"u": 1, "i": 2, "f": 3}
    fields = {
        256: columns,
        257: rows,
        258: samples.dtype.itemsize * 8,
        259: 1,
        262: photometric,
        273: 0,
        277: channels,
        278: rows,
        279: len(data),
        284: 1,
        339: formats[samples.dtype.kind],
        **({338: extra} if channels not in (1, 3) else {}),
        **{int(name[1:]): value for name, value in tags.items()},
    }
    size = 2 + 12 * len(fields) + 4
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for page in range(pages):
        fields[273] = 8 + size * pages
        following = 8 + size * (page + 1) if page + 1 < pages else 0
        entries = [struct.pack(order + "HHII", tag, 4, 1, fields[tag]) for tag in sorted(fields)]
        # Values of 16 bits stand at the start of the value field, as their type says.
        entries = [
            struct.pack(order + "HHIHH", tag, 3, 1, fields[tag], 0) if tag not in (273, 279) else entry
            for tag, entry in zip(sorted(fields), entries, strict=True)
        ]
        content += (
            struct.pack(order + "H", len(fields)) + b"".join(entries) + struct.pack(order + "I", following)
        )
    return content + data


def planar_tiff() -> bytes:
    """A TIFF that keeps each channel in a strip of its own, whose places stand before them."""
    strips = 8 + 2 + 12 * 9 + 4
    pixels = strips + 24
    fields = [(256, 1, COLUMNS), (257, 1, ROWS), (258, 1, 8), (262, 1, 2), (273, 3, strips), (277, 1, 3)]
    fields += [(278, 1, ROWS), (279, 3, strips + 12), (284, 1, 2)]
    plane = ROWS * COLUMNS
    places = struct.pack("<6I", *(pixels + channel * plane for channel in range(3)), *[plane] * 3)
    directory = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in fields)
    header = b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4)
    return header + places + np.moveaxis(RGB, -1, 0).tobytes()


def share(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """8-bit values as floats from 0 to 1."""
    return (pixels / 255).astype(np.float32)


def twelve_bit_tiff() -> bytes:
    """A TIFF of 12-bit samples, two of them in three bytes."""
    values = np.rint(GREY.astype(float) * 4095 / 255).astype(np.uint16)
    left, right = values[:, ::2], values[:, 1::2]
    packed = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=-1).astype(np.uint8)
    return tiff(packed.reshape(ROWS, -1), photometric=1, t256=COLUMNS, t258=12)


def rotated_jpeg() -> bytes:
    """A JPEG whose EXIF says: turn clockwise to see it upright."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 274, 3, 1, 6) + bytes(4)
    plain = encode(".jpg", RGB, cv2.IMWRITE_JPEG_QUALITY, 95)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


EXACT: dict[str, tuple[str, Callable[[], bytes], NDArray[Any]]] = {
    "grey PNG": (".png", lambda: encode(".png", GREY), three(GREY)),
    "RGB PNG": (".png", lambda: encode(".png", RGB), RGB),
    "RGBA PNG": (".png", lambda: encode(".png", ALPHA), RGB),
    "grey and alpha PNG": (
        ".png",
        lambda: png(
            (COLUMNS, ROWS, 8, 4),
            rows=b"".join(b"\0" + np.dstack([row, 255 - row]).tobytes() for row in GREY),
        ),
        three(GREY),
    ),
    "palette PNG": (".png", palette_png, np.dstack([GREY, 255 - GREY, GREY // 2])),
    "16-bit grey PNG": (".png", lambda: encode(".png", wide(GREY)), three(GREY)),
    "16-bit RGB PNG": (".png", lambda: encode(".png", wide(RGB)), RGB),
    "16-bit RGBA PNG": (".png", lambda: encode(".png", wide(ALPHA)), RGB),
    "1-bit PNG": (
        ".png",
        lambda: png(
            (COLUMNS, ROWS, 1, 0), rows=b"".join(b"\0" + np.packbits(row > 99).tobytes() for row in GREY)
        ),
        three((GREY > 99) * np.uint8(255)),
    ),
    "grey BMP": (".bmp", lambda: encode(".bmp", GREY), three(GREY)),
    "RGB BMP": (".bmp", lambda: encode(".bmp", RGB), RGB),
    "RGBA BMP": (".bmp", lambda: encode(".bmp", ALPHA), RGB),
    "grey TIFF": (".tif", lambda: encode(".tif", GREY), three(GREY)),
    "RGB TIFF, LZW": (".tif", lambda: encode(".tif", RGB), RGB),
    "16-bit RGB TIFF, LZW": (".tif", lambda: encode(".tif", wide(RGB)), RGB),
    "16-bit grey TIFF": (".tif", lambda: tiff(wide(GREY), photometric=1), three(GREY)),
    "16-bit grey TIFF, big-endian": (".tif", lambda: tiff(wide(GREY), photometric=1, order=">"), three(GREY)),
    "white is zero": (".tif", lambda: tiff(GREY, photometric=0), three(255 - GREY)),
    "16-bit white is zero": (".tif", lambda: tiff(wide(GREY), photometric=0), three(255 - GREY)),
    "RGB TIFF by channel": (".tif", planar_tiff, RGB),
    "RGBA TIFF, unassociated alpha": (".tif", lambda: tiff(ALPHA, photometric=2, extra=2), RGB),
    "RGBA TIFF, associated alpha": (".tif", lambda: tiff(ALPHA, photometric=2, extra=1), RGB),
    "16-bit RGBA TIFF": (".tif", lambda: tiff(wide(ALPHA), photometric=2, extra=2), RGB),
    "5-channel TIFF": (".tif", lambda: tiff(FIVE, photometric=2), RGB),
    "5-channel TIFF, deflated": (".tif", lambda: tiff(FIVE, photometric=2, t259=8), RGB),
    "5-channel 16-bit TIFF, big-endian": (".tif", lambda: tiff(wide(FIVE), photometric=2, order=">"), RGB),
    "grey and alpha TIFF": (
        ".tif",
        lambda: tiff(np.dstack([GREY, RGB[..., 1]]), photometric=1, extra=2),
        three(GREY),
    ),
    "16-bit grey and alpha TIFF": (
        ".tif",
        lambda: tiff(wide(np.dstack([GREY, RGB[..., 1]])), photometric=1, extra=2),
        three(GREY),
    ),
    "12-bit grey TIFF": (".tif", twelve_bit_tiff, three(GREY)),
    "float grey TIFF": (".tif", lambda: tiff(share(GREY), photometric=1), three(GREY)),
    "float grey TIFF, white is zero": (".tif", lambda: tiff(share(GREY), photometric=0), three(255 - GREY)),
    "float RGB TIFF": (".tif", lambda: tiff(share(RGB), photometric=2), RGB),
    "float64 grey TIFF": (".tif", lambda: tiff(GREY / 255, photometric=1), three(GREY)),
    "float64 RGB TIFF, big-endian": (".tif", lambda: tiff(RGB / 255, photometric=2, order=">"), RGB),
    "a PNG named .jpg": (".jpg", lambda: encode(".png", RGB), RGB),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_pixel_of_every_lossless_format(name: str, tmp_path: Path) -> None:
    suffix, content, expected = EXACT[name]
    image = load_image(write(tmp_path, "image" + suffix, content()), SAME_SIZE)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, expected)


def test_an_image_is_the_same_each_time_it_is_read(tmp_path: Path) -> None:
    """OpenCV 5.0.0 gives unwritten memory for 16-bit RGB TIFF when asked for RGB itself."""
    path = write(tmp_path, "image.tif", encode(".tif", wide(RGB)))
    assert all(np.array_equal(load_image(path, SAME_SIZE), RGB) for _ in range(20))


@pytest.mark.parametrize("progressive", [0, 1])
def test_jpeg_in_colour_keeps_its_channel_order(progressive: int, tmp_path: Path) -> None:
    smooth = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    smooth[...] = (200, 100, 30)
    options = (cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    image = load_image(write(tmp_path, "a.jpg", encode(".jpg", smooth, *options)), SAME_SIZE)
    assert np.abs(image.astype(int) - smooth).max() <= 2


def test_exif_orientation_by_rule(tmp_path: Path) -> None:
    path = write(tmp_path, "photo.jpg", rotated_jpeg())
    stored = load_image(path, ImageRule(ROWS, COLUMNS, orientation="ignore"))
    turned = load_image(path, ImageRule(COLUMNS, ROWS, orientation="apply"))
    assert np.array_equal(turned, np.rot90(stored, -1))
    assert np.abs(stored[..., 0].astype(int) - RGB[..., 0]).mean() < 10


@pytest.mark.parametrize("pixels", [RGB, wide(RGB)], ids=["8 bits", "16 bits"])
def test_tiff_orientation_by_rule(pixels: NDArray[Any], tmp_path: Path) -> None:
    path = write(tmp_path, "a.tif", tiff(pixels, photometric=2, t274=6))
    assert np.array_equal(load_image(path, ImageRule(ROWS, COLUMNS, orientation="ignore")), RGB)
    assert np.array_equal(load_image(path, ImageRule(COLUMNS, ROWS)), np.rot90(RGB, -1))


WHOLE: dict[str, Callable[[], bytes]] = {
    "colour.jpg": lambda: encode(".jpg", RGB),
    "progressive.jpg": lambda: encode(".jpg", RGB, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "grey.jpg": lambda: encode(".jpg", GREY),
    "colour.png": lambda: encode(".png", RGB),
    "deep.png": lambda: encode(".png", wide(GREY)),
    "lzw.tif": lambda: encode(".tif", RGB),
    "plain.tif": lambda: tiff(RGB, photometric=2),
    "five.tif": lambda: tiff(FIVE, photometric=2),
    "five-deflated.tif": lambda: tiff(FIVE, photometric=2, t259=8),
    "planar.tif": planar_tiff,
    "colour.bmp": lambda: encode(".bmp", RGB),
    "grey.bmp": lambda: encode(".bmp", GREY),
}


@pytest.mark.parametrize(
    "cut", ["half", "95 %", "10 bytes short", "1 byte short", "16 bytes", "8 bytes", "3 bytes"]
)
@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_file_is_an_error_and_never_a_partial_image(name: str, cut: str, tmp_path: Path) -> None:
    content = WHOLE[name]()
    assert load_image(write(tmp_path, name, content), SAME_SIZE).shape == (ROWS, COLUMNS, 3)
    size = {
        "half": len(content) // 2,
        "95 %": int(len(content) * 0.95),
        "10 bytes short": len(content) - 10,
        "1 byte short": len(content) - 1,
        "16 bytes": 16,
        "8 bytes": 8,
        "3 bytes": 3,
    }[cut]
    path = write(tmp_path, name, content[:size])
    with pytest.raises(ImageError) as caught:
        load_image(path, SAME_SIZE)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_png_with_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    content = bytearray(encode(".png", RGB))
    content[len(content) // 2] ^= 4
    with pytest.raises(ImageError, match="checksum of its IDAT chunk is wrong"):
        load_image(write(tmp_path, "a.png", bytes(content)), SAME_SIZE)


def test_bad_files_write_nothing_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("colour.png", "colour.jpg", "lzw.tif", "colour.bmp"):
        content = WHOLE[name]()
        with pytest.raises(ImageError):
            load_image(write(tmp_path, name, content[: len(content) // 2]), SAME_SIZE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "is empty"),
        ("text.png", b"these are notes, not pixels\n", "not an image"),
        (
            "animated.gif",
            b"GIF89a" + bytes(100),
            "a GIF (a still or animated one; save a frame as PNG) file, not an image",
        ),
        ("a.webp", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20), "WebP"),
        ("float.tif", tiff(GREY.astype(np.float32), photometric=1), "float samples from 0 to 235, where"),
        (
            "signed.tif",
            tiff(GREY.astype(np.int16), photometric=1),
            "a TIFF of 16-bit signed samples: save it",
        ),
        ("half.tif", tiff(GREY.astype(np.float16), photometric=1), "a TIFF of 16-bit float samples: save it"),
        ("wide.tif", tiff(GREY.astype(np.uint32), photometric=1), "a TIFF of 32-bit unsigned samples"),
        ("cmyk.tif", tiff(wide(ALPHA), photometric=5), "16-bit samples that are neither grey nor RGB"),
        ("palette.tif", tiff(wide(GREY), photometric=3), "16-bit samples that are neither grey nor RGB"),
        ("pages.tif", tiff(RGB, photometric=2, pages=2), "holds several frames where one image is wanted"),
        ("channels.tif", tiff(RGB, photometric=2, t277=60000, t256=5000, t257=5000), "60000 channels"),
        ("long.tif", b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(99), "its directory has no end"),
        ("tiled.tif", tiff(FIVE, photometric=2, t322=16), "tag 323 is missing"),
        (
            "animated.png",
            png((1, 1, 8, 0), png_chunk(b"acTL", bytes(8)), rows=b"\0\0"),
            "an animated PNG",
        ),
        ("zero.png", png((0, 5, 8, 0), rows=b""), "its header says 0x5 pixels"),
        ("huge.png", png((60000, 60000, 8, 0), rows=b""), "its header says 60000x60000 pixels; the limit is"),
        (
            "huge.bmp",
            b"BM" + struct.pack("<IIIIiiHH", 0, 0, 54, 40, 60000, -60000, 1, 24) + bytes(40),
            "60000x60000",
        ),
        (
            "huge.tif",
            tiff(GREY, photometric=1, t256=60000, t257=60000),
            "60000x60000",
        ),
        (
            "huge.jpg",
            b"\xff\xd8\xff\xc0\x00\x11\x08"
            + struct.pack(">HHB", 60000, 60000, 3)
            + bytes(9)
            + b"\xff\xda\0\x02\xff\xd9",
            "60000x60000",
        ),
        ("no-directory.tif", b"II*\0" + bytes(4), "without an image"),
        ("loop.tif", b"II*\0" + struct.pack("<IHI", 8, 0, 8), "tag 257 is missing"),
    ],
)
def test_each_bad_file_has_its_own_reason(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ImageError) as caught:
        load_image(path, SAME_SIZE)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        load_image(tmp_path / "missing.png", SAME_SIZE)
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path, SAME_SIZE)
    with pytest.raises(ImageError, match="no regular file"):
        load_image("/dev/zero", SAME_SIZE)
    with pytest.raises(ImageError, match="null"):
        load_image("zero\0byte.png", SAME_SIZE)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.png", encode(".png", RGB))
    size_bytes = path.stat().st_size
    with pytest.raises(ImageError, match=f"has {size_bytes:,} bytes; the limit is {size_bytes - 1:,}"):
        load_image(path, SAME_SIZE, Limits(file_bytes=size_bytes - 1))
    assert load_image(path, SAME_SIZE, Limits(file_bytes=size_bytes)).shape == RGB.shape
    monkeypatch.setenv("MEDIMG_MAX_FILE_BYTES", str(size_bytes - 1))
    with pytest.raises(ImageError, match=f"the limit is {size_bytes - 1:,}"):
        load_image(path, SAME_SIZE)


@pytest.mark.parametrize("name", ["colour.png", "colour.jpg", "plain.tif", "five.tif", "colour.bmp"])
def test_pixels_over_the_limit_are_not_decoded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, name, WHOLE[name]())
    assert load_image(path, SAME_SIZE, Limits(pixels=ROWS * COLUMNS)).shape == RGB.shape
    with pytest.raises(ImageError, match=f"{COLUMNS}x{ROWS} pixels; the limit is 2,399"):
        load_image(path, SAME_SIZE, Limits(pixels=ROWS * COLUMNS - 1))
    monkeypatch.setenv("MEDIMG_MAX_PIXELS", "2399")
    with pytest.raises(ImageError, match="the limit is 2,399"):
        load_image(path, SAME_SIZE)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1e9", "²"])
def test_a_limit_that_is_no_positive_number_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDIMG_MAX_PIXELS", value)
    with pytest.raises(UsageError, match=f"MEDIMG_MAX_PIXELS is '{value}': a whole number of at least 1"):
        Limits.from_environment()
    with pytest.raises(UsageError, match="1 is the least"):
        Limits(file_bytes=0)


def test_a_path_may_be_text_and_frames_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "a.png", encode(".png", RGB))
    frames = list(load_frames(str(path), SAME_SIZE))
    assert len(frames) == 1
    assert np.array_equal(frames[0], RGB)


# The 16-bit rule.


def test_full_range_is_the_rounded_share_for_every_16_bit_value() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = prepare(every, ImageRule(256, 256))[..., 0].ravel()
    assert np.array_equal(found, np.rint(np.arange(65536) / 257))


@given(hnp.arrays(np.uint16, (4, 5)))
def test_min_max_stretches_the_image_s_own_range(pixels: NDArray[np.uint16]) -> None:
    found = prepare(pixels, ImageRule(4, 5, sixteen_bit="min-max"))[..., 0]
    low, high = int(pixels.min()), int(pixels.max())
    if low == high:
        assert not found.any()
    else:
        exact = (pixels.astype(np.float64) - low) * 255 / (high - low)
        assert np.abs(found - exact).max() <= 0.5 + 1e-9
        assert found.min() == 0
        assert found.max() == 255


# Floats.


@given(hnp.arrays(np.float64, (4, 5), elements=st.floats(0, 1)))
def test_full_range_floats_are_rounded_shares(pixels: NDArray[np.float64]) -> None:
    found = prepare(pixels, ImageRule(4, 5))[..., 0]
    assert np.abs(found - pixels * 255).max() <= 0.5 + 1e-9


@given(hnp.arrays(np.float32, (4, 5), elements=st.floats(allow_nan=True, allow_infinity=True, width=32)))
def test_min_max_stretches_the_finite_floats(pixels: NDArray[np.float32]) -> None:
    found = prepare(pixels, ImageRule(4, 5, sixteen_bit="min-max"))[..., 0]
    finite = np.isfinite(pixels)
    assert not found[np.isnan(pixels) | np.isneginf(pixels)].any()
    if not finite.any():
        return
    values = pixels.astype(np.float64)
    low, high = values[finite].min(), values[finite].max()
    if low < high:
        exact = (values[finite] - low) / (high - low) * 255
        assert np.abs(found[finite] - exact).max() <= 0.5 + 1e-6
        assert (found[np.isposinf(pixels)] == 255).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            [0, 1.5],
            "float samples from 0 to 1.5, where the rule full-range takes 0 to 1: use the rule min-max",
        ),
        ([-1.0, 1.0], "float samples from -1 to 1, where"),
        ([0, np.nan], "float samples from 0 to 0 and not finite ones, where"),
    ],
)
def test_floats_without_a_range_need_the_rule_min_max(values: list[float], reason: str) -> None:
    with pytest.raises(ImageError, match=re.escape(reason)):
        prepare(np.array([values]), SAME_SIZE)


# Pages.


@pytest.mark.parametrize("order", ["<", ">"])
def test_each_page_of_a_tiff_is_a_frame(order: Any, tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 65536, (5, ROWS, COLUMNS), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", metadata=None, byteorder=order)
    frames = list(load_frames(tmp_path / "a.tif", SAME_SIZE))
    assert len(frames) == 5
    assert all(
        np.array_equal(frame, prepare(page, SAME_SIZE)) for frame, page in zip(frames, stack, strict=True)
    )


def test_pages_of_different_kinds_without_thumbnails_and_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(GREY[:8, :8], photometric="minisblack", subfiletype=1)
        writer.write(RGB, photometric="rgb", compression="zlib")
        writer.write((GREY > 99), photometric="minisblack", subfiletype=4)
        writer.write(wide(GREY), photometric="miniswhite", tile=(16, 16))
        writer.write(ALPHA, photometric="rgb", extrasamples=["unassalpha"])
        writer.write(share(RGB), photometric="rgb", planarconfig="contig")
    frames = list(load_frames(path, SAME_SIZE))
    expected = [RGB, three(255 - GREY), RGB, RGB]
    assert len(frames) == len(expected)
    assert all(np.array_equal(one, two) for one, two in zip(frames, expected, strict=True))


def test_pages_are_read_one_at_a_time_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(GREY, photometric="minisblack")
        writer.write(GREY.astype(np.int16), photometric="minisblack")
    frames = load_frames(path, SAME_SIZE)
    assert np.array_equal(next(frames), three(GREY))
    with pytest.raises(ImageError, match=r"a TIFF of 16-bit signed samples \(page 2\)"):
        next(frames)


def test_a_lone_thumbnail_is_the_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", subfiletype=1)
    assert np.array_equal(load_image(tmp_path / "a.tif", SAME_SIZE), RGB)


def test_directories_that_point_at_each_other_end(tmp_path: Path) -> None:
    one = tiff(GREY, photometric=1, pages=2)
    second = 8 + (2 + 12 * 11 + 4)
    (count,) = struct.unpack_from("<H", one, second)
    looped = bytearray(one)
    struct.pack_into("<I", looped, second + 2 + 12 * count, 8)
    assert len(list(load_frames(write(tmp_path, "a.tif", bytes(looped)), SAME_SIZE))) == 2


# Colours of JPEG, and smaller decoding.


def with_exif(plain: bytes, orientation: int) -> bytes:
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]


def pillow(content: bytes, **options: Any) -> Any:
    return PIL.Image.open(BytesIO(content), **options)


INKS = [(255, 0, 0, 0), (0, 255, 0, 30), (10, 20, 200, 60), (0, 0, 0, 255), (90, 200, 3, 0), (0, 0, 0, 0)]


@pytest.mark.parametrize("marker", [True, False], ids=["Adobe", "unmarked"])
def test_cmyk_jpeg_has_the_colours_that_pillow_shows(marker: bool, tmp_path: Path) -> None:
    inks = np.repeat(np.repeat(np.array([INKS], np.uint8), 16, axis=1), 16, axis=0)
    buffer = BytesIO()
    PIL.Image.fromarray(inks, "CMYK").save(buffer, "JPEG", quality=98, subsampling=0)
    content = buffer.getvalue()
    assert content[2:4] == b"\xff\xee"
    if not marker:
        content = content[:2] + content[18:]
    found = load_image(write(tmp_path, "a.jpg", content), ImageRule(16, 96)).astype(int)
    assert np.abs(found - np.asarray(pillow(content).convert("RGB"))).max() <= 1
    # Without black, a colour is what its inks leave of white.
    assert np.abs(found[8, 72] - (165, 55, 252)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_every_orientation_is_applied_once(orientation: int, grey: bool, tmp_path: Path) -> None:
    content = with_exif(encode(".jpg", GREY if grey else RGB, cv2.IMWRITE_JPEG_QUALITY, 95), orientation)
    upright = np.asarray(PIL.ImageOps.exif_transpose(pillow(content)).convert("RGB"))
    image = load_image(write(tmp_path, "a.jpg", content), ImageRule(*upright.shape[:2]))
    assert np.abs(image.astype(int) - upright).max() <= 1


@pytest.mark.parametrize(
    ("sides", "rule_sides", "expected"),
    [
        ((100, 80), (60, 40), 1),
        ((100, 80), (50, 40), 2),
        ((99, 79), (50, 40), 2),
        ((98, 79), (50, 40), 1),
        ((400, 320), (50, 40), 8),
        ((400, 160), (50, 40), 4),
        ((5000, 4000), (50, 40), 8),
        ((40, 30), (50, 40), 1),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_dct_scaled_takes_the_largest_reduction_that_covers_the_input(
    sides: tuple[int, int],
    rule_sides: tuple[int, int],
    expected: int,
    channels: int,
    orientation: int,
    tmp_path: Path,
) -> None:
    """The reduced pixels are those of libjpeg's own scaling, as Pillow asks for it."""
    rows, columns = sides if orientation < 5 else sides[::-1]
    smooth = cv2.resize(RGB, (columns, rows), interpolation=cv2.INTER_LINEAR)
    content = encode(".jpg", smooth[..., 0] if channels == 1 else smooth, cv2.IMWRITE_JPEG_QUALITY, 95)
    content = with_exif(content, orientation)
    image = load_image(write(tmp_path, "a.jpg", content), ImageRule(*rule_sides, jpeg="dct-scaled"))
    peer = pillow(content)
    peer.draft(None, (columns // expected, rows // expected))
    reduced = np.asarray(PIL.ImageOps.exif_transpose(peer).convert("RGB"))
    assert reduced.shape[:2] == tuple(-(-side // expected) for side in sides)
    assert np.abs(image.astype(int) - prepare(reduced, ImageRule(*rule_sides))).max() <= 2


def test_dct_scaled_is_for_jpeg_alone_and_not_the_default(tmp_path: Path) -> None:
    large = cv2.resize(RGB, (480, 320))
    scaled, full = ImageRule(40, 60, jpeg="dct-scaled"), ImageRule(40, 60)
    png_path = write(tmp_path, "a.png", encode(".png", large))
    assert np.array_equal(load_image(png_path, scaled), load_image(png_path, full))
    jpeg_path = write(tmp_path, "a.jpg", encode(".jpg", large))
    assert not np.array_equal(load_image(jpeg_path, scaled), load_image(jpeg_path, full))
    assert np.array_equal(
        load_image(jpeg_path, full), prepare(np.asarray(pillow(jpeg_path.read_bytes())), full)
    )


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_leaves_an_image_upright(exif: bytes, tmp_path: Path) -> None:
    plain = encode(".jpg", RGB)
    content = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    for rule in (SAME_SIZE, ImageRule(10, 15, jpeg="dct-scaled")):
        found = load_image(write(tmp_path, "a.jpg", content), rule)
        assert np.array_equal(found, load_image(write(tmp_path, "b.jpg", plain), rule))


# Arrays.


@pytest.mark.parametrize("shape", [(), (5,), (0, 5), (5, 0, 3), (2, 3, 3, 3), (4, 4, 0)])
def test_arrays_that_are_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="is no image"):
        prepare(np.zeros(shape, np.uint8), SAME_SIZE)


@pytest.mark.parametrize("kind", [np.float16, np.int16, np.uint32, np.bool_, np.object_])
def test_arrays_of_other_types_are_refused(kind: type) -> None:
    with pytest.raises(ImageError, match="uint8, uint16, float32 and float64 can be used"):
        prepare(np.zeros((4, 4), kind), SAME_SIZE)


@settings(deadline=None)
@given(
    pixels=st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9))
    ),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    resize=st.sampled_from(["stretch-linear", "stretch-area", "stretch-nearest", "letterbox", "crop"]),
)
def test_any_image_becomes_the_network_s_size(
    pixels: NDArray[Any], rows: int, columns: int, resize: Any
) -> None:
    image = prepare(pixels, ImageRule(rows, columns, resize=resize))
    assert image.shape == (rows, columns, 3)
    assert image.dtype == np.uint8
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        assert np.array_equal(image[..., 0], image[..., 1])
        assert np.array_equal(image[..., 0], image[..., 2])


def test_channels_by_their_number() -> None:
    assert np.array_equal(prepare(GREY, SAME_SIZE), three(GREY))
    assert np.array_equal(prepare(GREY[..., None], SAME_SIZE), three(GREY))
    assert np.array_equal(prepare(np.dstack([GREY, RGB[..., 1]]), SAME_SIZE), three(GREY))
    assert np.array_equal(prepare(ALPHA, SAME_SIZE), RGB)
    assert np.array_equal(prepare(FIVE, SAME_SIZE), RGB)


# Resize rules.


def linear_weights(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Bilinear interpolation at pixel centres, edges repeated: a matrix `(size_out, size_in)`."""
    at = np.clip((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)
    left = np.minimum(np.floor(at).astype(int), max(size_in - 2, 0))
    matrix = np.zeros((size_out, size_in))
    matrix[np.arange(size_out), left] += 1 - (at - left)
    matrix[np.arange(size_out), np.minimum(left + 1, size_in - 1)] += at - left
    return matrix


def area_weights(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Mean over the area that an output pixel covers; for shrinking."""
    edges = np.arange(size_out + 1) * size_in / size_out
    low = np.maximum(edges[:-1, None], np.arange(size_in))
    high = np.minimum(edges[1:, None], np.arange(size_in) + 1)
    return np.asarray(np.maximum(high - low, 0) * size_out / size_in)


def separable(
    pixels: NDArray[Any], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.asarray(np.einsum("ri,ijc,kj->rkc", rows, pixels.astype(np.float64), columns))


@pytest.mark.parametrize("size", [(24, 32), (20, 30), (80, 120), (57, 41), (1, 1), (224, 224)])
def test_stretch_linear_is_bilinear_interpolation(size: tuple[int, int]) -> None:
    expected = separable(RGB, linear_weights(ROWS, size[0]), linear_weights(COLUMNS, size[1]))
    assert np.abs(prepare(RGB, ImageRule(*size)) - expected).max() <= 0.51


@pytest.mark.parametrize("size", [(24, 32), (20, 30), (10, 7), (1, 1)])
def test_stretch_area_is_the_mean_over_each_pixel_s_area(size: tuple[int, int]) -> None:
    expected = separable(RGB, area_weights(ROWS, size[0]), area_weights(COLUMNS, size[1]))
    assert np.abs(prepare(RGB, ImageRule(*size, resize="stretch-area")) - expected).max() <= 0.51


def pillow_nearest(size_in: int, size_out: int) -> list[int]:
    """Which pixels Pillow's NEAREST takes: its loop adds the scale up, which decides ties."""
    scale = size_in / size_out
    position, taken = scale * 0.5, []
    for _ in range(size_out):
        taken.append(int(position))
        position += scale
    return taken


@pytest.mark.parametrize("size_out", [1, 3, 7, 28, 64, 100, 224, 299])
@pytest.mark.parametrize("size_in", [1, 5, 28, 63, 127, 240, 512, 1023])
def test_stretch_nearest_takes_the_pixels_that_pillow_takes(size_in: int, size_out: int) -> None:
    ramp = np.stack([np.arange(size_in) % 256, np.arange(size_in) // 256, np.zeros(size_in)], axis=-1)
    pixels = np.broadcast_to(ramp.astype(np.uint8), (2, size_in, 3))
    found = prepare(pixels, ImageRule(2, size_out, resize="stretch-nearest"))[0].astype(int)
    assert (found[:, 0] + 256 * found[:, 1]).tolist() == pillow_nearest(size_in, size_out)


@pytest.mark.parametrize(
    ("shape", "inside"),
    [((20, 40), (slice(8, 24), slice(0, 32))), ((64, 32), (slice(0, 32), slice(8, 24)))],
)
def test_letterbox_keeps_the_aspect_and_pads_with_black(
    shape: tuple[int, int], inside: tuple[slice, slice]
) -> None:
    image = prepare(np.full(shape, 200, np.uint8), ImageRule(32, 32, resize="letterbox"))
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[inside] = 200
    assert np.array_equal(image, expected)


def test_crop_takes_the_centre_after_the_shorter_side_fits() -> None:
    halves = np.zeros((20, 60), np.uint8)
    halves[:, 20:40] = 255
    assert (prepare(halves, ImageRule(20, 20, resize="crop")) == 255).all()
    doubled = prepare(RGB, ImageRule(80, 80, resize="crop"))
    assert np.array_equal(doubled, prepare(RGB, ImageRule(80, 120))[:, 20:100])


def test_crop_of_a_thread_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(ImageError, match="too long and narrow"):
        prepare(np.zeros((1, 200_000), np.uint8), ImageRule(224, 224, resize="crop"))


@pytest.mark.parametrize("resize", ["stretch-linear", "stretch-area", "stretch-nearest", "letterbox", "crop"])
def test_an_image_of_the_right_size_stays_as_it_is(resize: Any) -> None:
    assert np.array_equal(prepare(RGB, ImageRule(ROWS, COLUMNS, resize=resize)), RGB)


# One image, whichever way it comes in.


@pytest.mark.parametrize("resize", ["stretch-linear", "stretch-area", "stretch-nearest", "letterbox", "crop"])
@pytest.mark.parametrize("name", EXACT)
def test_a_file_and_its_decoded_array_give_the_same_bytes(name: str, resize: Any, tmp_path: Path) -> None:
    suffix, content, decoded = EXACT[name]
    rule = ImageRule(33, 47, resize=resize)
    assert np.array_equal(load_image(write(tmp_path, "a" + suffix, content()), rule), prepare(decoded, rule))


@pytest.mark.real
def test_real_jpegs_give_the_bytes_of_their_decoded_arrays(brain_mri: Path) -> None:
    rule = ImageRule(224, 224)
    paths = sorted(brain_mri.glob("*/*/*.jpg"))
    for path in islice(paths, 0, None, 40):
        decoded = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert decoded is not None
        assert np.array_equal(load_image(path, rule), prepare(decoded[..., ::-1], rule)), path
    assert len(paths) == 1594
