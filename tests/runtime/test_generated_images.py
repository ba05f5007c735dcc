"""Generated headers and encodings: each image equals what other decoders read, or is refused by name.

The references are Pillow, tifffile (with imagecodecs) and the pixels that were written; a difference of one
grey level is allowed, for rounding.
"""

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tifffile
from numpy.typing import NDArray

from medimg.runtime.errors import ImageError
from medimg.runtime.images.load import load_frames, read_size
from medimg.runtime.images.rule import ImageRule

Pixels = NDArray[Any]
Random = np.random.Generator

ANY_SIZE = ImageRule(1, 1)
_FEW, _MANY = 40, 2000


class Generated(NamedTuple):
    """A file, and what it shows, upright, where that is known without reading it."""

    content: bytes
    what: str
    truth: Pixels | None


# What the file shows, by others.


def to_rgb(pixels: Pixels) -> Pixels:
    """Give `(rows, columns, 3)` uint8 of what a network would see, written anew from README's rules."""
    colours = pixels if pixels.ndim == 3 else pixels[..., None]
    colours = colours[..., :1].repeat(3, axis=2) if colours.shape[2] < 3 else colours[..., :3]
    if colours.dtype == np.uint8:
        return colours
    # What is not a number is refused by the rule; here it only must not warn.
    share = colours / 65535 if colours.dtype == np.uint16 else np.nan_to_num(colours)
    return np.asarray(np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8))


