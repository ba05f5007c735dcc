"""HDF5 files, read without following anything that leads out of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medimg.export.errors import SourceError
from medimg.runtime.optional import require

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_TEXT_BYTES = 64 * 2**20
"""Longest configuration that is read."""
MAX_EXPANSION = 32
"""How often larger than its file the arrays may be: weights hardly compress, a bomb does."""
FREE_BYTES = 64 * 2**20
"""Size of arrays that no file is too small for."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an HDF5 file for reading and check that it holds all that it names.

    Yields:
        The `h5py.File`.

    Raises:
        SourceError: it is no HDF5 file, is damaged, or holds what no Keras file has.
    """
    h5py = require("h5py", "export")
    with _damage_named(path):
        file = h5py.File(path, "r")
    with file:
        with _damage_named(path):
            _check_members(path, file, h5py)
        yield file


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise SourceError(f"{path}: not an HDF5 file, or a damaged one{_guess(path)} ({error})") from None


def text_attribute(path: Path, file: Any, name: str) -> str | None:  # noqa: ANN401  h5py has no types
    """Read a text attribute of the file; None if it is not there."""
    if name not in file.attrs:
        return None
    value = file.attrs[name]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) > MAX_TEXT_BYTES:
        raise SourceError(f"{path}: its attribute {name} is no text of at most {MAX_TEXT_BYTES >> 20} MiB")
    return text


def _check_members(path: Path, file: Any, h5py: Any) -> None:  # noqa: ANN401
    """Walk every link and array once; refuse what leads to other files, and what is larger than it can be."""
    seen: set[int] = set()
    groups, size = [file], 0
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            _check_link(path, group, name, where, h5py)
            member = group[name]
            address = h5py.h5o.get_info(member.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(member, h5py.Group):
                groups.append(member)
            elif isinstance(member, h5py.Dataset):
                size += _checked_bytes(path, member, where)
    if size > FREE_BYTES + MAX_EXPANSION * path.stat().st_size:
        raise SourceError(f"{path}: its arrays unfold to {size:,} bytes: no Keras file is packed like that")


def _check_link(path: Path, group: Any, name: str, where: str, h5py: Any) -> None:  # noqa: ANN401
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise SourceError(f"{path}: {where} is a link to another file ({link.filename}): refused")
    if not isinstance(link, h5py.HardLink):
        raise SourceError(f"{path}: {where} is a symbolic link, which no Keras file has: refused")


def _checked_bytes(path: Path, dataset: Any, where: str) -> int:  # noqa: ANN401
    if dataset.is_virtual:
        raise SourceError(f"{path}: {where} is a virtual array, made of other files: refused")
    if dataset.external:
        raise SourceError(
            f"{path}: {where} keeps its values in another file ({dataset.external[0][0]}): refused"
        )
    return int(dataset.nbytes)


def _guess(path: Path) -> str:
    """Tell the commonest damages apart from the first bytes."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        return ": it is empty"
    if start.startswith(SIGNATURE):
        return ": it breaks off, or parts of it were changed; copy it again"
    if b"HDF" in start:
        return ": its signature was changed as by a transfer in text mode; copy it again in binary mode"
    if start.startswith(b"version https://git-"):
        return ": it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    return ""
