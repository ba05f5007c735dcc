"""The one way to write a file: whole or not at all, and never in the place of what is no file.

What is at the target decides. A regular file, or nothing: the new file is written beside it, flushed to the
disk, and takes its name. A link: the file that it names, likewise. A device, a pipe, or an open file under
`/dev/fd`: it is opened and written to, once the content is complete, and stays what it is.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medimg.runtime.errors import UsageError
from medimg.runtime.files.scratch import temporary_folder

_OPEN_FILES = re.compile(r"/proc/(\d+/)(task/\d+/)?fd")
_LONGEST = 100
"""Bytes of a temporary name's stem, and of its suffix; a file's name has 255 at most."""


@contextmanager
def replaced(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary name; on success its content gets to `path`, on failure it is removed.

    Readers see the old file or the whole new one, never a part, also after a power cut. A block that leaves
    nothing under the temporary name leaves `path` as it was. Nobody can foresee the temporary name.

    Args:
        path: the target.
        private: whether its owner alone may read it, since it shows patients; then the file is there already.

    Raises:
        OSError: it cannot be written.
    """
    if _takes_a_stream(path):
        with temporary_folder("output") as folder:
            temporary = folder / f"content{path.suffix}"
            yield temporary
            if temporary.exists():
                _send(temporary, path)
        return
    # A link stays one: the file that it names is replaced.
    target = Path(os.path.realpath(path))
    temporary = _beside(target)
    try:
        if private:
            temporary.touch(0o600, exist_ok=False)
        yield temporary
        if temporary.exists():
            _put_in_place(temporary, target, keep_mode=not private)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary name for an output file, which takes its place only when it is complete.

    Args:
        path: the file.
        private: whether its owner alone may read it.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with replaced(path, private=private) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a text file whole, in UTF-8; bytes of names that are none are escaped.

    Args:
        path: the file.
        text: its content.
        private: whether its owner alone may read it.

    Raises:
        UsageError: it cannot be written.
    """
    with written_whole(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def require_writable(path: str | Path) -> None:
    """Refuse a name that cannot be written to, before minutes are spent on what is to be written.

    Raises:
        UsageError: it is a folder, its folder does not exist, or one of them may not be written to.
    """
    try:
        stream = _takes_a_stream(Path(path))
        folder = Path(os.path.realpath(path)).parent
        if not stream and not folder.is_dir():
            raise FileNotFoundError(0, "there is no such folder")
        if not os.access(path if stream else folder, os.W_OK):
            raise PermissionError(0, "Permission denied")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _takes_a_stream(path: Path) -> bool:
    """Tell whether something is there that is written to and not replaced."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "it is a folder", str(path))
    return not stat.S_ISREG(mode) or _is_open_file(path)


def _is_open_file(path: Path) -> bool:
    """Tell whether a name, or a link on its way, is that of a process's open file, such as /dev/stdout."""
    name = os.path.abspath(path)  # noqa: PTH100  links are followed one at a time
    while True:
        folder = os.path.realpath(os.path.dirname(name))  # noqa: PTH120
        if _OPEN_FILES.fullmatch(folder):
            return True
        here = Path(folder, os.path.basename(name))  # noqa: PTH119
        if not here.is_symlink():
            return False
        name = os.path.join(folder, here.readlink())  # noqa: PTH118


def _beside(target: Path) -> Path:
    stem = os.fsdecode(os.fsencode(target.stem)[:_LONGEST])
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= _LONGEST else ""
    return target.with_name(f".{stem}.{secrets.token_hex(8)}{suffix}")


def _put_in_place(temporary: Path, target: Path, *, keep_mode: bool) -> None:
    if temporary.is_file():
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if keep_mode and target.exists():
            # Who may read the file stays as it was.
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
    temporary.replace(target)


def _send(content: Path, path: Path) -> None:
    # Neither made nor emptied: it may be an open file that others write to as well.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
    with content.open("rb") as source, open(descriptor, "wb") as sink:  # noqa: PTH123  an open file
        shutil.copyfileobj(source, sink, 2**20)
