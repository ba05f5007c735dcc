"""Images that are damaged, made to harm, or not files: one message each, in bounded time and memory."""

import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

from medimg.runtime.errors import ImageError
from medimg.runtime.images.limits import Limits
from medimg.runtime.images.load import load_frames, load_image, read_patient, read_size
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.images.stderr_capture import StderrCapture

ANY_SIZE = ImageRule(32, 32)
SMOOTH = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 80, 3), np.uint8), (0, 0), 2)


def refusal(path: Path, limits: Limits | None = None) -> str:
    """Give the message for a file that must not be read, without its path."""
    with pytest.raises(ImageError) as caught:
        list(load_frames(path, ANY_SIZE, limits))
    return str(caught.value).removeprefix(f"{path}: ")


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def jpeg(*options: int) -> bytes:
    return cv2.imencode(".jpg", SMOOTH, options)[1].tobytes()


# Cases that were found.


@pytest.fixture(scope="module")
def cases(real_data: Path) -> Path:
    return real_data.parent / "cases" / "images"


@pytest.mark.real
@pytest.mark.parametrize("name", ["bf_rgbx.bmp", "os2_24.bmp"])
def test_bmp_headers_of_other_kinds_are_read_as_by_pillow(name: str, cases: Path) -> None:
    path = cases / "bmp-header-variants" / name
    expected = np.asarray(PIL.Image.open(path).convert("RGB"))
    assert np.array_equal(load_image(path, ImageRule(*expected.shape[:2])), expected)


