"""The kit for a bare machine with a GPU: what it leaves out can be put back, and what is cut off is kept."""

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow  # its zstd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_kit import run
from gpu_kit.cut_library import cut_library, entries
from gpu_kit.run import Step
from gpu_kit.seeded import Drawn, put_back, take_out

NEEDED, ATTENTION = b"\0.text.relu_kernel\0", b"\0.text.flash_fwd_kernel\0"


@given(st.lists(st.binary(max_size=40), min_size=3, max_size=3), st.sampled_from(["float16", "float32"]))
def test_a_file_without_its_seeded_weights_is_rebuilt(parts: list[bytes], dtype: str) -> None:
    drawn = [Drawn(0, (4, 3, 3, 3)), Drawn(1, (2, 4, 3, 3))]
    whole = parts[0] + b"".join(
        array.values().astype(dtype).tobytes() + part for array, part in zip(drawn, parts[1:], strict=True)
    )
    left, cuts = take_out(whole, reversed(drawn))
    assert left == b"".join(parts)
    assert put_back(left, cuts) == whole


def test_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="seed 7"):
        take_out(b"nothing of the kind", [Drawn(7, (2, 3, 3, 3))])


def test_seeded_weights_fit_into_float16_and_are_no_others_tomorrow() -> None:
    values = Drawn(3, (64, 64, 3, 3)).values()
    assert np.array_equal(values, values.astype(np.float16).astype(np.float32))
    assert values.ravel()[:3].tolist() == [-0.0845947265625, -0.0537109375, 0.061492919921875]
    assert abs(values.std() / np.sqrt(2 / (64 * 9)) - 1) < 0.02


def test_code_of_other_cards_and_of_attention_becomes_zeros() -> None:
    library = _library([(80, NEEDED), (90, NEEDED), (90, ATTENTION), (120, ATTENTION)])
    found = cut_library(library, 90)
    assert len(found) == len(library)
    kept = [any(found[entry.start : entry.start + entry.size]) for entry in entries(library)]
    assert kept == [False, True, False, False]
    beside = bytearray(library)
    for entry in entries(library):
        beside[entry.start : entry.start + entry.size] = found[entry.start : entry.start + entry.size]
    assert bytes(beside) == found


def test_a_library_without_code_for_the_card_is_refused() -> None:
    with pytest.raises(ValueError, match="compute capability 90"):
        cut_library(_library([(80, NEEDED)]), 90)


@pytest.mark.long
def test_a_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that end well, fail and hang: each keeps the figures that it had written."""
    kit = tmp_path / "kit"
    (kit / "gpu_kit").mkdir(parents=True)
    (kit / "gpu_kit" / "__init__.py").touch()
    (kit / "gpu_kit" / "steps.py").write_text(
        "import pathlib, sys, time\n"
        "name, report, seconds = sys.argv[1:]\n"
        "pathlib.Path(report).write_text('{\"figure\": ' + seconds + '}')\n"
        "time.sleep(60 * (name == 'hangs'))\n"
        "sys.exit(name == 'fails')\n"
    )
    monkeypatch.setattr(run, "KIT", kit)
    steps = (Step("works", 20), Step("fails", 20), Step("hangs", 8), Step("works_too", 20))
    assert run.main(["--output", str(tmp_path / "out"), "--seconds", "4"], steps) == 1
    found = json.loads((tmp_path / "out" / "gpu-kit.json").read_text())["steps"]
    assert [(name, result["status"]) for name, result in found.items()] == [
        ("works", "done"),
        ("fails", "failed"),
        ("hangs", "timed out"),
        ("works_too", "done"),
    ]
    assert all(result["found"] == {"figure": 4.0} for result in found.values())
    assert run.main(["--output", str(tmp_path / "again"), "--step", "works"], steps) == 0


def _library(parts: list[tuple[int, bytes]]) -> bytes:
    """Make an ELF file whose one section of machine code holds entries: compute capability and code each."""
    held = b"".join(_entry(compute, code) for compute, code in parts)
    fat = b"\0" * 8 + struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(held)) + held
    names = b"\0.nv_fatbin\0.shstrtab\0"
    start = 64
    sections = [
        struct.pack("<IIQQQQIIQQ", name, 0, 0, 0, offset, size, 0, 0, 1, 0)
        for name, offset, size in ((0, 0, 0), (1, start, len(fat)), (12, start + len(fat), len(names)))
    ]
    header = bytearray(64)
    struct.pack_into("<Q", header, 0x28, start + len(fat) + len(names))
    struct.pack_into("<HHH", header, 0x3A, 64, len(sections), 2)
    return bytes(header) + fat + names + b"".join(sections)


def _entry(compute: int, code: bytes) -> bytes:
    packed: bytes = pyarrow.compress(code, codec="zstd", asbytes=True)
    size = -(-len(packed) // 8) * 8
    header = bytearray(64)
    struct.pack_into("<HHIQI", header, 0, 2, 1, 64, size, len(packed))
    struct.pack_into("<I", header, 28, compute)
    struct.pack_into("<Q", header, 56, len(code))
    return bytes(header) + packed.ljust(size, b"\0")
