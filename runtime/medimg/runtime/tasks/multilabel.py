"""An image shows any number of classes, or none."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError
from medimg.runtime.statistics.draws import Group, draw_by_class
from medimg.runtime.statistics.metrics import Probabilities
from medimg.runtime.tasks.base import MAX_CLASSES, ArrayHeader, Head, TaskName
from medimg.runtime.tasks.probabilities import lie_within

DECISION = 0.5
"""The probability from which on a class is decided to be there."""


class Multilabel:
    """See `base.Task`."""

    name: ClassVar[TaskName] = "multilabel"
    heads: ClassVar[tuple[Head, ...]] = ("multilabel",)
    finished: ClassVar[Head] = "multilabel"
    exclusive: ClassVar[bool] = False
    range_of_answers: ClassVar[str] = "from 0 to 1"
    needs_label: ClassVar[bool] = False

    def finish(self, outputs: NDArray[np.float32], head: Head) -> Probabilities:
        del head
        return outputs

    def of_logits(self, logits: NDArray[np.float32]) -> Probabilities:
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))), np.float32)

    def tempered(self, probabilities: Probabilities, temperature: float) -> Probabilities:
        if temperature == 1:
            return probabilities
        raised = probabilities.astype(np.float64) ** (1 / temperature)
        others = (1 - probabilities.astype(np.float64)) ** (1 / temperature)
        return np.asarray(raised / (raised + others), np.float32)

    def are_answers(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        return lie_within(values)

    def decided(self, probabilities: Probabilities) -> NDArray[np.bool_]:
        return np.asarray(probabilities >= DECISION)

    def columns(self, units: int) -> int:
        return units

    def is_finished(self, head: Head) -> bool:
        return head == self.finished

    def evidence(self, activation_map: NDArray[np.float32], index: int) -> NDArray[np.float32]:
        positive = np.maximum(activation_map[..., index], 0)
        return np.asarray(positive / (positive.max() or 1), np.float32)

    def named(self, label: str) -> set[str]:
        return {name.strip() for name in label.split("|")} - {""}

    def marks(self, indices: set[int]) -> tuple[int | None, tuple[int, ...] | None]:
        return None, tuple(sorted(indices))

    def written(self, label: str) -> str:
        return "|".join(sorted(self.named(label)))

    def require_layout(self, path: Path, *, folder: bool) -> None:
        if folder:
            raise DataError(
                f"{path}: a folder gives every image one class: multi-label data are a CSV whose labels are "
                "joined by |, or a MedMNIST .npz"
            )

    def fault_of(self, targets: NDArray[np.float32], labels: Sequence[str]) -> str | None:
        del labels
        shown = targets.mean(axis=0)
        if ((shown > 0) & (shown < 1)).any():
            return None
        return "no class is shown by some of the images and not by others"

    def require_archived(self, labels: ArrayHeader, images: int, where: str) -> None:
        shape = labels.shape
        if (
            len(shape) != 2
            or shape[0] != images
            or not 0 < shape[1] <= MAX_CLASSES
            or labels.dtype.kind not in "iu"
        ):
            raise DataError(
                f"{where} is {labels.dtype} of shape {labels.shape}; "
                f"a column of 0 and 1 for each class is wanted for multi-label data, {images} rows"
            )

    def from_archive(self, labels: NDArray[np.generic], where: str) -> NDArray[np.int64]:
        if not np.isin(labels, (0, 1)).all():
            raise DataError(f"{where} holds {labels.min()} to {labels.max()}; multi-label data hold 0 and 1")
        return np.asarray(labels, np.int64)

    def draw(
        self,
        patients: list[Group],
        targets: NDArray[np.float32],
        fraction: float,
        random: "np.random.Generator",
    ) -> Group:
        return draw_by_class(patients, targets, fraction, random)
