"""Keras files of any origin, opened by a Keras in a process of its own.

The file is checked, its checked copy opened with bounded memory, and answers come over pipes: what the model
does to the process that computes it costs one message. The process is kept for the next file.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medimg.runtime import protocol
from medimg.runtime.errors import ModelError
from medimg.runtime.files.plain import to_plain
from medimg.runtime.model.keras_files.whole import checked_copy
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.process import ModelProcess, Reply
from medimg.runtime.model.spec import Intensity
from medimg.train.keras_files import AGAIN

WORKER = "medimg.train.evaluation.keras_worker"
"""The module that serves in that process."""
_idle: list[tuple[int, ModelProcess]] = []
"""The process that waits for the next file, with its number of threads."""


class OpenedModel:
    """A model in that process."""

    def __init__(self, process: ModelProcess, path: Path, intensity: Intensity) -> None:
        self._process, self._path = process, path
        self._intensity = to_plain(intensity)

    def answer(self, images: Images) -> NDArray[np.float32]:
        """Give the outputs for `(batch, rows, columns, 3)` uint8 RGB, as the last layer gives them."""
        _, (outputs,) = self._ask("run", images)
        return protocol.bytes_array(outputs)

    def maps(self, images: Images) -> NDArray[np.float32] | str:
        """Give class activation maps, see `heatmaps`, or the reason why there are none."""
        message, blobs = self._ask("map", images)
        return protocol.bytes_array(blobs[0]) if blobs else str(message["reason"])

    def _ask(self, task: str, images: Images) -> Reply:
        message = {"do": task, "intensity": self._intensity}
        return self._process.ask(self._path, message, protocol.array_bytes(images))


@contextmanager
def opened(path: Path, intensity: Intensity, threads: int | None = None) -> Iterator[OpenedModel]:
    """Open a Keras file.

    Args:
        path: the file.
        intensity: how images become the network's input.
        threads: processor threads.

    Raises:
        ModelError: it is refused, Keras cannot load it, or the process ended.
    """
    with checked_copy(path) as (file, copy):
        process = _taken(threads or 0)
        message = {"do": "open", "path": str(copy), "bytes": copy.stat().st_size, "threads": threads}
        try:
            process.ask(path, message)
        except ModelError as error:
            raise ModelError(f"{error}{AGAIN if file.framework == 'tf_keras' else ''}") from None
    try:
        yield OpenedModel(process, path, intensity)
    except BaseException:
        process.close()
        raise
    if process.alive:
        _idle.append((threads or 0, process))


def prove(path: Path, threads: int | None = None) -> None:
    """Open a file and close it, before this process itself loads it.

    Raises:
        ModelError: as in `opened`.
    """
    with opened(path, Intensity.named("raw"), threads):
        pass
    _end()


def _end() -> None:
    while _idle:
        _idle.pop()[1].close()


atexit.register(_end)


def _taken(threads: int) -> ModelProcess:
    while _idle:
        count, process = _idle.pop()
        if count == threads and process.alive:
            return process
        process.close()
    return ModelProcess(WORKER, "Keras", os.environ)
