"""Files that are there, whole, after power is lost."""

import os
import threading
from pathlib import Path

_LONGEST_LINE_BYTES = 2**24


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> Path:
    """Make a folder that only this user can read, and its name durable."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
    return folder


def write_temporary(folder: Path, *pieces: bytes) -> Path:
    """Write durable content under a temporary name of this thread; on failure nothing stays behind."""
    path = folder / f".{os.getpid()}.{threading.get_ident()}.part"
    try:
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def write_durable(path: Path, content: bytes, scratch: Path | None = None) -> None:
    """Write a file that appears whole or not at all, and stays.

    Args:
        path: its name.
        content: all of it.
        scratch: folder of the temporary name, on the same file system; the file's own unless given.
    """
    write_temporary(scratch or path.parent, content).replace(path)
    sync_folder(path.parent)


def remove_temporary(folder: Path) -> None:
    """Remove what an ended process left half-written."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def last_line(path: Path) -> bytes | None:
    """Give a file's last whole line; one that power loss cut short is removed."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_LINE_BYTES))
        tail = file.read()
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            file.truncate(size - len(tail) + whole)
            os.fsync(file.fileno())
    return tail[:whole].splitlines()[-1] if whole else None


def append_durable(path: Path, text: str) -> None:
    """Append whole lines; on a full disk the file stays as it was."""
    is_new = not path.exists()
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            content = memoryview(text.encode())
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), start)
            raise
    if is_new:
        sync_folder(path.parent)
