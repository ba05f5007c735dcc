"""DICOM files by chance: headers times encodings, and what the standard says is shown of each.

The expected pixels are worked out from the values that were put in, by the formulas of PS3.3 and PS3.4, and
share no code with the product: neither its decoders nor its reader of elements.
"""

import random
import struct
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import jpeg_ls
import numpy as np
import pydicom
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
RLE, LOSSLESS_JPEG, JPEG_LS, JPEG_2000 = (
    f"1.2.840.10008.1.2{end}" for end in (".5", ".4.70", ".4.80", ".4.90")
)
NATIVE = (IMPLICIT, EXPLICIT, BIG, DEFLATED)
SYNTAXES = (*NATIVE, RLE, LOSSLESS_JPEG, JPEG_LS, JPEG_2000)
Words = NDArray[Any]


@dataclass
class Recipe:
    """One file, and what is shown of it."""

    dataset: Dataset
    syntax: str
    frames: list[NDArray[np.float64]]
    """0 to 255, `(rows, columns)` or `(rows, columns, 3)`."""
    by_range: list[NDArray[np.float64]]
    """The same with the rule min-max; empty for colours."""
    kinds: set[str] = field(default_factory=set)
    """What is unusual about it."""

    def content(self) -> bytes:
        """Write the file."""
        return written(self.dataset)


