"""INPUT of an archive: the paths that a folder, a list or an object store names, one at a time."""

import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.files.paths import exists, walk_images
from medimg.runtime.files.tables import table_rows
from medimg.runtime.optional import require

LIST_SUFFIXES = (".csv", ".parquet")


_LOCAL = "file"
_CHAIN = "::"
"""What joins URIs of fsspec into a chain, whose first links interpret what the last one gives."""


def is_uri(name: str) -> bool:
    """Tell whether a name is a URI, such as `s3://bucket/a.dcm`, and not a path of this machine."""
    return "://" in name


def list_paths(source: str, schemes: Sequence[str] = ()) -> Iterator[str]:
    """Give the files that INPUT names, in an order that does not change.

    Args:
        source: a file, a folder, or a list (`.csv` or `.parquet`) with a column `path`; each also as a URI
            that fsspec opens. Paths in a list are relative to it.
        schemes: of the URIs that a list may name, beside its own scheme, such as `s3`.

    Yields:
        Absolute paths, or URIs. Hidden files of folders are left out.

    Raises:
        UsageError: there is nothing of this name, or nothing that opens it.
        DataError: it is a list and cannot be understood.
    """
    if source.endswith(LIST_SUFFIXES):
        yield from _listed(source, schemes)
    elif is_uri(source):
        yield from _stored(source)
    elif exists(source):
        yield from (os.path.abspath(path) for path in walk_images([source]))  # noqa: PTH100  a link stays itself
    else:
        raise UsageError(f"{source}: no such file or folder")


def open_store(uri: str) -> tuple[Any, str]:
    """Find what opens a URI: an fsspec file system, and the name that it has there.

    Raises:
        UsageError: the protocol is unknown, its package is not installed, or it is a chain.
    """
    if _CHAIN in uri:
        raise UsageError(f"{uri}: {_CHAIN} chains file systems, which no name may: name the file itself")
    fsspec = require("fsspec", "ray")
    try:
        system, name = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{uri}: cannot be opened ({error})") from None
    return system, str(name)


def _stored(uri: str) -> Iterator[str]:
    """Walk an object store, folder by folder."""
    system, root = open_store(uri)
    try:
        if system.isfile(root):
            yield uri
            return
        for folder, folders, files in system.walk(root, on_error="raise"):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            names = sorted(name for name in files if name and not name.startswith("."))
            yield from (system.unstrip_protocol(posixpath.join(folder, name)) for name in names)
    except OSError as error:
        raise UsageError(f"{uri}: cannot be listed ({error})") from None


def _listed(source: str, schemes: Sequence[str]) -> Iterator[str]:
    """Read a list in pieces."""
    pyarrow = require("pyarrow", "ray")
    allowed = {_scheme(source), *(scheme.lower().removesuffix("://") for scheme in schemes)}
    names = _csv_names if source.endswith(".csv") else _parquet_names
    try:
        for row, name in enumerate(names(source), 1):
            if not name or "\0" in name:
                raise DataError(f"{source}: row {row} has no usable path")
            yield _checked(_beside(source, name), allowed, f"{source}: row {row}")
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror or error})") from None
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise DataError(f"{source}: no list with a column 'path' ({error})") from None


def _csv_names(source: str) -> Iterator[str]:
    system, name = open_store(source)
    with system.open(name) as file:
        rows = table_rows(file, source, ("path",), any_bytes=True)
        yield from (cells.get("path", "") for _, cells in rows)


def _parquet_names(source: str) -> Iterator[str | None]:
    import pyarrow
    from pyarrow import parquet

    system, name = open_store(source)
    with system.open(name) as file, parquet.ParquetFile(file) as table:
        if "path" not in table.schema_arrow.names:
            raise DataError(f"{source}: has no column 'path'")
        for batch in table.iter_batches(columns=["path"]):
            yield from batch.column(0).cast(pyarrow.string()).to_pylist()


def _scheme(name: str) -> str:
    scheme = name.partition("://")[0].lower() if is_uri(name) else _LOCAL
    return _LOCAL if scheme == "local" else scheme


def _beside(source: str, name: str) -> str:
    if is_uri(name):
        return name
    if is_uri(source):
        return posixpath.join(posixpath.dirname(source), name)
    return os.path.abspath(Path(source).parent / name)  # noqa: PTH100  a link stays itself


def _checked(name: str, allowed: set[str], where: str) -> str:
    """Let a list name files of its own kind alone: any other URI would make workers ask any server.

    Raises:
        DataError: it is a chain, or of another scheme.
    """
    if is_uri(name) and _CHAIN in name:
        raise DataError(f"{where}: {_CHAIN} chains file systems, which a list may not: name the file itself")
    if (scheme := _scheme(name)) not in allowed:
        raise DataError(
            f"{where} is a file of {scheme}, and the list is not: "
            f"--allow-scheme {scheme} lets it name such files"
        )
    return name
