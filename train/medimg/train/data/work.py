"""What every long step works with."""

from dataclasses import dataclass

from medimg.train.data.array_store import ArrayStore
from medimg.train.progress import Progress


@dataclass(frozen=True)
class Work:
    """Where a step keeps what it makes, and what it may use."""

    store: ArrayStore
    """For decoded images and frozen outputs."""
    threads: int
    progress: Progress