def written(dataset: Dataset) -> bytes:
    """Write a data set as a file."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def recipe(seed: int) -> Recipe:
    """Make one by chance, the same for the same seed."""
    chance = random.Random(seed)
    numbers = np.random.default_rng(seed)
    syntax = chance.choice(SYNTAXES)
    kind = chance.choice(["grey"] * 6 + ["palette", "colour"])
    if kind == "colour":
        return _colour(chance, numbers, syntax)
    bits = Bits.by_chance(chance, syntax, palette=kind == "palette")
    frames = chance.choice([1, 1, 1, 2, 3])
    rows, columns = _size(chance, syntax)
    values = np.stack([smooth(numbers, rows, columns, bits.low, bits.high) for _ in range(frames)])
    dataset = empty(syntax, rows, columns, frames)
    bits.describe(dataset)
    made = Recipe(dataset, syntax, [], [], set(bits.kinds))
    if kind == "palette":
        _add_palette(made, chance, numbers, values, bits)
    else:
        _add_grey(made, chance, numbers, values, bits)
    add_pixels(dataset, syntax, bits.words(values, numbers), bits)
    return made


def _size(chance: random.Random, syntax: str) -> tuple[int, int]:
    # OpenJPEG's encoder halves the image five times, and CharLS's has no room for tiny ones.
    least = {JPEG_2000: 32, JPEG_LS: 12}.get(syntax, 3)
    return chance.randrange(least, least + 16), chance.randrange(least, least + 20)


# Stored values and their words.


@dataclass(frozen=True)
class Bits:
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    spare: str
    """What is in the unused bits: `zero`, `sign`, or `overlay`."""

    @classmethod
    def by_chance(cls, chance: random.Random, syntax: str, *, palette: bool) -> "Bits":
        allocated = chance.choice([8, 16, 16, 16])
        stored = 8 if allocated == 8 else chance.choice([9, 10, 12, 12, 12, 14, 16])
        if allocated == 8 and chance.random() < 0.2:
            stored = chance.choice([5, 7])
        high = stored - 1
        if syntax in (*NATIVE, RLE) and chance.random() < 0.15:
            high = allocated - 1
        spare = chance.choice(["zero", "sign", "overlay"])
        return cls(allocated, stored, high, not palette and chance.random() < 0.4, spare)

    @property
    def low(self) -> int:
        return -(1 << (self.stored - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        return self.low + (1 << self.stored) - 1

    @property
    def kinds(self) -> set[str]:
        return {f"spare {self.spare}"} | ({"high bit"} if self.high_bit >= self.stored else set())

    def describe(self, dataset: Dataset) -> None:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
            self.allocated,
            self.stored,
            self.high_bit,
        )
        dataset.PixelRepresentation = int(self.signed)

    def words(self, values: Words, numbers: np.random.Generator) -> Words:
        """Write values as words, whose unused bits hold what they may (PS3.5 8.1.1)."""
        found = (values & (2**self.stored - 1)) << (self.high_bit + 1 - self.stored)
        above = self.allocated - 1 - self.high_bit
        if self.spare == "sign" and above:
            found = found | np.where(values < 0, (2**above - 1) << (self.high_bit + 1), 0)
        if self.spare == "overlay" and above:
            plane = numbers.integers(0, 2, values.shape) * (1 << numbers.integers(0, above).item())
            found = found | plane << (self.high_bit + 1)
        return np.asarray(found.astype(f"u{self.allocated // 8}"))


def smooth(numbers: np.random.Generator, rows: int, columns: int, low: int, high: int) -> Words:
    """Values that differ little from pixel to pixel, as in images, from near `low` to near `high`."""
    slope = np.add.outer(np.linspace(0, 0.9, rows), np.linspace(0, 0.1, columns))
    noise = numbers.integers(0, max((high - low) // 64, 1), (rows, columns))
    found = np.clip(low + slope * (high - low) + noise, low, high).astype(np.int64)
    if numbers.integers(0, 2):
        found = low + high - found
    return np.asarray(found)


def empty(syntax: str, rows: int, columns: int, frames: int) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset = FileDataset("made", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 1
    if frames > 1:
        dataset.NumberOfFrames = frames
    return dataset


# Encodings.


def add_pixels(dataset: Dataset, syntax: str, words: Words, bits: Bits) -> None:
    """Encode `(frames, rows, columns[, 3])` words."""
    if syntax in NATIVE:
        order = ">" if syntax == BIG else "<"
        content = words.astype(f"{order}u{words.itemsize}").tobytes()
        content += b"\0" * (len(content) % 2)
        if syntax == BIG and words.itemsize == 1:
            dataset.add_new("PixelData", "OB", content)
        else:
            dataset.add_new("PixelData", "OW", content)
        return
    encode = {RLE: _rle, LOSSLESS_JPEG: _lossless_jpeg, JPEG_LS: _jpeg_ls, JPEG_2000: _jpeg_2000}[syntax]
    # Encoders that are told the header's bits refuse words that use others.
    precision = bits.stored if int(words.max()) < 2**bits.stored else bits.allocated
    dataset.PixelData = encapsulate([encode(frame, precision) for frame in words])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def _rle(frame: Words, _: int) -> bytes:
    planes = frame[..., np.newaxis] if frame.ndim == 2 else frame
    segments = []
    for sample in np.moveaxis(planes, -1, 0):
        as_bytes = sample.astype(f">u{sample.itemsize}").tobytes()
        for place in range(sample.itemsize):
            segments.append(_pack_bits(as_bytes[place :: sample.itemsize]))
    offsets, position = [], 64
    for segment in segments:
        offsets.append(position)
        position += len(segment)
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def _pack_bits(content: bytes) -> bytes:
    packed, position = b"", 0
    while position < len(content):
        run = 1
        while run < 128 and content[position : position + run + 1] == content[position : position + 1] * (
            run + 1
        ):
            run += 1
        if run > 1:
            packed += bytes((257 - run, content[position]))
        else:
            packed += bytes((0, content[position]))
        position += run
    return packed + b"\0" * (len(packed) % 2)


def _jpeg_ls(frame: Words, precision: int) -> bytes:
    samples = 3 if frame.ndim == 3 else 1
    mode = 2 if samples == 3 else 0
    found = jpeg_ls.encode_buffer(frame.tobytes(), *frame.shape[:2], samples, precision, interleave_mode=mode)
    return bytes(found) + b"\0" * (len(found) % 2)


def _jpeg_2000(frame: Words, precision: int) -> bytes:
    found = encode_array(
        frame,
        bits_stored=precision,
        photometric_interpretation=1 if frame.ndim == 3 else 2,
        use_mct=False,
    )
    return bytes(found) + b"\0" * (len(found) % 2)


def _lossless_jpeg(frame: Words, precision: int) -> bytes:
    """First-order prediction, each difference in its category (ITU-T T.81, annex H), by hand."""
    planes = frame[..., np.newaxis] if frame.ndim == 2 else frame
    values = planes.astype(int)
    predicted = np.empty_like(values)
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = values[:, :-1], values[:-1, 0], 1 << precision - 1
    stream = []
    # Differences are modulo 65536, and that of 32768 is category 16, without further bits.
    for difference in ((values - predicted + 32768) % 65536 - 32768).ravel().tolist():
        category = abs(difference).bit_length()
        stream.append(f"{category:05b}")
        if 0 < category < 16:
            stream.append(
                f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}"
            )
    text = "".join(stream)
    text += "1" * (-len(text) % 8)
    entropy = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    samples = planes.shape[2]
    codes = bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    components = b"".join(bytes([one + 1, 0x11, 0]) for one in range(samples))
    chosen = b"".join(bytes([one + 1, 0]) for one in range(samples))
    found = (
        b"\xff\xd8\xff\xc4"
        + struct.pack(">HB", 36, 0)
        + codes
        + b"\xff\xc3"
        + struct.pack(">HBHHB", 8 + 3 * samples, precision, *planes.shape[:2], samples)
        + components
        + b"\xff\xda"
        + struct.pack(">HB", 6 + 2 * samples, samples)
        + chosen
        + bytes([1, 0, 0])
        + entropy
        + b"\xff\xd9"
    )
    return found + b"\0" * (len(found) % 2)


# Grey: the modality step, the views, padding, functional groups.


def _add_grey(
    made: Recipe, chance: random.Random, numbers: np.random.Generator, values: Words, bits: Bits
) -> None:
    dataset = made.dataset
    dataset.PhotometricInterpretation = chance.choice(["MONOCHROME1", "MONOCHROME2"])
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    step = _modality_step(made, chance, numbers, bits)
    groups = len(values) > 1 and chance.random() < 0.5
    views = [_view(made, chance, numbers, step, groups) for _ in (values if groups else values[:1])]
    if groups:
        made.kinds.add("groups")
        dataset.PerFrameFunctionalGroupsSequence = [Dataset() for _ in values]
        dataset.SharedFunctionalGroupsSequence = [Dataset()]
        for group, view in zip(dataset.PerFrameFunctionalGroupsSequence, views, strict=True):
            group.FrameVOILUTSequence = [view.item]
    else:
        dataset.update(views[0].item)
    padding = _add_padding(made, chance, values, bits)
    for index, frame in enumerate(values):
        rescaled = step.apply(frame)
        shown = views[index if groups else 0].apply(rescaled)
        counted = rescaled[frame != padding] if padding is not None else rescaled
        low, high = (counted.min(), counted.max()) if counted.size else (0, 0)
        ranged = (
            np.clip((rescaled - low) / ((high - low) or 1) * 255, 0, 255) if counted.size else rescaled * 0.0
        )
        made.frames.append(255 - shown if inverted else shown)
        made.by_range.append(255 - ranged if inverted else ranged)


@dataclass
class _Step:
    low: float
    high: float
    slope: float = 1
    intercept: float = 0
    first: int = 0
    table: NDArray[np.int64] | None = None

    def apply(self, values: Words) -> NDArray[np.float64]:
        if self.table is None:
            return np.asarray(values * float(self.slope) + self.intercept)
        return np.asarray(self.table[np.clip(values - self.first, 0, len(self.table) - 1)] * 1.0)


def _modality_step(made: Recipe, chance: random.Random, numbers: np.random.Generator, bits: Bits) -> _Step:
    kind = chance.choice(["none", "rescale", "rescale", "table"])
    dataset = made.dataset
    if kind == "rescale":
        slope, intercept = chance.choice([1, 1, 2, 0.5, -1]), chance.choice([-1024, 0, -8192, 100])
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        low, high = sorted((bits.low * slope + intercept, bits.high * slope + intercept))
        return _Step(low, high, slope, intercept)
    if kind == "table":
        made.kinds.add("modality table")
        first, entries, width = _table(chance, numbers, bits.low, bits.high)
        item = Dataset()
        _write_table(made, item, chance, first, entries, width)
        dataset.ModalityLUTSequence = [item]
        return _Step(0, 2**width - 1, first=first, table=entries)
    return _Step(bits.low, bits.high)


def _table(
    chance: random.Random, numbers: np.random.Generator, low: float, high: float
) -> tuple[int, NDArray[np.int64], int]:
    """A rising or falling table that begins somewhere in the values that occur."""
    width = chance.choice([8, 10, 12, 16])
    span = int(min(high - low, 4095))
    first = int(np.clip(chance.choice([low, low + span // 4, 0]), max(low, -32768), min(high, 65535) - 1))
    count = chance.randrange(2, max(span, 3))
    entries = np.linspace(0, 2**width - 1, count).astype(np.int64)
    return first, entries if chance.random() < 0.8 else entries[::-1].copy(), width


def _write_table(
    made: Recipe, item: Dataset, chance: random.Random, first: int, entries: NDArray[np.int64], width: int
) -> None:
    """Write it with the right or the wrong VR, its entries as words or packed bytes."""
    as_signed = first < 0 and chance.random() < 0.4
    if first < 0:
        made.kinds.add("negative first")
    item.add_new(
        "LUTDescriptor",
        "SS" if as_signed else "US",
        [len(entries), first if as_signed else first % 65536, width],
    )
    order = ">" if made.syntax == BIG else "<"
    content = entries.astype(f"{order}u2").tobytes()
    if width == 8 and len(entries) % 2 == 0 and chance.random() < 0.4:
        made.kinds.add("packed table")
        packed = entries.astype(np.uint8)
        words = packed.view("<u2")
        content = words.astype(f"{order}u2").tobytes()
    if chance.random() < 0.3 and "packed table" not in made.kinds:
        item.add_new("LUTData", "US", entries.tolist())
    else:
        item.add_new("LUTData", "OW", content)


@dataclass
class _View:
    item: Dataset
    step: _Step
    center: float = 0
    width: float = 0
    function: str = ""
    first: int = 0
    table: NDArray[np.int64] | None = None
    bits: int = 0

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Show values by PS3.3 C.11.2.1, 0 to 255."""
        if self.table is not None:
            places = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.table) - 1)
            return np.asarray(self.table[places] / (2**self.bits - 1) * 255)
        if not self.function:
            return np.asarray((values - self.step.low) / (self.step.high - self.step.low) * 255)
        if self.function == "SIGMOID":
            return np.asarray(
                255 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -700, 700)))
            )
        if self.function == "LINEAR_EXACT":
            return np.asarray(np.clip((values - self.center) / self.width + 0.5, 0, 1) * 255)
        center, width = self.center - 0.5, self.width - 1
        shown = ((values - center) / (width or 1) + 0.5) * 255
        shown[values <= center - width / 2] = 0
        shown[values > center + width / 2] = 255
        return np.asarray(shown)


