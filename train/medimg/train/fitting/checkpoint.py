"""What a training is gone on with after a kill: one file in a folder beside the output, replaced whole.

It holds the variables of what is being trained (the random states of its dropout layers among them), those
of the optimizer, the best weights so far, and the epochs. The order of the images and their augmentation
follow from the seed and the epoch, so a training that goes on gives what one without a break gives.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ModelError, UsageError
from medimg.runtime.files.plain import from_plain, to_plain
from medimg.runtime.files.writing import replaced
from medimg.train.errors import DivergedError, TargetError
from medimg.train.fitting.journal import Phase

FILE = "checkpoint.npz"
INTERVAL_S = 1.0
"""Epochs on cached features take milliseconds, so not each of them is written."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variables:
    """The numbers of a phase after an epoch."""

    model: list[NDArray[Any]]
    """Weights and random states of the layers."""
    optimizer: list[NDArray[Any]]
    best: list[NDArray[Any]]
    """The weights of the best epoch so far."""


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint."""

    finished: tuple[Phase, ...]
    phase: Phase
    """The one after them, as far as it has come."""
    best_val_loss: float
    variables: Variables


class Checkpoint:
    """The checkpoint of one training."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, str], interval_s: float = INTERVAL_S) -> None:
        """Name it; nothing is written yet.

        Args:
            folder: what `training_folder` gave.
            fingerprint: everything that the result depends on, by names that a message can use.
            interval_s: the least time between two states that are kept.
        """
        self._path, self._fingerprint, self._interval_s = folder / FILE, dict(fingerprint), interval_s
        self._written_s = -interval_s

    def read(self) -> Saved | None:
        """Read it, or give None where there is none yet.

        Raises:
            UsageError: it is damaged, or belongs to a training with other data or options.
        """
        if not self._path.exists():
            return None
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                groups = {
                    name: [arrays[f"{name}{index}"] for index in range(count)]
                    for name, count in about["counts"].items()
                }
            then: dict[str, str] = about["fingerprint"]
            saved = Saved(
                tuple(from_plain(Phase, phase) for phase in about["finished"]),
                from_plain(Phase, about["phase"]),
                about["best_val_loss"],
                Variables(**groups),
            )
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, ModelError) as error:
            raise UsageError(f"{self._path}: is damaged ({error}): begin anew with --restart") from None
        self._require_same(then)
        return saved

    def _require_same(self, then: Mapping[str, str]) -> None:
        for name, now in self._fingerprint.items():
            if then.get(name) != now:
                raise UsageError(
                    f"{self._path.parent}: was begun with another {name} ({then.get(name)}, now {now}): "
                    "go on with the same by --resume, or begin anew with --restart"
                )

    def write(
        self,
        finished: tuple[Phase, ...],
        phase: Phase,
        best_val_loss: float,
        variables: Callable[[], Variables],
    ) -> None:
        """Replace it, unless it is newer than the interval.

        Raises:
            UsageError: it cannot be written.
        """
        if time.monotonic() - self._written_s < self._interval_s:
            return
        groups = vars(variables())
        about = {
            "fingerprint": self._fingerprint,
            "finished": to_plain(finished),
            "phase": to_plain(phase),
            "best_val_loss": best_val_loss,
            "counts": {name: len(arrays) for name, arrays in groups.items()},
        }
        arrays = {
            f"{name}{index}": array for name, group in groups.items() for index, array in enumerate(group)
        }
        try:
            with replaced(self._path) as temporary, temporary.open("wb") as file:
                np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be written ({error.strerror})") from None
        self._written_s = time.monotonic()


@contextlib.contextmanager
def training_folder(output: Path, *, resume: bool, restart: bool, mark: str = FILE) -> Iterator[Path]:
    """Give the folder `OUTPUT.training`, which is removed when the training has come to its end.

    Args:
        output: the model file to be.
        resume: whether a training that was broken off is to go on; where there is none, one begins.
        restart: whether what it left is to be forgotten.
        mark: the file in it without which there is nothing to go on with.

    Raises:
        UsageError: a training was broken off and neither is asked for, or both are; another process is at it;
            or the folder cannot be made.
    """
    if resume and restart:
        raise UsageError("--resume goes on with what --restart would forget: give one of them")
    folder = output.with_name(f"{output.name}.training")
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("wb")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another process is training {output.name}") from None
        _clear(folder, keep=not restart)
        if (folder / mark).exists() and not resume:
            raise UsageError(
                f"{folder}: a training of {output.name} was broken off: "
                "go on with it by --resume, or begin anew with --restart"
            )
        try:
            yield folder
        except (DivergedError, TargetError):
            # There is nothing to go on with.
            shutil.rmtree(folder)
            raise
        except BaseException:
            if (folder / mark).exists():
                _LOG.warning("%s keeps what has been trained: go on with it by --resume", folder)
            else:
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _clear(folder: Path, *, keep: bool) -> None:
    """Remove what killed writers left, and the checkpoint unless it is kept."""
    for path in folder.iterdir() if not keep else folder.glob("*.npz"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock" and (path.name != FILE or not keep):
            path.unlink()
