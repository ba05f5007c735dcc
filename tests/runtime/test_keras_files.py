"""Keras files read in a bounded process: what bombs and damages cost, and what survives the copy."""

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from medimg.runtime.errors import ModelError
from medimg.runtime.machine.bounded import Bounds, call
from medimg.runtime.model.keras_files import reading
from medimg.runtime.model.keras_files.configuration import parse

MB = 2**20


def weights(path: Path) -> Path:
    """Write weights of two layers, filed as Keras 2 does."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv", b"dense"]
        for name, shape in (("conv", (3, 3, 3, 4)), ("dense", (4, 2))):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            group[f"{name}/kernel:0"] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return path


def text_bomb(path: Path) -> None:
    """Have 3,500 references of a list of names point at one text of 5 MB: 17 GB when read."""
    count, length = 3500, 5 * MB
    with h5py.File(path, "r+") as file:
        del file.attrs["layer_names"]
        texts = np.array(["B" * length] + ["x"] * (count - 1), dtype=object)
        file.attrs.create("layer_names", texts, dtype=h5py.string_dtype())
    content = bytearray(path.read_bytes())
    first, one, place = struct.pack("<I", length), struct.pack("<I", 1), -1
    while True:
        place = content.index(first, place + 1)
        if content[place + 16 : place + 20] == one and content[place + 32 : place + 36] == one:
            break
    content[place : place + 16 * count] = content[place : place + 16] * count
    path.write_bytes(content)


def varying(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["conv"].create_dataset("notes", (1 << 21,), h5py.string_dtype(), chunks=(1 << 16,))


def references(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["conv"].create_dataset("refs", data=np.array([file.ref] * 4, dtype=h5py.ref_dtype))


def compound(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["conv"].create_dataset("pairs", (4,), np.dtype([("a", "f4"), ("b", "f4")]))


def twice(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["conv/again"] = file["dense"]


def circle(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["conv/root"] = file["/"]


def deep(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = file["conv"]
        for _ in range(3000):
            group = group.create_group("g")


def many(path: Path) -> None:
    with h5py.File(path, "r+", libver="latest") as file:
        group = file["conv"]
        for number in range(20_001):
            h5py.h5g.create(group.id, b"%x" % number)


def huge_pieces(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["conv"].create_dataset("wide", (1 << 27,), "f4", chunks=(1 << 27,), compression="gzip")


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "texts": (text_bomb, "more than 1536 MiB of memory"),
    "varying lengths": (varying, "/conv/notes holds object, no numbers"),
    "references": (references, "/conv/refs holds object, no numbers"),
    "compound": (compound, "no numbers"),
    "twice": (twice, "is another part of it once more"),
    "circle": (circle, "is another part of it once more"),
    "deep": (deep, "nested too deeply"),
    "many": (many, "more than 20,000 parts"),
    "huge pieces": (huge_pieces, "its arrays unfold to|in pieces of"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_name(tmp_path: Path, name: str) -> None:
    make, message = BOMBS[name]
    path, folder = weights(tmp_path / "bomb.h5"), tmp_path / "copy"
    folder.mkdir()
    make(path)
    with pytest.raises(ModelError, match=message):
        reading.read(path, folder / "arrays.h5")


def test_the_copy_holds_the_same_numbers_and_names(tmp_path: Path) -> None:
    path = weights(tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = '{"class_name": "Sequential"}'
        file.attrs["keras_version"] = "2.4.0"
        file.create_group("model_weights")
        for name in ("conv", "dense"):
            file.move(name, f"model_weights/{name}")
        file["model_weights"].attrs["layer_names"] = file.attrs["layer_names"]
        half = np.arange(6, dtype=np.float16).reshape(2, 3)
        file["model_weights/conv"].create_dataset("packed", data=half, chunks=(1, 3), compression="gzip")
        file["model_weights/conv"]["scalar"] = np.int64(7)
        file["model_weights/conv"]["empty"] = np.zeros((0, 3), np.float32)
    parts = reading.read(path, tmp_path / "arrays.h5")
    assert (parts.layout, parts.version, parts.weights) == (".h5", "2.4.0", "keras-2")
    with h5py.File(path) as old, h5py.File(tmp_path / "arrays.h5") as new:
        names: list[str] = []
        old["model_weights"].visititems(
            lambda name, item: names.append(name) if hasattr(item, "shape") else None
        )
        assert len(names) == 5
        for name in names:
            before, after = old["model_weights"][name], new["model_weights"][name]
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before[()], after[()])
        assert list(new["model_weights"].attrs["layer_names"]) == [b"conv", b"dense"]


def damaged(content: bytes, seed: int) -> bytes:
    """Change, cut or double some bytes."""
    generator = random.Random(seed)
    changed = bytearray(content)
    for _ in range(generator.choice((1, 3, 20))):
        changed[generator.randrange(len(changed))] = generator.choice((0, 255, generator.randrange(256)))
    if generator.random() < 0.3:
        del changed[generator.randrange(len(changed)) :]
    return bytes(changed)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 600), marks=pytest.mark.soak)])
def test_damaged_files_are_read_or_are_one_message(tmp_path: Path, seeds: range) -> None:
    content, refused = weights(tmp_path / "good.h5").read_bytes(), dict[str, str]()
    for seed in seeds:
        path, folder = tmp_path / f"{seed}.h5", tmp_path / f"copy{seed}"
        folder.mkdir()
        path.write_bytes(damaged(content, seed))
        try:
            reading.read(path, folder / "arrays.h5")
        except ModelError as error:
            refused[str(path)] = str(error)
    assert refused
    assert all(path in message for path, message in refused.items())


def loops(_text: str) -> None:
    while True:
        time.process_time()


def crashes(_text: str) -> None:
    import ctypes

    ctypes.string_at(0)


def fills(_text: str) -> None:
    bytearray(2**40)


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "message"), [("loops", "longer than 1 s"), ("crashes", "SIGSEGV"), ("fills", "MiB of memory")]
)
def test_what_a_process_does_to_itself_is_one_message(task: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"^a\.h5: .*{message}"):
        call(f"{__name__}:{task}", "", bounds=Bounds(cpu_s=1), subject="a.h5")


def test_a_bounded_process_leaves_no_compiled_module_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound on written bytes would cut it, and every later process would read it."""
    (tmp_path / "late_module.py").write_text(
        "VALUE = [" + "'x', " * 4000 + "]\ndef give():\n    return len(VALUE)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert call("late_module:give", bounds=Bounds(written_bytes=1000), subject="a") == 4000
    assert not list(tmp_path.glob("__pycache__/*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"class_name": "\\ud800"}', "half characters"),
        ('{"class_name": "Dense", "units": ' + "9" * 30 + "}", "a number of 30 digits"),
        ('{"class_name": ' + "[" * 100_000, "not JSON"),
        ("[1, 2]", "names no model"),
    ],
)
def test_configurations_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse(Path("a.keras"), text)
