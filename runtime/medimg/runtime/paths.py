"""Files under a folder, in the same order everywhere."""

from collections.abc import Iterable, Iterator
from pathlib import Path


def walk_images(inputs: Iterable[str | Path]) -> Iterator[Path]:
    """Give the files that INPUT names: a file as it is, a folder's files in sorted order, at any depth.

    Hidden files are left out. Links are followed, and each real folder is entered once, so that loops end.
    A missing file or a folder that may not be opened is given as it is: reading it tells the reason.
    """
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            yield from _walk(path, set())
        else:
            yield path


def visible(folder: Path) -> list[Path]:
    """List a folder's entries that are not hidden, sorted by name.

    Raises:
        OSError: it cannot be opened.
    """
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
    )


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        entries = visible(folder)
    except OSError:
        yield folder
        return
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    for path in entries:
        if path.is_dir():
            yield from _walk(path, entered)
        elif path.is_file() or path.is_symlink() or not path.exists():
            # What has vanished since the folder was listed is given too: a name that was seen is answered.
            yield path
