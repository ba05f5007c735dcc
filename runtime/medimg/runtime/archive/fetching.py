"""Files of an object store, each copied to this machine for as long as it is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medimg.runtime.archive.inputs import is_uri, open_store
from medimg.runtime.classifier import InputError, Prediction
from medimg.runtime.errors import ImageError
from medimg.runtime.images.limits import Limits
from medimg.runtime.ordered import in_order, worker_threads

_THREADS = 8
"""A store answers slowly and many requests at a time."""


class LocalCopies:
    """Gives files as paths of this machine: local ones as they are, others as copies made in threads."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """Begin nothing yet.

        Args:
            names: paths and URIs.
            folder: for the copies; it holds a bounded number of them.
        """
        self._names = names
        self._folder = folder
        self._reasons: dict[str, str] = {}

    def paths(self) -> Iterator[str]:
        """Give one path a name, in order; where a file cannot be fetched it names nothing."""
        with worker_threads(_THREADS, "fetch") as pool:
            yield from in_order(pool, self._fetch, range(len(self._names)), 2 * _THREADS)

    def settle(self, place: int, answer: Prediction) -> Prediction:
        """Put the name in place of its copy's in an answer, and remove the copy, which has been read."""
        name = self._names[place]
        if not is_uri(name):
            return answer
        copy = self._copy(place)
        copy.unlink(missing_ok=True)
        error = answer.error
        if error is not None:
            reason = self._reasons.pop(str(copy), None)
            message = f"{name}: {reason}" if reason else error.message.replace(str(copy), name)
            error = InputError(error.type, message)
        return replace(answer, path=name, error=error)

    def _copy(self, place: int) -> Path:
        return self._folder / f"{place}{PurePosixPath(self._names[place]).suffix}"

    def _fetch(self, place: int) -> str:
        name, copy = self._names[place], self._copy(place)
        if not is_uri(name):
            return name
        try:
            system, inside = open_store(name)
            size, most = system.size(inside), Limits.from_environment().file_bytes
            if size is not None and size > most:
                raise ImageError(f"has {size:,} bytes; the limit is {most:,}")
            system.get_file(inside, str(copy))
        except Exception as error:  # noqa: BLE001  each store has errors of its own; all are this file's
            self._reasons[str(copy)] = f"cannot be fetched ({error or type(error).__name__})"
            copy.unlink(missing_ok=True)
        return str(copy)