def by_tifffile(content: bytes) -> Pixels | None:
    """Read the samples with tifffile, and show them as the photometric interpretation says."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page: Any = file.pages[0]
            samples = page.asarray(squeeze=False)
            photometric, planar, bits = int(page.photometric), page.planarconfig == 2, page.bitspersample
            colour_map, tag = page.colormap, page.tags.get(274)
    except Exception:  # noqa: BLE001  whatever it says, it has no answer
        return None
    # Planes, depth, rows, columns, channels; tifffile gives less where it misses fields.
    if samples.ndim != 5:
        return None
    samples = np.moveaxis(samples[:, 0], 0, -1)[..., 0, :] if planar else samples[0, 0]
    samples = samples.astype(np.uint8) if samples.dtype == bool else samples
    samples = upright(samples, int(tag.value) if tag else 1)
    if photometric == 3:
        known = colour_map is not None and samples.shape[2] == 1 and samples.max() < colour_map.shape[1]
        return np.asarray(colour_map.T[samples[..., 0]] >> 8).astype(np.uint8) if known else None
    if photometric == 5 and samples.dtype == np.uint8 and samples.shape[2] == 4:
        inks = 255.0 - samples
        return np.rint(inks[..., :3] * inks[..., 3:4] / 255).astype(np.uint8)
    if photometric == 6 and page.compression != 7:
        return None
    if samples.dtype.kind == "u" and bits not in (8, 16):
        most = 255 if bits < 8 else 65535
        samples = np.rint(samples * (most / (2**bits - 1))).astype(np.uint8 if bits < 8 else np.uint16)
    if samples.dtype.kind == "i":
        return None
    if photometric == 0:
        samples = (1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max) - samples
    return np.asarray(samples)


def upright(samples: Pixels, orientation: int) -> Pixels:
    """Turn by EXIF 2.32, 4.6.4 A: where row 0 and column 0 are shown."""
    turned = {2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    mirrored = samples[:, ::-1] if orientation in (2, 4, 5, 7) else samples
    return np.rot90(mirrored, turned)


def by_pillow(content: bytes) -> Pixels | None:
    """Read 8-bit images with Pillow; it divides by an alpha that colours are multiplied by."""
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            tags = getattr(image, "tag_v2", {})
            # Pillow takes planes of 16 bits for others.
            deep_planes = tags.get(284) == 2 and tags.get(258, (8,))[0] > 8
            if (
                1 in tags.get(338, ())
                or deep_planes
                or image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
            ):
                return None
            shown = PIL.ImageOps.exif_transpose(image)
            if shown.mode in ("LA", "RGBA", "RGBX"):
                return np.asarray(shown)[..., : 1 if shown.mode == "LA" else 3]
            # A palette's transparency is dropped, as alpha is.
            shown.info.pop("transparency", None)
            return np.asarray(shown.convert("RGB"))
    except Exception:  # noqa: BLE001  whatever it says, it has no answer
        return None


def judge(generated: Generated, folder: Path) -> str:
    """Read a file with medimg and with others: `answered` or `refused`, or a failed assertion."""
    path = folder / "image"
    path.write_bytes(generated.content)
    kind = generated.what.split(":")[0]
    readers = [by_pillow, by_tifffile] if kind == "TIFF" else [by_pillow]
    # Each reference shows RGB before any resize; the rule has the image's own size.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [reader(generated.content) for reader in readers]
    shown = {"truth": generated.truth, "Pillow": found[0], "tifffile": found[-1]}
    references = {
        name: to_rgb(pixels) for name, pixels in shown.items() if pixels is not None and pixels.size
    }
    try:
        image = next(load_frames(path, ImageRule(*read_size(path, ANY_SIZE))))
    except ImageError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert refusal.startswith(f"{path}: "), generated.what
        return "refused"
    assert references, f"{generated.what}: nobody else reads it"
    for name, reference in references.items():
        assert image.shape == reference.shape, f"{generated.what}: {name}"
        assert np.abs(image.astype(int) - reference).max() <= 1, f"{generated.what}: {name}"
    return "answered"


# TIFF.


def picture(random: Random, rows: int, columns: int, channels: int) -> NDArray[np.float64]:
    """Draw from 0 to 1: smooth with some noise, so that each encoding meets what is usual."""
    ramp = np.add.outer(np.linspace(0, random.random(), rows), np.linspace(0, random.random(), columns)) / 2
    return np.clip(
        ramp[..., None] * random.random(channels) + random.random((rows, columns, channels)) / 9, 0, 1
    )


def sampled(share: NDArray[np.float64], kind: str, bits: int) -> Pixels:
    """Give shares as samples of a type; those of less than a byte have one each."""
    if kind == "f":
        return np.asarray(share.astype(f"f{bits // 8}"))
    if kind == "i":
        return np.asarray(np.rint(share * (2 ** (bits - 1) - 1)).astype(f"i{bits // 8}"))
    kind = "u1" if bits <= 8 else "u2" if bits <= 16 else "u4"
    return np.asarray(np.rint(share * (2**bits - 1)).astype(kind))


def with_differences(piece: Pixels, predictor: int) -> Pixels:
    if predictor == 3:
        piece = imagecodecs.floatpred_encode(piece, axis=1)
    return np.asarray(np.diff(piece, axis=1, prepend=piece[:, :1] * 0) if predictor == 2 else piece)


def packed(piece: Pixels, bits: int, order: Literal["<", ">"], predictor: int) -> bytes:
    if bits in (8, 16, 32, 64):
        # Predictor 3 orders the bytes itself.
        return piece.astype(piece.dtype.newbyteorder(order) if predictor < 3 else piece.dtype).tobytes()
    return b"".join(imagecodecs.packints_encode(row.ravel(), bits) for row in piece)


PACKERS: dict[int, Callable[[Any], Any]] = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32946: zlib.compress,
    32773: imagecodecs.packbits_encode,
    50000: imagecodecs.zstd_encode,
    34925: imagecodecs.lzma_encode,
    # The data that follow are not what these headers say.
    **dict.fromkeys((2, 4, 6, 34712, 34933, 99), bytes),
}
USUAL = (1, 5, 8, 32773)


def damaged(random: Random, data: bytes) -> bytes:
    """Break a strip as copies and disks do: cut it off, leave zeros at its end or within, turn a bit."""
    at, kind = int(random.integers(len(data))), int(random.integers(4))
    if kind == 3:
        return data[:at] + bytes([data[at] ^ 1 << int(random.integers(8))]) + data[at + 1 :]
    gap = len(data) - at if kind < 2 else min(16, len(data) - at)
    return data[:at] + (b"" if kind == 0 else bytes(gap) + data[at + gap :])


def now_and_then(random: Random, usual: Any, *others: Any, chance: float = 0.1) -> Any:
    """Choose what is usual, mostly."""
    return others[int(random.integers(len(others)))] if random.random() < chance else usual


def pick(random: Random, *choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def tiff(random: Random) -> Generated:
    """Write a TIFF with usual fields mostly, and now and then unusual ones or damage."""
    kind, bits = pick(
        random,
        *[("u", 8)] * 6,
        *[("u", 16)] * 5,
        *[("u", bits) for bits in (1, 2, 4, 10, 12, 14, 32)],
        *[("f", bits) for bits in (16, 32, 32, 64)],
        *[("i", bits) for bits in (8, 16)],
    )
    channels = pick(random, 1, 1, 1, 2, 3, 3, 3, 4, 5)
    colours = {1: pick(random, 0, 1, 1, 3 if bits <= 8 and kind == "u" else 1), 2: pick(random, 0, 1)}
    photometric = now_and_then(
        random, colours.get(channels, pick(random, 2, 2, 2, 1, 5)), 0, 1, 2, 3, 5, 6, 8, 32803, chance=0.05
    )
    rows, columns = (int(side) for side in random.integers(1, 50, 2))
    samples = sampled(picture(random, rows, columns, channels), kind, bits)
    layout = Layout(
        order=pick(random, "<", "<", ">"),
        compression=now_and_then(random, pick(random, *USUAL), *PACKERS),
        planes=pick(random, 1, 1, channels),
        predictor=now_and_then(random, 1, 2, 3 if kind == "f" else 2, chance=0.3),
        tile=pick(random, None, None, (16, 16), (32, 48)),
        strip_rows=pick(random, rows, 1, int(random.integers(1, rows + 1))),
    )
    if (layout.predictor == 3 and kind != "f") or (layout.predictor == 2 and bits not in (8, 16, 32, 64)):
        layout = layout._replace(predictor=1)
    pieces = [layout.packed(piece, bits) for piece in layout.pieces(samples)]
    breaks = random.random() < 0.15
    if breaks:
        broken = int(random.integers(len(pieces)))
        pieces[broken] = damaged(random, pieces[broken])
    fields = layout.fields(samples, kind, bits)
    fields[262] = (3, [photometric])
    if channels > (1 if photometric in (0, 1, 3) else 3):
        extra = channels - (1 if photometric in (0, 1, 3) else 3)
        fields[338] = (3, [pick(random, 0, 1, 2)] * extra)
    if photometric == 3:
        fields[320] = (3, random.integers(0, 65536, 3 * 2 ** min(bits, 8)).tolist())
    changed = unusual(random, fields)
    content = write_tiff(fields, pieces, layout, big=random.random() < 0.2)
    what = f"TIFF: {kind}{bits}, {channels} channels, photometric {photometric}, {layout}, {changed}"
    return Generated(content, f"{what}, damaged {breaks}", None)


def unusual(random: Random, fields: dict[int, tuple[int, list[int]]]) -> str:
    """Now and then leave a field out, or give it another value, and say which."""
    usual = dict(fields)
    if random.random() < 0.1:
        fields.pop(pick(random, 258, 259, 262, 277, 278, 284, 339, 317), None)
    if random.random() < 0.08:
        tag = pick(random, 256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 323, 339)
        fields[tag] = (pick(random, 3, 4, 9), [int(random.integers(0, 20))])
    if random.random() < 0.15:
        fields[274] = (3, [int(random.integers(0, 10))])
    tags = sorted({*usual, *fields})
    return ", ".join(f"{tag}={fields.get(tag)}" for tag in tags if fields.get(tag) != usual.get(tag))


class Layout(NamedTuple):
    """How samples are cut up and stored."""

    order: Literal["<", ">"]
    compression: int
    planes: int
    predictor: int
    tile: tuple[int, int] | None
    strip_rows: int

    def pieces(self, samples: Pixels) -> list[Pixels]:
        """Cut into strips or tiles, plane by plane."""
        planes = np.split(samples, self.planes, axis=2)
        if self.tile is None:
            starts = range(0, samples.shape[0], self.strip_rows)
            return [plane[row : row + self.strip_rows] for plane in planes for row in starts]
        height, width = self.tile
        pad = [(0, -samples.shape[0] % height), (0, -samples.shape[1] % width), (0, 0)]
        return [
            padded[row : row + height, column : column + width]
            for padded in (np.pad(plane, pad, "edge") for plane in planes)
            for row in range(0, padded.shape[0], height)
            for column in range(0, padded.shape[1], width)
        ]

    def packed(self, piece: Pixels, bits: int) -> bytes:
        """Give a piece as it stands in the file."""
        data = packed(with_differences(piece, self.predictor), bits, self.order, self.predictor)
        return bytes(PACKERS[self.compression](data))

    def fields(self, samples: Pixels, kind: str, bits: int) -> dict[int, tuple[int, list[int]]]:
        """Describe it: tags with type and values."""
        rows, columns, channels = samples.shape
        numbers = {256: columns, 257: rows, 259: self.compression, 277: channels}
        numbers |= {284: 2 if self.planes > 1 else 1, 317: self.predictor}
        numbers |= {322: self.tile[1], 323: self.tile[0]} if self.tile else {278: self.strip_rows}
        fields = {tag: (3, [value]) for tag, value in numbers.items()}
        fields[258] = (3, [bits] * channels)
        fields[339] = (3, [{"u": 1, "i": 2, "f": 3}[kind]] * channels)
        return fields


def write_tiff(
    fields: dict[int, tuple[int, list[int]]], pieces: list[bytes], layout: Layout, *, big: bool
) -> bytes:
    """Write pieces, then the values that need room, then the directory."""
    order, word = layout.order, "Q" if big else "I"
    content = bytearray(b"II" if order == "<" else b"MM")
    content += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    offsets = []
    for piece in pieces:
        offsets.append(len(content))
        content += piece
    places, sizes = (324, 325) if layout.tile else (273, 279)
    fields = {**fields, places: (4, offsets), sizes: (4, [len(piece) for piece in pieces])}
    entries = b""
    for tag, (kind, values) in sorted(fields.items()):
        data = struct.pack(order + {3: "H", 4: "I", 9: "i"}[kind] * len(values), *values)
        if len(data) > struct.calcsize(word):
            content, at = content + data, len(content)
            data = struct.pack(order + word, at)
        entries += struct.pack(order + "HH" + word, tag, kind, len(values)) + data.ljust(
            struct.calcsize(word), b"\0"
        )
    struct.pack_into(order + word, content, 8 if big else 4, len(content))
    count = struct.pack(order + ("Q" if big else "H"), len(fields))
    return bytes(content) + count + entries + bytes(struct.calcsize(word))


def tiff_by_tifffile(random: Random) -> Generated:
    """Have tifffile write a TIFF, with compressions that need imagecodecs."""
    rows, columns = (int(side) for side in random.integers(8, 60, 2))
    channels = pick(random, 1, 3)
    compression = pick(random, *["jpeg"] * 4, "jpeg2000", "png", "lerc", "jpegxl")
    colours: dict[str, Any] = {"photometric": "minisblack" if channels == 1 else "rgb"}
    if compression == "jpeg" and channels == 3 and random.random() < 0.6:
        colours = {"photometric": "ycbcr", "subsampling": pick(random, (1, 1), (2, 1), (2, 2))}
    tile = pick(random, None, (16, 16), (32, 32))
    colours |= {"tile": tile} if tile else {"rowsperstrip": pick(random, 64, 16, 8)}
    buffer = io.BytesIO()
    pixels = sampled(picture(random, rows, columns, channels), "u", 8)
    pixels = pixels if channels == 3 else pixels[..., 0]
    tifffile.imwrite(buffer, pixels, compression=compression, metadata=None, **colours)
    return Generated(buffer.getvalue(), f"TIFF: by tifffile, {compression}, {colours}", None)


def tiff_by_pillow(random: Random) -> Generated:
    """Have Pillow, and so libtiff, write a TIFF of each of its modes, fax and JPEG among them."""
    rows, columns = (int(side) for side in random.integers(8, 60, 2))
    mode = pick(random, "1", "L", "P", "RGB", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "LA", "I;16", "F")
    channels = {"RGB": 3, "YCbCr": 3, "LAB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode, 1)
    share = picture(random, rows, columns, channels)
    choices = [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"]
    choices += {"1": ["group3", "group4"], "L": ["jpeg"], "RGB": ["jpeg"]}.get(mode, [])
    if mode in ("I;16", "F"):
        image = PIL.Image.fromarray(sampled(share, *{"I;16": ("u", 16), "F": ("f", 32)}[mode])[..., 0])
    else:
        base = {"1": "L", "P": "L"}.get(mode, mode)
        image = PIL.Image.frombytes(base, (columns, rows), sampled(share, "u", 8).tobytes()).convert(mode)
    buffer, compression = io.BytesIO(), pick(random, *choices)
    image.save(buffer, "TIFF", compression=compression)
    return Generated(buffer.getvalue(), f"TIFF: by Pillow, {mode}, {compression}", None)


# BMP.


def bitmap(random: Random) -> Generated:
    """Write a BMP with headers of all ages, palettes, masks, and now and then damage."""
    rows, columns = (int(side) for side in random.integers(1, 40, 2))
    header = pick(random, 12, 40, 40, 40, 52, 56, 64, 108, 124)
    bits = pick(random, 1, 4, 8, 8, 16, 24, 24, 32, 32)
    stored = random.integers(0, 256, (rows, -(-columns * bits // 32) * 4), np.uint8)
    stored[:, -(-columns * bits // 8) :] = 0
    masks = MASKS[bits][int(random.integers(len(MASKS[bits])))] if header > 12 else ()
    colours = (2**bits if random.random() < 0.8 else int(random.integers(1, 2**bits + 1))) if bits <= 8 else 0
    entry = 3 if header == 12 else 4
    palette = random.integers(0, 256, (colours, entry), np.uint8)
    if random.random() < 0.3:
        palette[:, :3] = palette[:, :1]
    upside_down = header == 12 or random.random() < 0.7
    compression = now_and_then(random, 3 if masks else 0, 0, 1, 2, 3, 4, 6)
    before = b"".join(struct.pack("<I", mask) for mask in masks) if header == 40 else b""
    gap = bytes(now_and_then(random, 0, 4, 8))
    offset = 14 + header + len(before) + palette.size + len(gap)
    if header == 12:
        information = struct.pack("<IHHHH", 12, columns, rows, 1, bits)
    else:
        used = colours if colours and colours < 2**bits else pick(random, 0, colours)
        height = rows if upside_down else -rows
        information = struct.pack(
            "<IiiHHIIiiII", header, columns, height, 1, bits, compression, stored.size, 2835, 2835, used, 0
        )
        information += b"".join(struct.pack("<I", mask) for mask in masks) if header > 40 else b""
        information = information.ljust(header, b"\0")
    pixels = stored.tobytes()
    if breaks := random.random() < 0.1:
        pixels = pixels[: int(random.integers(len(pixels)))]
    content = b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + information
    content += before + palette.tobytes() + gap + pixels
    known = compression in (0, 3) and bits in (16, 32) and not breaks
    truth = masked(stored, bits, columns, masks if compression else (), upside_down) if known else None
    what = f"BMP: header {header}, {bits} bits, compression {compression}, masks {[hex(m) for m in masks]}, "
    return Generated(
        content, f"{what}{colours} colours, {columns}x{rows}, gap {len(gap)}, cut {breaks}", truth
    )


MASKS: dict[int, list[tuple[int, ...]]] = {
    **{key: [()] for key in (1, 4, 8, 24)},
    16: [
        (),
        (0x7C00, 0x3E0, 0x1F),
        (0xF800, 0x7E0, 0x1F),
        (0x1F, 0x3E0, 0x7C00),
        (0xF00, 0xF0, 0xF),
        (0xF0F, 0x30, 0x40),
    ],
    32: [
        (),
        (0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000),
        (0xFF000000, 0xFF0000, 0xFF00),
        (0xFF00, 0xFF0000, 0xFF000000),
        (0x3FF00000, 0xFFC00, 0x3FF),
        (0xFF0000, 0xFF00, 0xFF00),
        (0, 0xFF00, 0xFF),
    ],
}
"""Red, green and blue; the last ones of 16 and 32 bits are none."""


def masked(stored: Pixels, bits: int, columns: int, masks: tuple[int, ...], upside_down: bool) -> Pixels:
    """Take the bits of each mask, as the Windows API describes it, in exact arithmetic."""
    masks = masks or {16: (0x7C00, 0x3E0, 0x1F), 32: (0xFF0000, 0xFF00, 0xFF)}[bits]
    words = stored.view(f"<u{bits // 8}")[:: -1 if upside_down else 1, :columns].astype(np.int64)
    shown = np.stack([(words & mask) * 255 / max(mask, 1) for mask in masks], axis=2)
    return np.rint(shown).astype(np.uint8)


# PNG.


def png_file(random: Random) -> Generated:
    """Write a PNG of each colour type, depth and interlacing, with chunks that change what others show."""
    rows, columns = (int(side) for side in random.integers(1, 40, 2))
    colour_type, bits = pick(
        random,
        *[(0, bits) for bits in (1, 2, 4, 8, 16)],
        *[(3, bits) for bits in (1, 2, 4, 8)],
        *[(kind, bits) for kind in (2, 4, 6) for bits in (8, 16)],
    )
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    samples = sampled(picture(random, rows, columns, channels), "u", bits)
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    interlaced = random.random() < 0.3
    passes = adam7 if interlaced else [(0, 0, 1, 1)]
    data = b""
    for row, column, down, across in passes:
        part = samples[row::down, column::across]
        if part.size:
            data += b"".join(b"\0" + packed(line[None], bits, ">", 1) for line in part)
    palette = random.integers(0, 256, (2**bits, 3), np.uint8) if colour_type == 3 else None
    extras = b"".join(
        chunk(*extra) for extra in random.permutation(np.array(EXTRAS, object))[: random.integers(4)]
    )
    if palette is not None:
        extras += chunk(b"PLTE", palette.tobytes()) + (
            chunk(b"tRNS", bytes(2)) if random.random() < 0.5 else b""
        )
    turned = int(random.integers(1, 9)) if random.random() < 0.2 else 1
    if turned > 1:
        extras += chunk(b"eXIf", b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, turned, 0, 0))
    packed_data = zlib.compress(data)
    if breaks := random.random() < 0.2:
        packed_data = damaged(random, packed_data)
    cut = int(random.integers(len(packed_data) + 1))
    content = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, colour_type, 0, 0, interlaced)
    )
    content += (
        extras + chunk(b"IDAT", packed_data[:cut]) + chunk(b"IDAT", packed_data[cut:]) + chunk(b"IEND", b"")
    )
    shown = palette[samples[..., 0]] if palette is not None else samples
    if bits < 8 and palette is None:
        shown = samples * np.uint8(255 // (2**bits - 1))
    what = f"PNG: type {colour_type}, {bits} bits, interlaced {interlaced}, orientation {turned}"
    return Generated(content, f"{what}, damaged {breaks}", None if breaks else upright(shown, turned))


EXTRAS = [
    (b"gAMA", struct.pack(">I", 100000)),
    (b"sRGB", b"\0"),
    (b"sBIT", b"\5"),
    (b"bKGD", b"\0\1"),
    (b"pHYs", struct.pack(">IIB", 1, 2, 0)),
    (b"tEXt", b"k\0v"),
    (b"zTXt", b"k\0\0damaged"),
    (b"iCCP", b"\x1b[31m\0\0" + zlib.compress(bytes(9))),
    (b"tIME", bytes(7)),
    (b"prVt", b"what is this"),
]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# JPEG.


def jpeg_file(random: Random) -> Generated:
    """Have Pillow or imagecodecs write a JPEG of each kind, and now and then damage its end or middle."""
    rows, columns = (int(side) for side in random.integers(8, 80, 2))
    mode = pick(random, "L", "RGB", "RGB", "CMYK")
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    pixels = sampled(picture(random, rows, columns, channels), "u", 8)
    kind = pick(random, "plain", "plain", "progressive", "restarts", "rgb", "lossless", "12 bits", "JPEG-LS")
    if kind in ("plain", "progressive", "restarts") or channels == 4:
        options: dict[str, Any] = {"progressive": True} if kind == "progressive" else {}
        if kind == "restarts":
            options = {"restart_marker_blocks": 2}
        elif kind == "rgb" and mode == "RGB":
            options = {"keep_rgb": True}
        buffer = io.BytesIO()
        image = PIL.Image.frombytes(mode, (columns, rows), pixels.tobytes())
        image.save(
            buffer, "JPEG", quality=int(random.integers(20, 96)), subsampling=pick(random, 0, 1, 2), **options
        )
        content = buffer.getvalue()
    else:
        one = pixels[..., 0] if channels == 1 else pixels
        content = bytes(
            {
                "rgb": lambda: imagecodecs.jpeg8_encode(one, colorspace="RGB" if channels == 3 else None),
                "lossless": lambda: imagecodecs.jpeg8_encode(one, lossless=True),
                "12 bits": lambda: imagecodecs.jpeg8_encode(one.astype("u2") * 16, bitspersample=12),
                "JPEG-LS": lambda: imagecodecs.jpegls_encode(one),
            }[kind]()
        )
    if random.random() < 0.2:
        tag = struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, int(random.integers(1, 9)), 0, 0)
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", 34) + b"Exif\0\0MM\0*" + tag + content[2:]
    if breaks := random.random() < 0.25:
        start = content.index(b"\xff\xda") + 12
        content = content[:start] + damaged(random, content[start:-2]) + content[-2:]
    return Generated(content, f"JPEG: {mode}, {kind}, {columns}x{rows}, damaged {breaks}", None)


GENERATORS = {
    "TIFF": tiff,
    "tifffile": tiff_by_tifffile,
    "Pillow": tiff_by_pillow,
    "BMP": bitmap,
    "PNG": png_file,
    "JPEG": jpeg_file,
}


def judge_all(kind: str, seeds: range, folder: Path) -> Counter[str]:
    """Judge a file for each seed."""
    return Counter(judge(GENERATORS[kind](np.random.default_rng(seed)), folder) for seed in seeds)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_few_of_each_kind_are_read_as_by_others_or_refused(kind: str, tmp_path: Path) -> None:
    outcomes = judge_all(kind, range(_FEW), tmp_path)
    # Neither everything nor nothing is refused.
    assert min(outcomes["answered"], outcomes["refused"]) >= _FEW // 10, outcomes


@pytest.mark.soak
@pytest.mark.parametrize("kind", GENERATORS)
def test_2000_of_each_kind_are_read_as_by_others_or_refused(kind: str, tmp_path: Path) -> None:
    outcomes = judge_all(kind, range(_FEW, _FEW + _MANY), tmp_path)
    assert outcomes["answered"] >= _MANY // 10, outcomes