def _view(
    made: Recipe, chance: random.Random, numbers: np.random.Generator, step: _Step, groups: bool
) -> _View:
    item = Dataset()
    kind = chance.choice(["none", "window", "window", "window", "table"])
    if chance.random() < 0.2:
        item.VOILUTSequence = []
        made.kinds.add("empty sequence")
    if kind == "none":
        if chance.random() < 0.3:
            item.WindowCenter, item.WindowWidth = None, None
        return _View(item, step)
    if kind == "table" and step.high - step.low >= 4:
        made.kinds.add("voi table")
        first, entries, bits = _table(chance, numbers, step.low, step.high)
        inner = Dataset()
        _write_table(made, inner, chance, first, entries, bits)
        item.VOILUTSequence = [inner]
        return _View(item, step, first=first, table=entries, bits=bits)
    function = chance.choice(["", "", "LINEAR", "LINEAR_EXACT", "SIGMOID"])
    width = chance.choice([1, 2, round((step.high - step.low) / 2) + 1, round(step.high - step.low) + 2])
    center = round(step.low + (step.high - step.low) * chance.random())
    centers, widths = [center], [width]
    if chance.random() < 0.2:
        made.kinds.add("width 0")
        centers, widths = [chance.choice([0, center]), center], [0, width]
    if chance.random() < 0.3:
        centers, widths = [*centers, 1], [*widths, 7]
    item.WindowCenter, item.WindowWidth = centers, widths
    if function or chance.random() < 0.4:
        item.VOILUTFunction = function or None
    return _View(item, step, center, width, function or "LINEAR")


