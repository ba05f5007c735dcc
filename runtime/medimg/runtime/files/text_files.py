"""Text files from outside: UTF-8, with or without a byte order mark, of bounded size."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from medimg.runtime.errors import MissingDependencyError, UsageError
from medimg.runtime.files.class_names import fault_of
from medimg.runtime.files.paths import first_bytes, is_file

_MAX_BYTES = 2**22
_LINE = re.compile("\r\n|\r|\n")


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        UsageError: it cannot be read, or is no UTF-8 text.
    """
    try:
        # The system's own reason for what is missing; a pipe or device is not waited for.
        path.stat()
        content = first_bytes(path, _MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not is_file(path):
        raise UsageError(f"{path}: is no regular file")
    if len(content) > _MAX_BYTES:
        raise UsageError(f"{path}: is larger than {_MAX_BYTES} bytes, which no such file has to be")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text: save it as UTF-8") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: it cannot be read, or is no TOML.
        MissingDependencyError: Python 3.10 needs a package for it.
    """
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml = importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(f"needs {name} ({error}): pip install 'medimg[node]'") from error
    try:
        tables: dict[str, Any] = toml.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a readable TOML file ({str(error)[:200]})") from None
    return tables


def read_labels(value: str) -> tuple[str, ...]:
    """Read names of classes: a file with one a line, or names with commas between.

    Raises:
        UsageError: it is neither, or a name cannot be a class's.
    """
    if is_file(value):
        where, names = value, [name.strip() for name in _LINE.split(read_text(Path(value)))]
        while names and not names[-1]:
            names.pop()
    elif "," in value:
        where, names = "the list of labels", [name.strip() for name in value.split(",")]
    else:
        raise UsageError(f"{value[:200]}: no such file, and no list of names with commas between")
    if fault := fault_of(names) if names else "no names":
        raise UsageError(f"{where}: {fault}")
    return tuple(names)
