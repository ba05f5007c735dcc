"""Arrays kept in files under the hash of what they were made from, and mapped into memory when used.

A key has three files: `KEY.array`, the plain values; `KEY.json`, their shape and type, whose presence says
that the array is whole; and `KEY.lock`, which its writer holds. The operating system releases the lock of a
process that is killed, so that what it left under `KEY.partial` is known to be dead.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import UsageError
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.files.writing import replaced


@dataclass(frozen=True)
class Stored:
    """A whole array of a store."""

    key: str
    """The hash of what it was made from."""
    values: NDArray[Any]
    """`(rows, …)`, mapped read-only from its file."""
    notes: tuple[str, ...] = ()
    """What its maker had to say."""


class ArrayStore:
    """A folder of arrays under content keys; several processes may use it at once."""

    def __init__(self, folder: Path, *, kept: bool = False) -> None:
        """Take a folder.

        Args:
            folder: it must exist.
            kept: whether it outlives the run, so that what is written must survive a loss of power.
        """
        self.folder, self._kept = folder, kept
        for partial in folder.glob("*.partial"):
            with self._lock(partial.stem, wait=False) as held:
                if held:
                    partial.unlink(missing_ok=True)

    def array(
        self,
        key: str,
        rows: int,
        batches: Iterable[NDArray[Any]],
        notes: Callable[[], Iterable[str]] = tuple,
    ) -> Stored:
        """Give the array of a key, made first where the store lacks it; another maker of it is waited for.

        Args:
            key: `key_of` everything that the values depend on.
            rows: how many are expected; there must be room for them before the second batch is asked for.
            batches: `(batch, …)` arrays of one type that follow one another; not touched if the key is there.
            notes: called after the last batch; what it gives is kept with the array.

        Raises:
            UsageError: the disk is full, or the folder cannot be used.
        """
        try:
            with self._lock(key):
                return self._read(key) or self._make(key, rows, batches, notes)
        except OSError as error:
            raise UsageError(
                f"{self.folder}: the cache cannot be written ({error.strerror}): "
                "name a folder with room by --cache-dir"
            ) from None

    def _read(self, key: str) -> Stored | None:
        path = self.folder / f"{key}.array"
        try:
            fields = json.loads((self.folder / f"{key}.json").read_bytes())
            kind, shape, notes = _kind(fields["dtype"]), tuple(fields["shape"]), tuple(fields["notes"])
            if path.stat().st_size != math.prod(shape) * kind.itemsize:
                return None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        # NumPy maps no bfloat16, so the file is mapped as integers of that size.
        mapped = np.memmap(path, f"u{kind.itemsize}" if kind.kind == "V" else kind, "r", shape=shape)
        return Stored(key, mapped.view(kind), notes)

    def _make(
        self, key: str, rows: int, batches: Iterable[NDArray[Any]], notes: Callable[[], Iterable[str]]
    ) -> Stored:
        partial = self.folder / f"{key}.partial"
        written, first = 0, None
        try:
            with _open_privately(partial) as file:
                for batch in batches:
                    if first is None:
                        first = batch
                        self._require_room(rows * batch[0].nbytes)
                    file.write(np.ascontiguousarray(batch).view(np.uint8).data)
                    written += len(batch)
                file.flush()
                if self._kept:
                    os.fsync(file.fileno())
            assert first is not None, "an array has a batch at least"
            fields = {"shape": (written, *first.shape[1:]), "dtype": first.dtype.name, "notes": list(notes())}
            partial.rename(self.folder / f"{key}.array")
            with replaced(self.folder / f"{key}.json", private=True) as temporary:
                temporary.write_text(json.dumps(fields), encoding="utf-8")
        finally:
            partial.unlink(missing_ok=True)
        made = self._read(key)
        assert made is not None
        return made

    def _require_room(self, wanted: int) -> None:
        if wanted > (free := shutil.disk_usage(self.folder).free):
            raise UsageError(
                f"{self.folder}: the cache needs {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
                "name a folder with room by --cache-dir"
            )

    @contextlib.contextmanager
    def _lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        with _open_privately(self.folder / f"{key}.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


@contextlib.contextmanager
def open_store(folder: Path | None) -> Iterator[ArrayStore]:
    """Give the store in a folder that outlives the run, or one that is removed at the end.

    Args:
        folder: where arrays stay until the user removes them; None for a temporary folder.

    Raises:
        UsageError: nothing can be written there.
    """
    if folder is None:
        with temporary_folder("images") as temporary:
            yield ArrayStore(temporary)
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        store = ArrayStore(folder, kept=True)
    except OSError as error:
        reason = f"no cache can be kept there ({error.strerror})"
        raise UsageError(f"{folder}: {reason}: name another folder by --cache-dir") from None
    yield store


def _open_privately(path: Path) -> BinaryIO:
    """Open a file to write, which its owner alone can read; a link in its place is an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def key_of(*parts: str | bytes) -> str:
    """Hash what an array depends on, in hexadecimal; the parts cannot run into one another."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _kind(name: str) -> np.dtype[Any]:
    import ml_dtypes  # TensorFlow's own package of the types that NumPy lacks

    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return kind
