"""HDF5 files, read without following anything that leads out of them; runs in a bounded process.

The library follows what a file says: it reads other files, makes huge values of small ones, and can loop.
So only `reading` calls this, in a process of its own, and what it writes holds plain numbers and texts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medimg.runtime.errors import ModelError
from medimg.runtime.files.downloads import what_it_is
from medimg.runtime.model.keras_files.archive import MAX_CONFIG_BYTES
from medimg.runtime.optional import require

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_EXPANSION = 32
"""How often larger than its file the arrays may be: weights hardly compress, a bomb does."""
FREE_BYTES = 64 * 2**20
"""Size of arrays that no file is too small for."""
MAX_MEMBERS = 20_000
MAX_DEPTH = 100
MAX_CHUNK_BYTES = 256 * 2**20
_SLICE_BYTES = 32 * 2**20
"""How much of an array is in memory at once."""
_NUMBERS = "fiubcV"
"""Kinds of numbers, with the opaque two bytes that h5py makes of bfloat16."""


@contextmanager
def opened(path: Path, subject: Path | None = None) -> Iterator[Any]:
    """Open an HDF5 file for reading and check that it holds all that it names.

    Args:
        path: the file.
        subject: what messages name, if that is another.

    Yields:
        The `h5py.File`.

    Raises:
        ModelError: it is no HDF5 file, is damaged, or holds what no Keras file has.
    """
    h5py, named = require("h5py", "export"), subject or path
    with damage_named(named, path):
        file = h5py.File(path, "r")
    with file:
        with damage_named(named, path):
            _check_members(named, path.stat().st_size, file, h5py)
        yield file


@contextmanager
def damage_named(subject: Path, path: Path) -> Iterator[None]:
    """Turn what h5py raises into one message."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if "memory allocation" in str(error):
            raise MemoryError from error
        raise ModelError(
            f"{subject}: not an HDF5 file, or a damaged one{_guess(path)} ({str(error)[:300]})"
        ) from None


def text_attribute(path: Path, file: Any, name: str) -> str | None:  # noqa: ANN401  h5py has no types
    """Read a text attribute of a file or group; None if it is not there."""
    if name not in file.attrs:
        return None
    value = file.attrs[name] if file.attrs.get_id(name).shape == () else None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) > MAX_CONFIG_BYTES:
        raise ModelError(
            f"{path}: its attribute {name} is no text of at most {MAX_CONFIG_BYTES >> 20} MiB: refused"
        )
    return text


def copy_plainly(source: Any, target: Any) -> list[tuple[str, list[int]]]:  # noqa: ANN401
    """Copy a checked group's arrays, and its attributes of numbers and texts, as new arrays.

    Returns:
        Name and shape of each array, in the file's order.
    """
    found: list[tuple[str, list[int]]] = []
    waiting = [(source, target)]
    while waiting:
        old, new = waiting.pop()
        _copy_attributes(old, new)
        for name, member in old.items():
            if hasattr(member, "shape"):
                _copy_array(member, new, name)
                found.append((f"{old.name.rstrip('/')}/{name}", list(member.shape)))
            else:
                waiting.append((member, new.create_group(name)))
    return found


def _copy_array(old: Any, parent: Any, name: str) -> None:  # noqa: ANN401
    new = parent.create_dataset(name, old.shape, old.dtype)
    _copy_attributes(old, new)
    if not old.size:
        return
    if not old.shape:
        new[()] = old[()]
    elif old.chunks is not None:
        for region in old.iter_chunks():
            new[region] = old[region]
    else:
        rows = max(1, _SLICE_BYTES // max(1, old.nbytes // old.shape[0]))
        for start in range(0, old.shape[0], rows):
            new[start : start + rows] = old[start : start + rows]


def _copy_attributes(old: Any, new: Any) -> None:  # noqa: ANN401
    """Copy numbers and texts; what else stands there no Keras reads."""
    for name in old.attrs:
        kind = old.attrs.get_id(name).dtype.kind
        if kind not in f"SO{_NUMBERS}":
            continue
        value = old.attrs[name]
        new.attrs[name] = _texts(value) if kind in "SO" and hasattr(value, "flat") else value


def _texts(value: Any) -> Any:  # noqa: ANN401  an array of texts
    """Give an array of texts as Keras writes lists of names, with one length for all."""
    numpy = require("numpy", "export")
    texts = [item.encode() if isinstance(item, str) else bytes(item) for item in value.flat]
    return numpy.array(texts, "S" if texts else "S1").reshape(value.shape)


def _check_members(path: Path, packed: int, file: Any, h5py: Any) -> None:  # noqa: ANN401
    """Walk every link and array once; refuse what leads to other files, and what is larger than it can be."""
    seen = {h5py.h5o.get_info(file.id).addr}
    groups, size = [(file, 0)], 0
    while groups:
        group, depth = groups.pop()
        if depth > MAX_DEPTH:
            raise ModelError(f"{path}: its groups are nested too deeply: refused")
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            _check_link(path, group, name, where, h5py)
            member = group[name]
            address = h5py.h5o.get_info(member.id).addr
            if address in seen:
                raise ModelError(f"{path}: {where} is another part of it once more: refused")
            seen.add(address)
            if len(seen) > MAX_MEMBERS:
                raise ModelError(f"{path}: has more than {MAX_MEMBERS:,} parts: refused")
            if isinstance(member, h5py.Group):
                groups.append((member, depth + 1))
            elif isinstance(member, h5py.Dataset):
                size += _checked_bytes(path, member, where)
            else:
                raise ModelError(f"{path}: {where} is neither a group nor an array: refused")
    if size > FREE_BYTES + MAX_EXPANSION * packed:
        raise ModelError(f"{path}: its arrays unfold to {size:,} bytes: no Keras file is packed like that")


def _check_link(path: Path, group: Any, name: str, where: str, h5py: Any) -> None:  # noqa: ANN401
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise ModelError(f"{path}: {where} is a link to another file ({link.filename}): refused")
    if not isinstance(link, h5py.HardLink):
        raise ModelError(f"{path}: {where} is a symbolic link, which no Keras file has: refused")


def _checked_bytes(path: Path, dataset: Any, where: str) -> int:  # noqa: ANN401
    if dataset.is_virtual:
        raise ModelError(f"{path}: {where} is a virtual array, made of other files: refused")
    if dataset.external:
        raise ModelError(
            f"{path}: {where} keeps its values in another file ({dataset.external[0][0]}): refused"
        )
    if dataset.dtype.kind not in _NUMBERS or dataset.dtype.fields:
        raise ModelError(
            f"{path}: {where} holds {dataset.dtype}, no numbers: no Keras model has that: refused"
        )
    if dataset.shape is None:
        raise ModelError(f"{path}: {where} is an array without values: refused")
    chunk = dataset.dtype.itemsize
    for length in dataset.chunks or ():
        chunk *= length
    if chunk > MAX_CHUNK_BYTES:
        raise ModelError(f"{path}: {where} is packed in pieces of {chunk:,} bytes: refused")
    return int(dataset.nbytes)


def _guess(path: Path) -> str:
    """Tell the commonest damages apart from the first bytes."""
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(SIGNATURE):
        return ": it breaks off, or parts of it were changed; copy it again"
    return what_it_is(path)
