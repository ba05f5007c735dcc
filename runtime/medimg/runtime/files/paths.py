"""Names of files and folders: what they name, and the files under a folder, in the same order everywhere."""

import codecs
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from medimg.runtime.errors import UsageError

_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LONGEST = 2**16
"""Bytes of a line in a list; no path of Linux is as long."""


def is_folder(path: str | Path) -> bool:
    """Tell whether a name is a folder's; a name that no file can have, such as one too long, is none."""
    return stat.S_ISDIR(_mode(path))


def exists(path: str | Path) -> bool:
    """Tell whether a name is anything's; links that lead nowhere are nothing's."""
    return _mode(path) != 0


def is_file(path: str | Path) -> bool:
    """Tell whether a name is that of a regular file, or of a link to one."""
    return stat.S_ISREG(_mode(path))


def walk_images(inputs: Iterable[str | Path]) -> Iterator[Path]:
    """Give the files that INPUT names: a file as it is, a folder's files in sorted order, at any depth.

    Hidden files are left out. Links are followed, and each real folder is entered once, so that loops end.
    What cannot be read (a missing file, a folder that may not be opened, a pipe, a name that is too long) is
    given as it is: reading it tells the reason.

    Raises:
        UsageError: a name is empty.
    """
    for item in inputs:
        if item == "":
            raise UsageError("an empty name is no input: is a variable not set?")
        path = Path(item)
        if is_folder(path):
            yield from _walk(path)
        else:
            yield path


def listed_paths(stream: IO[bytes], where: str) -> Iterator[Path]:
    """Read a list of paths, one a line, as programs of any system write it; empty lines name nothing.

    Raises:
        UsageError: it cannot be read, or is no list of names in one byte a letter.
    """
    first = True
    try:
        while line := stream.readline(_LONGEST):
            if len(line) == _LONGEST:
                raise UsageError(f"{where} has a line of {_LONGEST} bytes, which no path has")
            if first and line.startswith(_WIDE_MARKS):
                raise UsageError(f"{where} is UTF-16 text: write it as UTF-8")
            name = line.removeprefix(_MARK if first else b"").rstrip(b"\r\n")
            first = False
            if name.strip():
                yield Path(os.fsdecode(name))
    except OSError as error:
        raise UsageError(f"{where} cannot be read ({error.strerror})") from None


def first_bytes(path: str | Path, count: int) -> bytes:
    """Read the beginning of a regular file; what is none, such as a pipe, gives nothing at once.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_file(path):
        return b""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  the name may be a str
        return file.read(count)


def is_text(path: Path) -> bool:
    """Tell by its first bytes whether a file is a text in UTF-8, such as notes; an empty one is none."""
    try:
        head = first_bytes(path, 4096)
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except (OSError, UnicodeDecodeError):
        return False
    return bool(head) and b"\0" not in head


def visible(folder: Path) -> list[Path]:
    """List a folder's entries that are not hidden, sorted by name.

    Raises:
        OSError: it cannot be opened.
    """
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
    )


def _mode(path: str | Path) -> int:
    try:
        return os.stat(path).st_mode  # noqa: PTH116  pathlib raises for some of the names that no file can have
    except (OSError, ValueError):
        return 0


def _walk(root: Path) -> Iterator[Path]:
    """Walk without recursion: folders may be deeper than Python's stack."""
    entered: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        path = waiting.pop()
        if not is_folder(path):
            yield path
            continue
        try:
            status = path.stat()
            entries = visible(path)
        except OSError:
            yield path
            continue
        if (status.st_dev, status.st_ino) not in entered:
            entered.add((status.st_dev, status.st_ino))
            waiting += reversed(entries)