def _add_padding(made: Recipe, chance: random.Random, values: Words, bits: Bits) -> int | None:
    if chance.random() < 0.6:
        return None
    padding = bits.low
    values[:, 0, :2] = padding
    signed = chance.random() < 0.5
    made.kinds.add("padding")
    inside = padding if signed else padding % 2**16
    vr = "SS" if signed else "US"
    made.dataset.add_new("PixelPaddingValue", vr, inside)
    return padding


# Palettes and colours.


def _add_palette(
    made: Recipe, chance: random.Random, numbers: np.random.Generator, values: Words, bits: Bits
) -> None:
    made.kinds.add("palette")
    made.dataset.PhotometricInterpretation = "PALETTE COLOR"
    width, count = chance.choice([8, 16]), chance.choice([16, 200, 256, min(2**bits.stored, 4096)])
    first = chance.choice([0, 0, 3])
    order = ">" if made.syntax == BIG else "<"
    tables = []
    for colour in ("Red", "Green", "Blue"):
        entries = np.sort(numbers.integers(0, 2**width, count))
        entries[-1] = 2**width - 1
        made.dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [count, first, width])
        content = entries.astype(f"{order}u2").tobytes()
        if width == 8 and count % 2 == 0 and made.syntax != BIG:
            content = entries.astype(np.uint8).tobytes()
        made.dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", content)
        tables.append(entries if width == 8 else entries >> 8)
    for frame in values:
        places = np.clip(frame - first, 0, count - 1)
        made.frames.append(np.stack([table[places] for table in tables], axis=-1).astype(np.float64))


