"""A bound on the memory that work on a user's model may take in this process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from medimg.export.errors import SourceError
from medimg.runtime.machine.memory import allowance, limited


@contextlib.contextmanager
def within_allowance(path: Path, pixels: int = 0) -> Iterator[None]:
    """Bound the block's memory by the size of a model.

    Args:
        path: the model's file or folder, for the message too.
        pixels: rows times columns of its image.

    Raises:
        SourceError: the block wanted more.
    """
    files = [path] if path.is_file() else path.rglob("*")
    most = allowance(sum(file.stat().st_size for file in files), pixels)
    try:
        with limited(most):
            yield
    except MemoryError:
        raise SourceError(f"{path}: refused: it takes more than {most / 1e9:.1f} GB of memory") from None
