"""Temporary folders, which may hold images of patients and so outlive no run by more than the next one.

A folder has a file that its owner keeps locked. The operating system releases the lock of a process that is
killed, so what such a process left is known to be dead, and the next run of any command removes it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from medimg.runtime.errors import UsageError

PREFIX = "medimg-"
_IN_USE, _NEW = "in-use", "new"


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Give a folder, its owner's alone, that is removed at the end, or by the next run if this one is killed.

    Args:
        purpose: stands in its name.

    Raises:
        UsageError: it cannot be made.
    """
    remove_left_behind()
    try:
        made = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UsageError(
            f"{tempfile.gettempdir()}: no temporary folder can be made there ({error.strerror}): "
            "name another folder in TMPDIR"
        ) from None
    with made as name, (Path(name) / _NEW).open("wb") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        # Only now, so that no other process finds it without its lock.
        (Path(name) / _NEW).rename(Path(name) / _IN_USE)
        yield Path(name)


def remove_left_behind() -> None:
    """Remove this user's temporary folders whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            mark = os.open(folder / _IN_USE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(mark)