@pytest.mark.real
def test_bmp_masks_say_which_bytes_are_red_and_blue(cases: Path) -> None:
    path = cases / "bmp-header-variants" / "bitfields32.bmp"
    content = path.read_bytes()
    start, masks = struct.unpack_from("<I", content, 10)[0], struct.unpack_from("<III", content, 54)
    columns, rows = struct.unpack_from("<ii", content, 18)
    assert sorted(masks) == [0xFF, 0xFF00, 0xFF0000]
    stored = np.frombuffer(content, np.uint8, 4 * rows * columns, start).reshape(rows, columns, 4)[::-1]
    expected = stored[..., [mask.bit_length() // 8 - 1 for mask in masks]]
    assert np.array_equal(load_image(path, ImageRule(rows, columns)), expected)


@pytest.mark.real
@pytest.mark.parametrize("codec", ["lzw", "packbits", "zlib"])
def test_damaged_strips_are_an_error(codec: str, cases: Path) -> None:
    folder = cases / "tiff-damaged-strips"
    expected = np.asarray(PIL.Image.open(folder / f"{codec}.tif").convert("RGB"))
    assert np.array_equal(load_image(folder / f"{codec}.tif", ImageRule(*expected.shape[:2])), expected)
    assert refusal(folder / f"{codec}-zero-tail.tif").startswith("a damaged")


@pytest.mark.real
def test_planes_of_sixteen_bits_are_the_pixels_of_their_twin(cases: Path) -> None:
    folder = cases / "tiff-planar16"
    size = read_size(folder / "reference.png", ANY_SIZE)
    expected = load_image(folder / "reference.png", ImageRule(*size))
    for name in ("interleaved16.tif", "planar16.tif", "planar16.tif"):
        assert np.array_equal(load_image(folder / name, ImageRule(*size)), expected)


@pytest.mark.real
def test_valid_tiffs_are_read_or_their_compression_is_named(cases: Path) -> None:
    folder = cases / "tiff-refused-as-damaged"
    for name in ("zstd", "lzma", "webp"):
        said = refusal(folder / f"{name}.tif")
        assert f"compression {name}, which is not read: save it uncompressed" in said.replace(
            name.upper(), name
        ).replace("WebP", name)
    expected = np.asarray(PIL.Image.open(folder / "tile16-uncompressed.tif").convert("RGB"))
    found = load_image(folder / "tile16-uncompressed.tif", ImageRule(*expected.shape[:2]))
    assert np.array_equal(found, expected)


@pytest.mark.real
def test_compressions_without_a_decoder_are_never_black_images(cases: Path) -> None:
    paths = sorted((cases / "tiff-unknown-compression").glob("*.tif"))
    assert len(paths) == 6
    for path in paths:
        assert "which is not read: save it uncompressed, with LZW or deflate" in refusal(path)


# TIFF.


@pytest.mark.parametrize("tile", [None, (16, 16), (64, 48)])
@pytest.mark.parametrize("kind", [np.uint16, np.float32, np.float64])
def test_planes_of_wide_samples_are_right_each_time(kind: Any, tile: Any, tmp_path: Path) -> None:
    whole = SMOOTH.astype(kind) * 257 if kind == np.uint16 else (SMOOTH / 255).astype(kind)
    path = tmp_path / "a.tif"
    planes = np.moveaxis(whole, 2, 0)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", tile=tile, compression="lzw")
    for _ in range(4):
        assert np.array_equal(load_image(path, ImageRule(96, 80)), SMOOTH)


@pytest.mark.parametrize("codec", ["lzw", "packbits", "zlib", "jpeg"])
@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_each_strip_gives_all_its_pixels_or_an_error(codec: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SMOOTH, photometric="rgb", rowsperstrip=24, compression=codec, metadata=None)
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        offset, size = page.dataoffsets[2], page.databytecounts[2]
        sizes_at = page.tags["StripByteCounts"].valueoffset
    content = bytearray(path.read_bytes())
    if damage == "cut":
        kind = "<I" if struct.unpack_from("<I", content, sizes_at + 8)[0] == size else "<H"
        struct.pack_into(kind, content, sizes_at + 2 * struct.calcsize(kind), size // 2)
    else:
        content[offset + size // 2 : offset + size] = bytes(size - size // 2)
    assert "damaged" in refusal(written(tmp_path, "b.tif", bytes(content)))


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 4097, 100_000])
@pytest.mark.parametrize("codec", [5, 32773])
def test_strips_of_any_size_are_unpacked(codec: int, size: int) -> None:
    from medimg.runtime.images import tiff_codecs

    encode = imagecodecs.lzw_encode if codec == 5 else imagecodecs.packbits_encode
    data = [np.random.default_rng(seed).integers(0, 9, size, np.uint8).tobytes() for seed in range(3)]
    pieces = [memoryview(bytes(encode(one))) for one in [*data, data[0][: size // 2 + 1]]]
    found = list(tiff_codecs.unpack(codec, pieces, [size] * 3 + [size // 2 + 1]))
    assert [bytes(one) for one in found] == [*data, data[0][: size // 2 + 1]]


@pytest.mark.parametrize("compression", [2, 3, 4, 6, 9, 34712, 50000, 50002, 60000])
def test_no_compression_but_those_that_are_read_passes(compression: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SMOOTH, photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        page: Any = file.pages[0]
        page.tags["Compression"].overwrite(compression)
    assert "which is not read: save it uncompressed, with LZW or deflate" in refusal(path)


# JPEG and PNG, whose libraries speak to standard error alone.


@pytest.mark.parametrize(
    "options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)]
)
@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_pixels_that_libjpeg_makes_up_are_an_error(
    options: tuple[int, ...], damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = jpeg(*options)
    half = len(content) // 2
    rest = b"" if damage == "cut" else bytes(half)
    said = refusal(written(tmp_path, "a.jpg", content[:half] + rest + b"\xff\xd9"))
    assert said.startswith("a damaged JPEG (")
    assert said.endswith("): make it anew from its source")
    assert capfd.readouterr() == ("", "")


def test_each_thread_hears_of_its_own_image_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = written(tmp_path, "whole.jpg", jpeg())
    broken = written(tmp_path, "broken.jpg", jpeg()[:900] + b"\xff\xd9")
    outcomes: dict[Path, set[str]] = {whole: set(), broken: set()}

    def read(path: Path) -> None:
        for _ in range(40):
            try:
                load_image(path, ANY_SIZE)
                outcomes[path].add("")
            except ImageError as error:
                outcomes[path].add(str(error).partition(": ")[2][:14])

    threads = [threading.Thread(target=read, args=(path,)) for path in (whole, broken) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {whole: {""}, broken: {"a damaged JPEG"}}
    assert capfd.readouterr() == ("", "")


def test_what_others_write_to_standard_error_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    import ctypes

    libc = ctypes.CDLL(None)

    def speak() -> str:
        stderr = ctypes.c_void_p.in_dll(libc, "stderr")
        libc.fputs(b"of another library\nCorrupt JPEG data: made up\n", stderr)
        print("of Python", file=sys.stderr)  # noqa: T201  the stream itself is tried
        return "done"

    assert StderrCapture().run(speak) == ("done", "Corrupt JPEG data: made up")
    assert set(capfd.readouterr().err.splitlines()) == {"of another library", "of Python"}


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    content = cv2.imencode(".png", SMOOTH)[1].tobytes()
    at = content.index(b"IDAT") - 4
    extra = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return content[:at] + extra + content[at:]


def test_no_name_in_a_png_reaches_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = b"\x1b]0;pwned\x07\x1b[2K\r\x1b[31mmalignant 0.0000\x1b[0m"
    profile = name + b"\0\0" + zlib.compress(struct.pack(">I", 50) + bytes(range(200)))
    for chunk in ((b"iCCP", profile), (b"tEXt", name), (b"zTXt", name), (b"sPLT", name), (b"eXIf", name)):
        path = written(tmp_path, "a.png", png_with(chunk))
        assert np.array_equal(load_image(path, ImageRule(96, 80)), SMOOTH[..., ::-1])
    assert capfd.readouterr() == ("", "")


# Bombs: bounded before anything is decoded.


def flat_tiff(side: int, channels: int, bits: int, pages: int = 1) -> bytes:
    """Write pages that share one deflated strip of zeros."""
    strip = zlib.compress(bytes(side * side * channels * bits // 8), 9)
    content = bytearray(b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip)
    fields = [(256, side), (257, side), (258, bits), (259, 8), (262, 1 if channels == 1 else 2), (273, 8)]
    fields += [(277, channels), (278, side), (279, len(strip)), (284, 1), (339, 3 if bits > 16 else 1)]
    for page in range(pages):
        following = len(content) + 6 + 12 * len(fields) if page + 1 < pages else 0
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
        content += struct.pack("<H", len(fields)) + entries + struct.pack("<I", following)
    return bytes(content)


def test_channels_and_bytes_a_sample_count_as_pixels_do(tmp_path: Path) -> None:
    limits = Limits(decoded_bytes=64 * 64 * 8)
    assert list(load_frames(written(tmp_path, "a.tif", flat_tiff(64, 4, 16)), ANY_SIZE, limits))
    for channels, bits in ((5, 16), (3, 32), (64, 8)):
        said = refusal(written(tmp_path, "b.tif", flat_tiff(64, channels, bits)), limits)
        assert said == (
            f"its header says 64x64 pixels of {channels * bits // 8} bytes each; the limit is 32,768 bytes"
        )


def test_decoding_floats_takes_little_more_than_they_do(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tif", flat_tiff(2048, 3, 32))
    code = (
        "import resource, sys; from medimg.runtime.images.load import load_image; "
        "from medimg.runtime.model.spec import ImageRule; peak = lambda: resource.getrusage(0).ru_maxrss; "
        "before = peak(); load_image(sys.argv[1], ImageRule(32, 32)); print(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 3.5 * 2048 * 2048 * 12


def test_all_pages_together_are_bounded(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tif", flat_tiff(2048, 1, 8, pages=20_000))
    began = time.monotonic()
    assert refusal(path, Limits(decoded_bytes=2**26)).startswith("its pages come to ")
    assert time.monotonic() - began < 5
    assert len(list(load_frames(written(tmp_path, "b.tif", flat_tiff(64, 1, 8, pages=50)), ANY_SIZE))) == 50


def test_scans_are_counted(tmp_path: Path) -> None:
    content = jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = content.rindex(b"\xff\xda")
    assert "the limit is 256" in refusal(
        written(tmp_path, "a.jpg", content[:-2] + content[last:-2] * 300 + b"\xff\xd9")
    )


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"\xff\xfe\0\2"])
def test_bytes_between_segments_take_no_time(filler: bytes, tmp_path: Path) -> None:
    content = jpeg()
    at = content.index(b"\xff\xdb")
    path = written(tmp_path, "a.jpg", content[:at] + filler * (2**23 // len(filler)) + content[at:])
    began = time.monotonic()
    if len(filler) > 1:
        assert "more segments than are read" in refusal(path)
    else:
        refusal(path) if filler == b"\0" else load_image(path, ANY_SIZE)
    assert time.monotonic() - began < 5


def test_chunks_are_counted_and_texts_are_not_unpacked(tmp_path: Path) -> None:
    bomb = b"k\0\0" + zlib.compress(bytes(2**26), 9)
    for name in (b"zTXt", b"iCCP"):
        path = written(tmp_path, "a.png", png_with((name, bomb)))
        assert np.array_equal(load_image(path, ImageRule(96, 80)), SMOOTH[..., ::-1])
    many = png_with((b"teXt", b""))
    one = many[many.index(b"teXt") - 4 : many.index(b"teXt") + 8]
    at = many.index(b"IDAT") - 4
    assert "more chunks than are read" in refusal(
        written(tmp_path, "b.png", many[:at] + one * 2**18 + many[at:])
    )


def test_no_other_decoder_takes_a_file_by_its_second_half(tmp_path: Path) -> None:
    half = b"ftypavif\0\0\0\0avifmif1miaf"
    for name, start in (("a.bmp", b"BM\0\x18"), ("a.jpg", b"\xff\xd8\xff\xe0")):
        content = start + half + struct.pack("<II", 10, 10) + bytes(200)
        assert refusal(written(tmp_path, name, content))


# What is no file.


@pytest.mark.parametrize("reader", [load_image, read_size, read_patient])
def test_what_has_no_end_is_neither_opened_nor_waited_for(reader: Any, tmp_path: Path) -> None:
    fifo = tmp_path / "a.dcm"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero"), Path("/dev/null")):
        if reader is read_patient and path != fifo:
            # By its name it is no DICOM file.
            assert reader(path) is None
            continue
        with pytest.raises(ImageError, match=f"^{path}: is no regular file$"):
            reader(path, *([] if reader is read_patient else [ANY_SIZE]))


def test_a_palette_of_few_colours_is_no_room_for_others(tmp_path: Path) -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 0, 4, 0, 0, 2, 0)
    content = b"BM" + struct.pack("<IHHI", 66, 0, 0, 62) + header + bytes(8) + b"\0\1\2\1"
    assert "its palette has fewer colours" in refusal(written(tmp_path, "a.bmp", content))
