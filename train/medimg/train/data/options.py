"""How the images of a data set are chosen and read."""

import re
from dataclasses import dataclass

from medimg.runtime.files.patterns import fault_of_pattern
from medimg.train.errors import require

_LIMIT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%|([0-9]{1,9})")


@dataclass(frozen=True)
class DataOptions:
    """Which images are trained on, and what is made of those that something is wrong with."""

    validation_fraction: float = 0.3
    """Share of the training part held out, where the data name no validation part."""
    group_by: str | None = None
    """Regular expression whose group `patient`, or first group, finds the patient in an image's path."""
    max_unreadable: str = "1%"
    """Images of a part that may be left out because they cannot be read: a number, or a share as `1%`."""
    allow_unlisted: bool = False
    """Whether a CSV may leave out images that lie beside those it lists."""
    resize: bool = True
    """Whether images are brought to the network's size; if not, all must have it."""
    seed: int = 0
    """Of the division, and of everything else that is drawn by chance."""

    def __post_init__(self) -> None:
        require(
            (
                0 < self.validation_fraction < 1,
                f"validation fraction {self.validation_fraction} is not between 0 and 1",
            ),
            (
                _LIMIT.fullmatch(self.max_unreadable) is not None,
                f"max_unreadable {self.max_unreadable!r} is neither a number nor a share such as 1%",
            ),
            (self.seed >= 0, f"seed {self.seed} is negative"),
            *(() if self.group_by is None else (_pattern_check(self.group_by),)),
        )

    def unreadable_limit(self, images: int) -> int:
        """Give how many of so many images may be unreadable."""
        share, number = _LIMIT.fullmatch(self.max_unreadable).groups()  # type: ignore[union-attr]  # it was checked
        return int(number) if share is None else int(images * float(share) / 100)


def _pattern_check(pattern: str) -> tuple[bool, str]:
    fault = fault_of_pattern(pattern)
    return fault is None, f"group_by {pattern[:1000]!r} {fault}"
