"""What differs by task: one object a task, looked up once by its name."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.statistics.draws import Group
from medimg.runtime.statistics.metrics import Probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TaskName: TypeAlias = Literal["multiclass", "multilabel"]
"""Whether an image shows exactly one class, or any number of them."""
Head: TypeAlias = Literal["softmax", "sigmoid", "multilabel", "logits"]
"""What a Keras model's last layer gives."""
PROBABILITIES, ACTIVATION_MAP = "probabilities", "activation_map"
"""Names of an artefact's outputs."""
Arrays: TypeAlias = dict[str, NDArray[np.float32]]
"""What an artefact answers, by output; the first axis is the batch."""
MAX_CLASSES = 10_000
"""The most classes that an archive of labelled images may have."""


class ArrayHeader(Protocol):
    """What an archive says of an array before it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values it has along each axis."""

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Of which type they are."""

    @property
    def size(self) -> int:
        """How many values it has."""


class Task(Protocol):
    """One task; every method is a pure function."""

    name: ClassVar[TaskName]
    heads: ClassVar[tuple[Head, ...]]
    """Those that a network of this task may have."""
    finished: ClassVar[Head]
    """The head of an artefact, whose graph ends in probabilities."""
    exclusive: ClassVar[bool]
    """Whether one class excludes the others."""
    range_of_answers: ClassVar[str]
    """Which values an answer has, in words."""

    def finish(self, outputs: NDArray[np.float32], head: Head) -> Probabilities:
        """Turn the last layer's outputs, `(images, units)`, into `(images, classes)` as an artefact gives."""

    def of_logits(self, logits: NDArray[np.float32]) -> Probabilities:
        """Turn logits, `(images, units)`, into `(images, classes)`."""

    def tempered(self, probabilities: Probabilities, temperature: float) -> Probabilities:
        """Divide the logits behind probabilities, `(images, classes)`, by a temperature."""

    def are_answers(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Tell which rows, `(images, classes)`, can be answers of this task; gives `(images,)`."""

    def decided(self, probabilities: Probabilities) -> NDArray[np.bool_]:
        """Decide which classes each image shows, `(images, classes)`."""

    def columns(self, units: int) -> int:
        """Give the number of classes of a network with so many units in its last layer."""

    def is_finished(self, head: Head) -> bool:
        """Tell whether a head gives probabilities as an artefact does."""

    def evidence(self, activation_map: NDArray[np.float32], index: int) -> NDArray[np.float32]:
        """Give where an image speaks for a class, from 0 to 1.

        Args:
            activation_map: `(rows, columns, classes)`.
            index: of the class.
        """

    def named(self, label: str) -> set[str]:
        """Give the classes that the label of an image names."""

    def marks(self, indices: set[int]) -> tuple[int | None, tuple[int, ...] | None]:
        """Give an image's one class, or in place of it every class that it shows."""

    def written(self, label: str) -> str:
        """Give the one form of a label."""

    needs_label: ClassVar[bool]
    """Whether an image without a label says nothing, not that it shows no class."""

    def require_layout(self, path: "Path", *, folder: bool) -> None:
        """Check that DATA of this task can have a layout.

        Raises:
            DataError: they cannot.
        """

    def fault_of(self, targets: NDArray[np.float32], labels: "Sequence[str]") -> str | None:
        """Say why nothing can be learned from what the images, `(images, classes)`, show; None if it can."""

    def require_archived(self, labels: ArrayHeader, images: int, where: str) -> None:
        """Check what an archive says of its labels.

        Raises:
            DataError: they are not those of so many images.
        """

    def from_archive(self, labels: NDArray[np.generic], where: str) -> NDArray[np.int64]:
        """Check an archive's labels, and give a class an image or a column of 0 and 1 a class.

        Raises:
            DataError: a value is none that a label has.
        """

    def draw(
        self,
        patients: "list[Group]",
        targets: NDArray[np.float32],
        fraction: float,
        random: "np.random.Generator",
    ) -> Group:
        """Draw whole patients so that each class has its share; see `statistics.draws`."""
