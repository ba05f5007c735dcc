"""An image shows exactly one class."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError
from medimg.runtime.statistics.draws import Group, draw_by_stratum
from medimg.runtime.statistics.metrics import Probabilities
from medimg.runtime.tasks.base import MAX_CLASSES, ArrayHeader, Head, TaskName
from medimg.runtime.tasks.probabilities import sum_to_one


class Multiclass:
    """See `base.Task`."""

    name: ClassVar[TaskName] = "multiclass"
    heads: ClassVar[tuple[Head, ...]] = ("softmax", "sigmoid", "logits")
    finished: ClassVar[Head] = "softmax"
    exclusive: ClassVar[bool] = True
    range_of_answers: ClassVar[str] = "from 0 to 1 that sum to 1"
    needs_label: ClassVar[bool] = True

    def finish(self, outputs: NDArray[np.float32], head: Head) -> Probabilities:
        if head == "logits" and outputs.shape[1] == 1:
            outputs, head = np.asarray(1 / (1 + np.exp(-outputs)), np.float32), "sigmoid"
        if head == "sigmoid":
            return np.concatenate([1 - outputs, outputs], axis=1)
        if head == "logits":
            shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)
        return outputs

    def of_logits(self, logits: NDArray[np.float32]) -> Probabilities:
        return self.finish(logits, "logits")

    def tempered(self, probabilities: Probabilities, temperature: float) -> Probabilities:
        if temperature == 1:
            return probabilities
        raised = probabilities.astype(np.float64) ** (1 / temperature)
        return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)

    def are_answers(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        return sum_to_one(values)

    def decided(self, probabilities: Probabilities) -> NDArray[np.bool_]:
        return np.asarray(np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None])

    def columns(self, units: int) -> int:
        return max(2, units)

    def is_finished(self, head: Head) -> bool:
        return head == self.finished

    def evidence(self, activation_map: NDArray[np.float32], index: int) -> NDArray[np.float32]:
        # What speaks for all classes alike speaks for none.
        positive = np.maximum(activation_map[..., index] - activation_map.mean(axis=2), 0)
        return np.asarray(positive / (positive.max() or 1), np.float32)

    def named(self, label: str) -> set[str]:
        return {label}

    def marks(self, indices: set[int]) -> tuple[int | None, tuple[int, ...] | None]:
        (index,) = indices
        return index, None

    def written(self, label: str) -> str:
        return label

    def require_layout(self, path: Path, *, folder: bool) -> None:
        return

    def fault_of(self, targets: NDArray[np.float32], labels: Sequence[str]) -> str | None:
        present = [name for name, shown in zip(labels, targets.sum(axis=0), strict=True) if shown]
        return f"shows only the class {min(present)!r}; two or more are wanted" if len(present) < 2 else None

    def require_archived(self, labels: ArrayHeader, images: int, where: str) -> None:
        if len(labels.shape) == 2 and labels.shape[1] != 1:
            raise DataError(
                f"{where} gives {labels.shape[1]} labels an image; one class an image is wanted, "
                "unless the task is multi-label"
            )
        if labels.size != images or len(labels.shape) > 2 or labels.dtype.kind not in "iu":
            raise DataError(
                f"{where} is {labels.dtype} of shape {labels.shape}; {images} integers are wanted"
            )

    def from_archive(self, labels: NDArray[np.generic], where: str) -> NDArray[np.int64]:
        # As they are stored: a number beyond int64 would become another one.
        least, most = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if not 0 <= least <= most < MAX_CLASSES:
            raise DataError(f"{where} holds {least} to {most}; classes count from 0")
        return np.asarray(labels.reshape(-1), np.int64)

    def draw(
        self,
        patients: list[Group],
        targets: NDArray[np.float32],
        fraction: float,
        random: "np.random.Generator",
    ) -> Group:
        return draw_by_stratum(patients, targets, fraction, random)
