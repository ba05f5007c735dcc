"""What training and evaluation do differently by task."""

from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet
from medimg.runtime.statistics.metrics import Evaluation
from medimg.runtime.tasks import Head, TaskName

Flags: TypeAlias = NDArray[np.bool_]
"""`(images, classes)`"""
Values: TypeAlias = NDArray[np.float64]


TrainedHead: TypeAlias = Literal["softmax", "sigmoid", "multilabel"]
"""Those that `fit` makes."""


class Mistake(NamedTuple):
    """One wrong decision."""

    place: int
    """Of the image."""
    decided: int | None
    """The class that it was decided to show; None for a class that was missed among several."""
    true: int | None
    """The class that it shows; None for a class that was found wrongly among several."""
    surprise: float
    """How sure the model was: the probability of what it decided less that of what is true."""


class Learned(NamedTuple):
    """How a head is made and trained."""

    one_unit: bool
    """Whether it has one unit for two classes, or else one a class."""
    activation: str
    loss: str
    """Keras's name of it."""
    accuracy: str
    """Keras's name of the metric that counts right decisions."""


class TrainTask(Protocol):
    """One task; every method is a pure function."""

    name: ClassVar[TaskName]
    default_head: ClassVar[TrainedHead]

    def require_head(self, head: Head, classes: int) -> None:
        """Check that a head can learn the classes of a data set.

        Raises:
            UsageError: it cannot; the message names one that can.
        """

    def learned(self, head: Head) -> Learned:
        """Say how a head is made and trained."""

    def truth_of(self, dataset: DataSet) -> NDArray[np.generic]:
        """Give what the loss compares with: `(images,)` classes, or `(images, classes)` of 0 and 1."""

    def count(self, shown: Flags, decided: Flags, labels: tuple[str, ...]) -> Evaluation:
        """Count right and wrong decisions, `(images, classes)`."""

    def decisions(self, probabilities: Values, right: Flags) -> tuple[Values, Flags]:
        """Give each decision's confidence and whether it is right, `(images, decisions)`."""

    def squared_distances(self, squares: Values) -> Values:
        """Give each image's part of the Brier score, of squared distances `(images, classes)`."""

    def log_losses(self, probabilities: Values, shown: Flags, temperature: float, smallest: float) -> Values:
        """Give each image's negative log-likelihood, with its logits divided by a temperature.

        Args:
            probabilities: `(images, classes)`.
            shown: what is true.
            temperature: divides the logits.
            smallest: what a probability counts as at least.
        """

    def recalls(self, rates: Values) -> Values:
        """Give what balanced accuracy averages, of sensitivities and specificities `(…, classes, 2)`."""

    def mistakes(self, shown: Flags, decided: Flags, probabilities: Values) -> Iterator[Mistake]:
        """Go through the wrong decisions."""

    def chance(self, classes: int) -> float:
        """Give the balanced accuracy of guessing."""
