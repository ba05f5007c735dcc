"""What a training has been through, epoch by epoch: to go on after a kill, and as a table to read."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medimg.runtime.errors import UsageError
from medimg.runtime.files.writing import replaced

if TYPE_CHECKING:
    from medimg.train.fitting.checkpoint import Checkpoint, Saved, Variables


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave, in the precision of training."""

    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    """At its end."""
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Phase:
    """How a phase went, or how far it has come."""

    name: str
    epochs: tuple[Epoch, ...]
    best_epoch: int
    """Whose weights were kept, counted from 1; 0 is the state before the first."""
    seconds: float


class Journal:
    """Keeps phases and their epochs; without a checkpoint and a table in memory only."""

    def __init__(self, checkpoint: "Checkpoint | None" = None, table: Path | None = None) -> None:
        """Go on from a checkpoint, where there is one.

        Args:
            checkpoint: where the state is kept after an epoch.
            table: a CSV file, rewritten after every epoch.

        Raises:
            UsageError: the checkpoint is damaged, or of a training with other data or options.
        """
        self._checkpoint, self._table = checkpoint, table
        self._saved = checkpoint.read() if checkpoint else None
        self._phases: list[Phase] = []

    def finished(self, name: str) -> Phase | None:
        """Give a phase that an earlier run went through to its end."""
        phases = self._saved.finished if self._saved else ()
        return next((phase for phase in phases if phase.name == name), None)

    def unfinished(self, name: str) -> "Saved | None":
        """Give the state in which an earlier run left a phase."""
        return self._saved if self._saved and self._saved.phase.name == name else None

    def epoch(self, phase: Phase, best_val_loss: float, variables: "Callable[[], Variables]") -> None:
        """Keep the state after an epoch.

        Args:
            phase: as far as it has come.
            best_val_loss: of its best epoch.
            variables: gives its numbers.

        Raises:
            UsageError: a file cannot be written.
        """
        if self._checkpoint:
            self._checkpoint.write(tuple(self._phases), phase, best_val_loss, variables)
        if self._table:
            _write_table(self._table, [*self._phases, phase])

    def end(self, phase: Phase) -> Phase:
        """Keep a phase that has come to its end, and give it back."""
        self._phases.append(phase)
        if self._table:
            _write_table(self._table, self._phases)
        return phase


def _write_table(path: Path, phases: Iterable[Phase]) -> None:
    names = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
    try:
        with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("phase", "epoch", *names))
            for phase in phases:
                for number, epoch in enumerate(phase.epochs, start=1):
                    writer.writerow((phase.name, number, *(getattr(epoch, name) for name in names)))
    except OSError as error:
        raise UsageError(f"{path}: the history cannot be written ({error.strerror})") from None
