"""What one training works with."""

from dataclasses import dataclass, field
from pathlib import Path

from medimg.train.data.work import Work
from medimg.train.fitting.journal import Journal
from medimg.train.fitting.options import FitOptions


@dataclass(frozen=True)
class Job(Work):
    """One training: what it works with, and what it is told."""

    options: FitOptions
    journal: Journal = field(default_factory=Journal)
    """Is told of every epoch."""
    tensorboard: Path | None = None
    """A folder for TensorBoard's logs."""
