"""`.keras` archives, read without believing what they say about themselves."""

import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medimg.runtime.errors import ModelError
from medimg.runtime.files.downloads import what_it_is
from medimg.runtime.model.containers import KERAS_MEMBER
from medimg.runtime.model.spec import MAX_SPEC_BYTES

SIGNATURE = b"PK"
WEIGHTS = "model.weights.h5"
MAX_CONFIG_BYTES = 16 * 2**20
"""Longest configuration that is read: thirty times that of the largest models of Keras's own."""
LIMITS = {
    "metadata.json": 2**20,
    "config.json": MAX_CONFIG_BYTES,
    WEIGHTS: 16 * 2**30,
    KERAS_MEMBER: MAX_SPEC_BYTES,
}
"""The members that a Keras model has, each with the most bytes that are unpacked."""
MAX_EXPANSION = 200
"""How often larger than packed a member may be, once it is over a mebibyte."""
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    OSError,
    NotImplementedError,
    EOFError,
    UnicodeDecodeError,
)
"""What `zipfile` raises for archives that are none, are damaged, or need a password."""


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive and check the list of its members.

    Raises:
        ModelError: it is no archive, is damaged, or holds what no Keras model has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            yield archive
    except DAMAGE as error:
        raise ModelError(
            f"{path}: not a .keras archive, or a damaged one{what_it_is(path)} ({error})"
        ) from None


def read_json(path: Path, archive: zipfile.ZipFile, member: str) -> dict[str, Any]:
    """Read a member that holds a JSON object."""
    try:
        found = json.loads(archive.read(member))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its {member} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: its {member} is not a JSON object")
    return found


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    seen: set[str] = set()
    for member in archive.infolist():
        name = member.filename
        if name not in LIMITS:
            raise ModelError(
                f"{path}: not a .keras archive of Keras: it holds {name!r}, which no Keras model has: refused"
            )
        if name in seen:
            raise ModelError(f"{path}: holds {name} twice: refused")
        seen.add(name)
        unpacked, packed = member.file_size, max(member.compress_size, 1)
        if unpacked > LIMITS[name] or (unpacked > 2**20 and unpacked > MAX_EXPANSION * packed):
            raise ModelError(f"{path}: {name} unfolds from {packed:,} to {unpacked:,} bytes: refused")
    if missing := {"metadata.json", "config.json", WEIGHTS} - seen:
        raise ModelError(f"{path}: not a .keras archive of Keras: {', '.join(sorted(missing))} is missing")
