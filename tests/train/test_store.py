"""The store of arrays: what is made once, writers at once, a writer killed half-way, a disk without room."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.errors import UsageError
from medimg.train.data.array_store import ArrayStore, Stored, key_of, open_store

MIB = 2**20


def numbers(batches: int = 4, size: int = 8) -> Iterator[NDArray[np.int32]]:
    for batch in range(batches):
        yield np.arange(batch * size, (batch + 1) * size, dtype=np.int32).reshape(-1, 2)


def never() -> Iterator[NDArray[np.int32]]:
    raise AssertionError("what is in the store is made again")
    yield


@pytest.mark.parametrize("kind", ["uint8", "float32", "float16", "bool", ml_dtypes.bfloat16])
def test_an_array_is_made_once_and_found_again(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (7, 3, 2)).astype(kind)
    made = ArrayStore(tmp_path).array("a" * 64, 7, iter([values[:4], values[4:]]), lambda: ["one is missing"])
    found = ArrayStore(tmp_path, kept=True).array("a" * 64, 7, never())
    for stored in (made, found):
        assert stored.values.dtype == values.dtype
        np.testing.assert_array_equal(stored.values, values)
        assert stored.notes == ("one is missing",)
        with pytest.raises(ValueError, match="read-only"):
            stored.values[0] = 0
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["key.partial", "key.lock"])
def test_a_link_in_the_place_of_a_file_is_not_followed(name: str, tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "store"
    elsewhere.write_bytes(b"mine")
    folder.mkdir()
    (folder / name).symlink_to(elsewhere)
    with contextlib.suppress(UsageError), open_store(folder) as store:
        store.array("key", 16, numbers())
    assert elsewhere.read_bytes() == b"mine"


def test_fewer_rows_than_expected(tmp_path: Path) -> None:
    assert ArrayStore(tmp_path).array("key", 1000, numbers()).values.shape == (16, 2)


def test_a_part_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[NDArray[np.int32]]:
        yield from numbers()
        raise KeyError

    store = ArrayStore(tmp_path)
    with pytest.raises(KeyError):
        store.array("key", 16, failing())
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    assert store.array("key", 16, numbers()).values.sum() == sum(range(32))


@pytest.mark.parametrize("name", ["key.array", "key.json"])
@pytest.mark.parametrize("content", [None, b"", b'{"shape": [1], "dtype": "uint8", "notes": []}'])
def test_files_that_are_lost_or_cut_are_made_again(name: str, content: bytes | None, tmp_path: Path) -> None:
    store = ArrayStore(tmp_path)
    store.array("key", 16, numbers())
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    assert store.array("key", 16, numbers()).values.sum() == sum(range(32))


WRITER = """
import os, sys, time
from pathlib import Path
import numpy as np
from medimg.train.data.array_store import ArrayStore

store, folder, pause = ArrayStore(Path(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3])

def batches():
    for batch in np.arange(32, dtype=np.int32).reshape(4, 4, 2):
        (folder / str(os.getpid())).touch()
        time.sleep(pause)
        yield batch

assert store.array("key", 16, batches()).values.sum() == sum(range(32))
"""


def start_writer(store: Path, marks: Path, pause_s: float) -> "subprocess.Popen[bytes]":
    """Start a process that makes the array, and leaves its number under `marks` once it has begun."""
    marks.mkdir(exist_ok=True)
    store.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", WRITER, str(store), str(marks), str(pause_s)])


def test_a_killed_writer_s_part_is_never_taken_for_the_whole(tmp_path: Path) -> None:
    folder, marks = tmp_path / "store", tmp_path / "marks"
    with start_writer(folder, marks, 600) as writer:
        while not any(marks.iterdir()):
            assert writer.poll() is None
            time.sleep(0.01)
        writer.kill()
    assert (folder / "key.partial").exists()
    store = ArrayStore(folder)
    assert not (folder / "key.partial").exists()
    np.testing.assert_array_equal(store.array("key", 16, numbers()).values, np.concatenate(list(numbers())))


def test_of_writers_at_once_one_writes_and_all_are_served(tmp_path: Path) -> None:
    folder, marks = tmp_path / "store", tmp_path / "marks"
    writers = [start_writer(folder, marks, 0.1) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(list(marks.iterdir())) == 1


def test_a_living_writer_s_part_is_left_alone(tmp_path: Path) -> None:
    def looked_at() -> Iterator[NDArray[np.int32]]:
        for batch in numbers():
            ArrayStore(tmp_path)
            assert (tmp_path / "key.partial").exists()
            yield batch

    assert ArrayStore(tmp_path).array("key", 16, looked_at()).values.shape == (16, 2)


def test_a_disk_without_room_is_found_before_the_second_batch(tmp_path: Path) -> None:
    asked = []

    def watched() -> Iterator[NDArray[np.int32]]:
        for batch in numbers():
            asked.append(batch)
            yield batch

    with pytest.raises(UsageError, match=r"the cache needs 8000000000\.0 GB, .* are free: name a folder"):
        ArrayStore(tmp_path).array("key", 10**18, watched())
    assert len(asked) == 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(UsageError, match="the cache cannot be written"):
            ArrayStore(tmp_path).array("key", 2, iter([np.zeros((1, 2 * MIB), np.uint8)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


def test_memory_does_not_grow_with_the_array(tmp_path: Path) -> None:
    """256 MiB in batches of 1 MiB: what the process holds of its own grows by a few batches."""
    batch = np.zeros((16, MIB // 16), np.uint8)
    before = own_memory()
    stored = ArrayStore(tmp_path).array("key", 4096, (batch + np.uint8(number) for number in range(256)))
    rows = np.random.default_rng(0).permutation(4096)
    total = sum(int(stored.values[rows[start : start + 16]].sum()) for start in range(0, 4096, 16))
    assert total == MIB * sum(range(256))
    assert own_memory() - before < 32 * MIB


def own_memory() -> int:
    """Bytes that belong to this process alone; mapped files can be dropped whenever memory is short."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(kib) * 1024


def test_a_store_without_a_folder_leaves_nothing() -> None:
    with open_store(None) as store:
        stored: Stored = store.array("key", 16, numbers())
        assert stored.values.shape == (16, 2)
    assert not store.folder.exists()


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_uses_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import sys, time; from medimg.train.data.array_store import open_store\n"
        "with open_store(None): print(flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        (used,) = tmp_path.iterdir()
        with open_store(None):
            assert used.exists()
        run.kill()
    assert used.exists()
    with open_store(None) as store:
        assert [store.folder] == list(tmp_path.iterdir())


def test_keys_do_not_run_into_one_another() -> None:
    keys = {key_of("ab", "c"), key_of("a", "bc"), key_of("abc"), key_of("abc", ""), key_of("a\udcff", "bc")}
    assert len(keys) == 5
