"""Real PNG, JPEG, TIFF, BMP and DICOM files, damaged: each must end in a result or a typed error.

`mutated_inputs.py` damages 20,000 files and writes results/mutated-inputs.json. The inputs are decoded in a
process of its own, so that a crash is seen, counted and named by its seed; `--seed N --inputs 1` repeats it.
"""

import argparse
import importlib
import os
import random
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray

from figures import write_figure
from medimg.runtime.errors import ImageError
from medimg.runtime.files.plain import to_plain
from medimg.runtime.images.headers import PNG_SIGNATURE
from medimg.runtime.images.load import load_frames
from medimg.runtime.images.rule import ImageRule
from registry import Figure

NAME = "mutated-inputs"
INPUTS = 20_000
STUCK_S = 15.0
"""After so long without an answer the process counts as hanging, and is killed."""
MAX_GROWTH_MB = 50.0
_MAX_SOURCE_BYTES = 300_000
_EVERY = 20
"""Inputs between two looks at the process's memory."""

RULES = (
    ImageRule(64, 48),
    ImageRule(64, 64, "letterbox", dicom_window="min-max"),
    ImageRule(32, 32, "crop", sixteen_bit="min-max", jpeg="dct-scaled"),
    ImageRule(48, 64, "stretch-area", orientation="ignore", dicom_window="window-1"),
)

Source = tuple[str, bytes]
"""A file's name and content."""
Check = Callable[[int, Path], str]
"""Tries the input of a seed, in a folder for its files, and says in one line how it ended."""


@dataclass
class Outcome:
    """How the inputs ended."""

    inputs: int
    first_seed: int
    endings: Counter[str] = field(default_factory=Counter)
    """`result`, `refused`, or a decoder that a refused file ended: how many of each."""
    untyped: dict[int, str] = field(default_factory=dict)
    """Seeds whose error was no ImageError."""
    crashes: dict[int, int] = field(default_factory=dict)
    """Seeds that ended the process, and its exit status."""
    hangs: list[int] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest_seed: int = 0
    rss_mb: list[float] = field(default_factory=list)
    """Resident memory of the last process, looked at now and then."""

    @property
    def growth_mb(self) -> float:
        """Memory in the last quarter above that in the second, each by its median."""
        quarter = len(self.rss_mb) // 4
        if not quarter:
            return 0.0
        early, late = self.rss_mb[quarter : 2 * quarter], self.rss_mb[-quarter:]
        return round(statistics.median(late) - statistics.median(early), 1)

    @property
    def faults(self) -> list[str]:
        """What must not happen, each in a line."""
        found = [f"seed {seed}: {error}" for seed, error in self.untyped.items()]
        found += [f"seed {seed}: ended the process ({status})" for seed, status in self.crashes.items()]
        found += [f"seed {seed}: no answer after {STUCK_S:g} s" for seed in self.hangs]
        if self.growth_mb > MAX_GROWTH_MB:
            found.append(f"memory grew by {self.growth_mb} MB")
        return found


def run(inputs: int, first_seed: int = 0, check: str = "mutated_inputs:check") -> Outcome:
    """Try inputs in a child, and go on in a new one after those that end it.

    Args:
        inputs: how many.
        first_seed: the others count up from it.
        check: `module:name` of a `Check`.
    """
    outcome = Outcome(inputs, first_seed)
    seed, end = first_seed, first_seed + inputs
    with tempfile.TemporaryDirectory() as folder:
        while seed < end:
            seed = _watch(outcome, seed, end, check, folder)
    return outcome


def check(seed: int, folder: Path) -> str:
    """Read one damaged file by one of several rules."""
    name, content = damaged(seed)
    path = folder / f"input{Path(name).suffix}"
    path.write_bytes(content)
    try:
        for image in load_frames(path, RULES[seed % len(RULES)]):
            assert image.dtype == np.uint8
    except ImageError as error:
        reason = str(error)
        if "its decoder crashed" in reason:
            return "refused: its decoder's own process crashed"
        return "refused: its decoder took too long" if "its decoder took longer" in reason else "refused"
    finally:
        path.unlink()
    return "result"


def damaged(seed: int) -> tuple[str, bytes]:
    """Give a source's name and its content with one kind of damage, always the same for a seed."""
    generator = random.Random(seed)  # noqa: S311  reproducible damage, no secret
    name, content = _pick(generator)
    changed = generator.choice(DAMAGE)(content, generator)
    # A PNG whose checksums are wrong gets no further than them.
    return name, _with_checksums(changed) if generator.random() < 0.7 else changed


