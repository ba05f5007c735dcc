"""CIFAR-10 in its python layout, read without trusting it.

The batches are pickles, which `plain_pickle` reads as data: only the five names that the published files and
their copies use are known, and nothing of NumPy runs on values from the file before they are checked.

Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html describes the layout.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError
from medimg.runtime.files.paths import first_bytes, is_file
from medimg.runtime.files.plain_pickle import Called, read_pickle

META = "batches.meta"
MAX_BATCH_BYTES = 2**28
_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE
_NAMES = (
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
)
"""What the published files and their copies call."""


@dataclass(frozen=True)
class Batch:
    """One file of images."""

    images: NDArray[np.uint8]
    """`(images, 32, 32, 3)` RGB."""
    labels: tuple[int, ...]


def is_cifar(folder: Path) -> bool:
    """Whether a folder holds the python layout."""
    return is_file(folder / META)


def read_labels(folder: Path) -> tuple[str, ...]:
    """Read the classes' names.

    Raises:
        DataError: the file is damaged, or no CIFAR file.
    """
    path = folder / META
    names = _load(path).get(b"label_names")
    if (
        not isinstance(names, list)
        or not all(isinstance(name, (str, bytes)) for name in names)
        or len(names) < 2
    ):
        raise DataError(f"{path}: has no list of label names")
    return tuple(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names)


def read_batch(path: Path, classes: int) -> Batch:
    """Read one batch.

    Args:
        path: a file such as `data_batch_1`.
        classes: how many there are; larger labels are refused.

    Raises:
        DataError: the file is damaged, or no CIFAR file.
    """
    fields = _load(path)
    data, labels = fields.get(b"data"), fields.get(b"labels")
    if not isinstance(data, Called) or not isinstance(labels, list):
        raise DataError(f"{path}: has no data and labels: is it a CIFAR-10 batch?")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise DataError(f"{path}: holds labels outside 0 to {classes - 1}")
    pixels = _pixels(data, len(labels))
    if pixels is None:
        raise DataError(f"{path}: its data are not {len(labels)} rows of {_VALUES} bytes")
    planes = np.frombuffer(pixels, np.uint8).reshape(-1, 3, _SIDE, _SIDE)
    return Batch(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), tuple(labels))


def _load(path: Path) -> dict[Any, Any]:
    try:
        content = first_bytes(path, MAX_BATCH_BYTES + 1)
        if len(content) > MAX_BATCH_BYTES:
            raise DataError(f"{path}: is larger than a CIFAR-10 batch can be")
        fields = read_pickle(content, _NAMES)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: not a CIFAR-10 file, or a damaged one ({str(error)[:200]})") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path}: not a CIFAR-10 file")
    return {key.encode() if isinstance(key, str) else key: value for key, value in fields.items()}


def _pixels(array: object, rows: int) -> bytes | None:
    """Give the bytes of a C-ordered uint8 array of so many rows; nothing if it is another, or not whole."""
    state = array.state if isinstance(array, Called) and array.name.endswith("._reconstruct") else None
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, kind, columns_first, content = state
    is_bytes = (
        isinstance(kind, Called) and kind.name == "numpy.dtype" and kind.arguments[:1] in (("u1",), (b"u1",))
    )
    whole = isinstance(content, bytes) and len(content) == rows * _VALUES
    return content if is_bytes and whole and shape == (rows, _VALUES) and not columns_first else None
