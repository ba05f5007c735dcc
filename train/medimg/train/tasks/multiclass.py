"""An image shows exactly one class."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet
from medimg.runtime.errors import UsageError
from medimg.runtime.statistics.metrics import Evaluation, evaluate
from medimg.runtime.tasks import Head, TaskName
from medimg.train.tasks.base import Flags, Learned, Mistake, TrainedHead, Values


class Multiclass:
    """See `base.TrainTask`."""

    name: ClassVar[TaskName] = "multiclass"
    default_head: ClassVar[TrainedHead] = "softmax"

    def require_head(self, head: Head, classes: int) -> None:
        if head == "multilabel":
            raise UsageError(
                "--head multilabel is for several classes an image, the data have one: --head softmax"
            )
        if head == "sigmoid" and classes != 2:
            raise UsageError(
                f"--head sigmoid is one unit for two classes, the data have {classes}: take --head softmax"
            )

    def learned(self, head: Head) -> Learned:
        if head == "sigmoid":
            return Learned(
                one_unit=True, activation="sigmoid", loss="binary_crossentropy", accuracy="BinaryAccuracy"
            )
        return Learned(
            one_unit=False,
            activation="softmax",
            loss="sparse_categorical_crossentropy",
            accuracy="SparseCategoricalAccuracy",
        )

    def truth_of(self, dataset: DataSet) -> NDArray[np.generic]:
        return dataset.truth

    def count(self, shown: Flags, decided: Flags, labels: tuple[str, ...]) -> Evaluation:
        return evaluate(shown.argmax(axis=1), decided.argmax(axis=1), labels)

    def decisions(self, probabilities: Values, right: Flags) -> tuple[Values, Flags]:
        return probabilities.max(axis=1, keepdims=True), np.asarray(right.all(axis=1, keepdims=True))

    def squared_distances(self, squares: Values) -> Values:
        return np.asarray(squares.mean(axis=1) if squares.shape[1] == 2 else squares.sum(axis=1))

    def log_losses(self, probabilities: Values, shown: Flags, temperature: float, smallest: float) -> Values:
        logits = np.log(np.maximum(probabilities, smallest)) / temperature
        return np.asarray(np.logaddexp.reduce(logits, axis=1) - logits[shown])

    def recalls(self, rates: Values) -> Values:
        return rates[..., 0]

    def mistakes(self, shown: Flags, decided: Flags, probabilities: Values) -> Iterator[Mistake]:
        found, true = decided.argmax(axis=1), shown.argmax(axis=1)
        for place in np.flatnonzero(found != true).tolist():
            surprise = probabilities[place, found[place]] - probabilities[place, true[place]]
            yield Mistake(place, int(found[place]), int(true[place]), float(surprise))

    def chance(self, classes: int) -> float:
        return 1 / classes