def _pick(generator: random.Random) -> Source:
    """Choose pictures as often as DICOM files, and each format or transfer syntax as often as the others."""
    found = sources()
    dicom = generator.random() < 0.5
    return generator.choice(
        found[generator.choice([kind for kind in found if kind.startswith("1.") == dicom])]
    )


def _with_checksums(content: bytes) -> bytes:
    """Make the checksums of a PNG's chunks right; leave other files alone."""
    changed, position = bytearray(content), len(PNG_SIGNATURE)
    while content.startswith(PNG_SIGNATURE) and position + 12 <= len(changed):
        (length,) = struct.unpack_from(">I", changed, position)
        end = position + 8 + length
        if end + 4 > len(changed):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[position + 4 : end]))
        position = end + 4
    return bytes(changed)


def _flipped(content: bytes, generator: random.Random) -> bytes:
    """Flip bits, anywhere or near the start."""
    changed = bytearray(content)
    end = generator.choice([len(changed), min(len(changed), 600), min(len(changed), 3000)])
    for _ in range(generator.choice([1, 2, 8, 64])):
        changed[generator.randrange(end)] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _truncated(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


def _spliced(content: bytes, generator: random.Random) -> bytes:
    """Put the start of another file before this one's rest, or write over a part of its start."""
    _, other = _pick(generator)
    head = generator.randrange(1, min(len(content), len(other), 2000))
    if generator.random() < 0.5:
        return other[:head] + content[head:]
    at = generator.randrange(min(len(content), 2000))
    return content[:at] + other[at : at + head] + content[at + head :]


def _overwritten(content: bytes, generator: random.Random) -> bytes:
    """Put extreme numbers where sizes may stand."""
    changed = bytearray(content)
    for _ in range(generator.choice([1, 3])):
        width = generator.choice([1, 2, 4])
        at = generator.randrange(min(len(changed), 2000))
        changed[at : at + width] = generator.choice([b"\0", b"\xff", b"\x7f", b"\x01"]) * width
    return bytes(changed)


def _shifted(content: bytes, generator: random.Random) -> bytes:
    """Leave some bytes out, or repeat them."""
    at, length = generator.randrange(len(content)), generator.randrange(1, 300)
    kept = content[at : at + length] * generator.choice([0, 2])
    return content[:at] + kept + content[at + length :]


DAMAGE = (_flipped, _truncated, _spliced, _overwritten, _shifted)


@cache
def sources() -> dict[str, list[Source]]:
    """Read small real files, by suffix or transfer syntax; some pictures hold the pixels of DICOM files."""
    folders = [Path(pydicom.__file__).parent / "data/test_files", Path(str(files("data_store"))) / "data"]
    paths = [path for folder in folders for path in sorted(folder.rglob("*"))]
    if real := os.environ.get("MEDIMG_TEST_DATA"):
        paths += [
            *sorted(Path(real).glob("dicom/*/*")),
            *sorted(Path(real).glob("images/brain-mri/test/*/*"))[::10],
        ]
    found: dict[str, list[Source]] = {}
    for path in paths:
        if path.is_file() and path.stat().st_size <= _MAX_SOURCE_BYTES:
            _sort_in(found, path)
    for name, content in [source for kind in list(found) for source in found[kind][:3]]:
        for picture_name, picture in _as_pictures(name, content):
            found.setdefault(Path(picture_name).suffix, []).append((picture_name, picture))
    return found


def _sort_in(found: dict[str, list[Source]], path: Path) -> None:
    """Enter a file that can be read; of others there is nothing to damage."""
    try:
        next(load_frames(path, RULES[1]))
    except ImageError:
        return
    content, kind = path.read_bytes(), path.suffix
    if content[128:132] == b"DICM":
        kind = str(pydicom.dcmread(path, stop_before_pixels=True).file_meta.get("TransferSyntaxUID", "1."))
    found.setdefault(kind, []).append((path.name, content))


def _as_pictures(name: str, content: bytes) -> list[Source]:
    """Encode a file's first frame in the formats that cameras and tools write."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        pixels = next(load_frames(path, RULES[1]))
    grey, deep = pixels[..., 0], pixels.astype(np.uint16) * 257
    kinds: dict[str, list[NDArray[Any]]] = {
        "a.png": [pixels, grey, deep],
        "a.jpg": [pixels, grey],
        "a.tif": [pixels, deep, pixels.astype(np.float32) / 255],
        "a.bmp": [pixels, grey],
    }
    pages = cv2.imencodemulti(".tif", [pixels, grey, deep])[1]
    return [
        *(
            (kind, cv2.imencode(kind[1:], array)[1].tobytes())
            for kind, arrays in kinds.items()
            for array in arrays
        ),
        ("a.tif", pages.tobytes()),
    ]


def _watch(outcome: Outcome, seed: int, end: int, check: str, folder: str) -> int:
    """Follow one child from a seed on; give the seed that another must go on with."""
    command = [sys.executable, __file__, "--child", check, str(seed), str(end), folder]
    # A real file is used as a pipe's end, unbuffered, so that no line waits where `select` does not see it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as child:
        assert child.stdout is not None
        outcome.rss_mb.clear()
        started = time.monotonic()
        # The first answer also waits for imports and for the sources to be read.
        patience_s = STUCK_S + 60
        pending = b""
        while True:
            left_s = started + patience_s - time.monotonic()
            if left_s <= 0 or not select.select([child.stdout], [], [], left_s)[0]:
                child.kill()
                outcome.hangs.append(seed)
                return seed + 1
            piece = os.read(child.stdout.fileno(), 65536)
            if not piece:
                break
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                seed = _note(outcome, line.decode())
            started, patience_s = time.monotonic(), STUCK_S
        status = child.wait()
    if seed < end:
        outcome.crashes[seed] = status
        return seed + 1
    return end


def _note(outcome: Outcome, line: str) -> int:
    """Enter a child's line: seed, seconds, memory and ending; give the next seed."""
    seed_text, seconds, rss_mb, ending = line.split("\t")
    seed = int(seed_text)
    if ending.startswith("untyped "):
        outcome.untyped[seed] = ending
    else:
        outcome.endings[ending] += 1
    if float(seconds) > outcome.slowest_s:
        outcome.slowest_s, outcome.slowest_seed = float(seconds), seed
    if seed % _EVERY == 0:
        outcome.rss_mb.append(float(rss_mb))
    return seed + 1


def _child(check: str, first: int, end: int, folder: Path) -> None:
    module, _, name = check.partition(":")
    tried: Check = getattr(importlib.import_module(module), name)
    for seed in range(first, end):
        started = time.monotonic()
        try:
            ending = tried(seed, folder)
        except Exception as error:  # noqa: BLE001  every other error is what is looked for
            ending = f"untyped {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(f"{seed}\t{time.monotonic() - started:.3f}\t{_rss_mb():.1f}\t{ending}", flush=True)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def as_figure(inputs: int, seed: int) -> Figure:
    """Make what `figures.write_figure` calls."""

    def mutated_inputs() -> dict[str, Any]:
        """Damaged real files, each decoded to a result or a typed error."""
        outcome = run(inputs, seed)
        plain: dict[str, Any] = to_plain(outcome)
        return {
            "command": f"python benchmarks/mutated_inputs.py --write --inputs {inputs} --seed {seed}",
            **plain,
            "rss_mb": outcome.rss_mb[:: max(len(outcome.rss_mb) // 20, 1)],
            "growth_mb": outcome.growth_mb,
            "faults": outcome.faults,
        }

    return mutated_inputs


def write(inputs: int, seed: int = 0) -> Path:
    """Run, and write the result beside the other figures."""
    return write_figure(NAME, as_figure(inputs, seed))


def main() -> None:
    """Run as a command; exit status 1 where something happened that must not."""
    if sys.argv[1:2] == ["--child"]:
        warnings.simplefilter("ignore")
        check_name, first, end, folder = sys.argv[2:]
        _child(check_name, int(first), int(end), Path(folder))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write results/mutated-inputs.json")
    options = parser.parse_args()
    if options.write:
        print(f"wrote {write(options.inputs, options.seed)}")
        return
    outcome = run(options.inputs, options.seed)
    print(dict(outcome.endings), f"slowest {outcome.slowest_s} s (seed {outcome.slowest_seed})")
    print(f"memory: {outcome.rss_mb[:1]} to {outcome.rss_mb[-1:]} MB, growth {outcome.growth_mb} MB")
    sys.exit("\n".join(outcome.faults) or 0)


if __name__ == "__main__":
    main()
