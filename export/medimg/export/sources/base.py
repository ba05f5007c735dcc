"""What every kind of model file has in common."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from medimg.export.errors import SourceError
from medimg.export.sources.clues import Clues
from medimg.export.sources.heads import Ending
from medimg.export.sources.scaling import Scaling
from medimg.runtime.spec import ModelSpec

Architecture: TypeAlias = Literal["vgg16"]
NOT_AN_IMAGE_MODEL = "an image classifier takes (batch, rows, columns, 1 or 3)"


@dataclass(frozen=True)
class Request:
    """What a user says about a file beside its path."""

    allow_code: bool = False
    """Whether code that the file holds or names may run."""
    architecture: Architecture | None = None
    """What the weights of a weights-only file belong to."""
    classes: int | None = None
    """Width of the last layer of a weights-only file."""
    input_size: tuple[int, int] | None = None
    """Rows and columns, for a network that takes any."""
    threads: int | None = None
    float64: bool = False
    """Compute in float64 instead of float32, to tell how much float32 rounds off."""


@dataclass(frozen=True)
class TensorShape:
    """One input or output of a network."""

    name: str
    dims: tuple[int | None, ...]
    """The batch first; None for an axis of any length."""
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.name} {self.dims}"


@dataclass(frozen=True)
class Origin:
    """Where a source comes from, and what its file says about itself."""

    path: Path
    kind: str
    """`.keras`, `.h5`, `weights`, `SavedModel` or `ONNX`."""
    sha256: str
    """Of the file, or of a folder's files with their names."""
    keras_version: str | None = None
    """The Keras that wrote the file; None where the file does not say."""
    spec: ModelSpec | None = None
    """What the file says about itself; None for a foreign file."""
    warnings: tuple[str, ...] = ()
    """What was let in, or assumed."""
    clues: Clues = field(default_factory=Clues)
    """What the file tells of its training."""


class Source(Protocol):
    """A classifier in a model file, computing in float32."""

    @property
    def origin(self) -> Origin:
        """Where it comes from."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of the network's input."""

    @property
    def input_dtype(self) -> str:
        """The type of the network's own input, such as `float32` or `uint8`."""

    @property
    def units(self) -> int:
        """Width of the last layer."""

    @property
    def ending(self) -> Ending:
        """What the outputs are, as far as the graph tells."""

    @property
    def scaling(self) -> Scaling | None:
        """What the first layers make of an image's values; None if they change none."""

    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers, those of nested models included."""

    def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network in float32.

        Args:
            network_input: `(batch, rows, columns, channels)`.

        Returns:
            `(batch, units)` as the last layer gives them.
        """

    def convert(self) -> ModelProto:
        """Give the network as ONNX, from `NETWORK_INPUT`, channels last, to one output `(batch, units)`.

        Each call gives a copy of its own.
        """

    def close(self) -> None:
        """Let go of what the source holds; it gives no more answers."""


def classifier_shape(
    path: Path,
    inputs: Sequence[TensorShape],
    outputs: Sequence[TensorShape],
    input_size: tuple[int, int] | None,
) -> tuple[tuple[int, int, int], int]:
    """Check that a network is an image classifier.

    Args:
        path: for messages.
        inputs: channels last.
        outputs: of the network.
        input_size: rows and columns where the network leaves them open.

    Returns:
        Rows, columns and channels of the input; the width of the output.

    Raises:
        SourceError: it is something else, which the message names.
    """
    for what, tensors in (("takes", inputs), ("gives", outputs)):
        if len(tensors) != 1:
            named = ", ".join(map(str, tensors))
            raise SourceError(
                f"{path}: {what} {len(tensors)} tensors ({named}): a classifier has one of each"
            )
    (image,), (answer,) = inputs, outputs
    if len(image.dims) != 4 or image.dims[-1] not in (1, 3):
        first = len(image.dims) == 4 and image.dims[1] in (1, 3) and (image.dims[2] or 9) > 3
        hint = ": save it with data_format='channels_last'" if first else ""
        raise SourceError(f"{path}: takes {image}; {NOT_AN_IMAGE_MODEL}{hint}")
    if len(answer.dims) != 2 or answer.dims[1] is None:
        raise SourceError(f"{path}: gives {answer}; a classifier gives (batch, classes)")
    rows, columns = _image_size(path, image, input_size)
    return (rows, columns, int(image.dims[-1])), answer.dims[1]


def _image_size(path: Path, image: TensorShape, wanted: tuple[int, int] | None) -> tuple[int, int]:
    known = (image.dims[1], image.dims[2])
    if wanted is None:
        if known[0] is None or known[1] is None:
            raise SourceError(f"{path}: takes {image}, images of any size: fix one with --input-size 224x224")
        return known[0], known[1]
    if any(size not in (None, asked) for size, asked in zip(known, wanted, strict=True)):
        raise SourceError(
            f"{path}: takes {known[0]}x{known[1]} pixels, --input-size says {wanted[0]}x{wanted[1]}: "
            "leave it out"
        )
    return wanted