def _colour(chance: random.Random, numbers: np.random.Generator, syntax: str) -> Recipe:
    choices = ["RGB", "YBR_FULL"] + (["YBR_FULL_422"] if syntax in NATIVE else [])
    photometric = chance.choice(choices)
    stored = chance.choice([8, 8, 8, 12, 16]) if photometric == "RGB" else 8
    allocated = 8 if stored == 8 else 16
    bits = Bits(allocated, stored, stored - 1, signed=False, spare="zero")
    rows, columns = _size(chance, syntax)
    columns, frames = columns * 2, chance.choice([1, 2])
    values = np.stack(
        [
            np.stack([smooth(numbers, rows, columns, 0, 2**stored - 1) for _ in range(3)], axis=-1)
            for _ in range(frames)
        ]
    )
    dataset = empty(syntax, rows, columns, frames)
    bits.describe(dataset)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, photometric
    dataset.PlanarConfiguration = (
        chance.choice([0, 1]) if syntax in NATIVE and photometric != "YBR_FULL_422" else 0
    )
    made = Recipe(dataset, syntax, [], [], {photometric})
    words = values.astype(f"u{allocated // 8}")
    if photometric == "YBR_FULL_422":
        values[..., 1:] = np.repeat(values[:, :, ::2, 1:], 2, axis=2)
        words = values.astype(np.uint8)
        pairs = words.reshape(frames, rows, columns // 2, 2, 3)
        words = np.concatenate([pairs[..., 0], pairs[:, :, :, 0, 1:]], axis=-1)
    elif dataset.PlanarConfiguration:
        words = np.moveaxis(words, -1, 1)
    add_pixels(dataset, syntax, np.ascontiguousarray(words), bits)
    shown = values.astype(float)
    if photometric != "RGB":
        luma, blue, red = shown[..., 0], shown[..., 1] - 128, shown[..., 2] - 128
        shown = np.stack(
            [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1
        )
    made.frames += list(np.clip(shown / (2**stored - 1) * 255, 0, 255))
    return made
