"""An image shows any number of classes, or none."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet
from medimg.runtime.errors import UsageError
from medimg.runtime.statistics.metrics import Evaluation, evaluate_labels
from medimg.runtime.tasks import Head, TaskName
from medimg.train.tasks.base import Flags, Learned, Mistake, TrainedHead, Values


class Multilabel:
    """See `base.TrainTask`."""

    name: ClassVar[TaskName] = "multilabel"
    default_head: ClassVar[TrainedHead] = "multilabel"

    def require_head(self, head: Head, classes: int) -> None:
        del classes
        if head != "multilabel":
            raise UsageError(
                f"--head {head} gives one class an image, the data have several: take --head multilabel"
            )

    def learned(self, head: Head) -> Learned:
        del head
        return Learned(
            one_unit=False, activation="sigmoid", loss="binary_crossentropy", accuracy="BinaryAccuracy"
        )

    def truth_of(self, dataset: DataSet) -> NDArray[np.generic]:
        return dataset.targets

    def count(self, shown: Flags, decided: Flags, labels: tuple[str, ...]) -> Evaluation:
        return evaluate_labels(shown, decided, labels)

    def decisions(self, probabilities: Values, right: Flags) -> tuple[Values, Flags]:
        return np.maximum(probabilities, 1 - probabilities), right

    def squared_distances(self, squares: Values) -> Values:
        return np.asarray(squares.mean(axis=1))

    def log_losses(self, probabilities: Values, shown: Flags, temperature: float, smallest: float) -> Values:
        logits = np.log(np.maximum(probabilities, smallest)) - np.log(np.maximum(1 - probabilities, smallest))
        signs = np.where(shown, -1.0, 1.0)
        return np.asarray(np.logaddexp(0, signs * logits / temperature).mean(axis=1))

    def recalls(self, rates: Values) -> Values:
        return np.asarray(rates[..., :2].mean(axis=-1))

    def mistakes(self, shown: Flags, decided: Flags, probabilities: Values) -> Iterator[Mistake]:
        for place, column in np.argwhere(shown != decided).tolist():
            missed = bool(shown[place, column])
            surprise = abs(2 * probabilities[place, column] - 1)
            yield Mistake(place, None if missed else column, column if missed else None, float(surprise))

    def chance(self, classes: int) -> float:
        del classes
        return 0.5
