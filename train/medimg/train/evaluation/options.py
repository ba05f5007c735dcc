"""What `evaluate` may be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from medimg.runtime.data import Split
from medimg.train.data.options import DataOptions
from medimg.train.errors import require


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, on which images, and how it is shown; all is validated when made."""

    split: Split | None = None
    """The part to use; by default `test`, or everything where the data are not divided."""
    positive: str | None = None
    """Of two classes the one whose areas under the curves count; by default the last."""
    subgroups: tuple[str, ...] = ()
    """Columns of a CSV whose values are measured apart."""
    group_by: str | None = None
    """A regular expression that finds the patient in an image's path; without it the data tell."""
    report: str | Path | None = None
    """An HTML page to write."""
    with_images: bool = False
    """Whether the page shows the worst mistakes, which are images of patients."""
    batch_size: int = 32
    """Images at once."""
    backend: str = "auto"
    """The runtime's back end for an exported artefact."""

    def __post_init__(self) -> None:
        parts = get_args(Split)
        require(
            (
                not self.with_images or self.report is not None,
                "images go into a report: name one with --report, or leave --with-images out",
            ),
            (
                self.split is None or self.split in parts,
                f"split {self.split!r} is not one of {', '.join(parts)}",
            ),
            (self.batch_size >= 1, f"batch size {self.batch_size}: at least 1 is needed"),
        )
        DataOptions(group_by=self.group_by)
