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
from medimg.runtime.model.spec import ModelSpec

Architecture: TypeAlias = Literal["vgg16"]
_LEAST_SIDE = 8
"""Rows and columns of the smallest image; fewer are a sequence of values."""
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
    output_name: str | None = None
    """Which output is meant, of a network that has several."""
    architecture_file: Path | None = None
    """The `model.json` or `.yaml` that a weights-only file belongs to."""
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

    def stop(self) -> None:
        """Let go of what computes, which takes the most memory; `convert` still works."""

    def close(self) -> None:
        """Let go of all that the source holds."""


def classifier_shape(
    path: Path, inputs: Sequence[TensorShape], outputs: Sequence[TensorShape], request: Request
) -> tuple[tuple[int, int, int], int]:
    """Check that a network is an image classifier.

    Args:
        path: for messages.
        inputs: channels last.
        outputs: of the network.
        request: rows and columns where the network leaves them open, and which of several outputs is meant.

    Returns:
        Rows, columns and channels of the input; the width of the output.

    Raises:
        SourceError: it is something else, which the message names.
    """
    image = check_image(path, inputs)
    check_one(path, outputs, request.output_name)
    answer = next(item for item in outputs if request.output_name in (None, item.name))
    if len(answer.dims) == 4:
        raise not_per_image(path, answer)
    if len(answer.dims) != 2 or answer.dims[1] is None:
        raise SourceError(f"{path}: gives {answer}; a classifier gives (batch, classes)")
    rows, columns = _image_size(path, image, request.input_size)
    return (rows, columns, 1 if is_flat(image.dims) else int(image.dims[3] or 0)), answer.dims[1]


def check_image(path: Path, inputs: Sequence[TensorShape]) -> TensorShape:
    """Check that a network takes images and nothing else.

    Raises:
        SourceError: it does not.
    """
    if len(inputs) != 1:
        named = ", ".join(map(str, inputs))
        raise SourceError(f"{path}: takes {len(inputs)} tensors ({named}): a classifier takes one")
    (image,) = inputs
    dims = image.dims
    if is_flat(dims) or (len(dims) == 4 and dims[3] in (1, 3)):
        return image
    if len(dims) == 2:
        raise SourceError(
            f"{path}: takes {image}, each image as one row of numbers, whose rows, columns and channels it "
            "does not say: put the shape in front and save it again, as "
            "keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), model]) or "
            "torch.nn.Sequential(torch.nn.Flatten(), model)"
        )
    first = len(dims) == 4 and dims[1] in (1, 3) and (dims[2] or 9) > 3
    hint = ": save it with data_format='channels_last'" if first else ""
    raise SourceError(f"{path}: takes {image}; {NOT_AN_IMAGE_MODEL}{hint}")


def is_flat(dims: Sequence[int | None]) -> bool:
    """Whether a network takes grey images without an axis for the channel, as of MNIST: (batch, 28, 28)."""
    return len(dims) == 3 and all(size is not None and size >= _LEAST_SIDE for size in dims[1:])


def check_one(path: Path, outputs: Sequence[TensorShape | str], wanted: str | None) -> None:
    """Check that a network has one output, or that one of several was chosen.

    Raises:
        SourceError: neither.
    """
    names = [item if isinstance(item, str) else item.name for item in outputs]
    if wanted is not None and wanted not in names:
        raise SourceError(f"{path}: has no output {wanted!r}: it has {', '.join(names)}")
    if wanted is None and len(outputs) != 1:
        named = ", ".join(map(str, outputs)) or "none"
        raise SourceError(
            f"{path}: gives {len(outputs)} tensors ({named}): a classifier gives one; choose it with "
            f"--output-name {'|'.join(names) or 'NAME'}"
        )


def not_per_image(path: Path, answer: TensorShape | str) -> SourceError:
    """Make the error for networks whose answer is an image."""
    return SourceError(
        f"{path}: its output {answer} is an image, with an answer for each pixel, as a U-Net gives "
        "(segmentation); a classifier gives (batch, classes)"
    )


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
