"""CIFAR-10 in its python layout, read without trusting it.

The batches are pickles, and a pickle can name any function of any package. Only the five names that the
published files and their copies use are known here, and stand-ins take their place: nothing of NumPy runs
on values from the file before they are checked.

Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html describes the layout.
"""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError

META = "batches.meta"
MAX_BATCH_BYTES = 2**28
_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE
_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
    RecursionError,
)


@dataclass(frozen=True)
class Batch:
    """One file of images."""

    images: NDArray[np.uint8]
    """`(images, 32, 32, 3)` RGB."""
    labels: tuple[int, ...]


def is_cifar(folder: Path) -> bool:
    """Whether a folder holds the python layout."""
    return (folder / META).is_file()


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
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise DataError(f"{path}: has no data and labels: is it a CIFAR-10 batch?")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise DataError(f"{path}: holds labels outside 0 to {classes - 1}")
    if not data.is_bytes_of((len(labels), _VALUES)):
        raise DataError(f"{path}: its data are not {len(labels)} rows of {_VALUES} bytes")
    planes = np.frombuffer(data.content, np.uint8).reshape(-1, 3, _SIDE, _SIDE)
    return Batch(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), tuple(labels))


def _load(path: Path) -> dict[Any, Any]:
    try:
        if path.stat().st_size > MAX_BATCH_BYTES:
            raise DataError(f"{path}: is larger than a CIFAR-10 batch can be")
        fields = _RestrictedUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a CIFAR-10 file, or a damaged one ({str(error)[:200]})") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path}: not a CIFAR-10 file")
    return {key.encode() if isinstance(key, str) else key: value for key, value in fields.items()}


class _Array:
    """Takes the place of an array while it is unpickled."""

    def __init__(self, *_: object) -> None:
        self.shape: object = None
        self.kind: object = None
        self.columns_first: object = None
        self.content = b""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[4], bytes):
            raise pickle.UnpicklingError("an array of an unknown layout")
        _, self.shape, self.kind, self.columns_first, self.content = state

    def is_bytes_of(self, shape: tuple[int, int]) -> bool:
        """Whether it is a C-ordered uint8 array of this shape, and whole."""
        return (
            self.shape == shape
            and isinstance(self.kind, _Type)
            and self.kind.name in ("u1", b"u1")
            and not self.columns_first
            and len(self.content) == shape[0] * shape[1]
        )


class _Type:
    """Takes the place of an array's type."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which single bytes do not have."""


class _Bytes:
    """Takes the place of `_codecs.encode`, by which Python 3 writes bytes in an old protocol."""

    def __new__(cls, text: object, encoding: object = None) -> bytes:  # type: ignore[misc]  # as the function
        """Encode as the files do, and in no other way."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("an unknown encoding")
        return text.encode("latin-1")

    def __setstate__(self, state: object) -> None:
        """Keep a pickle from setting attributes of this class."""


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Bytes,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _STAND_INS[module, name]
