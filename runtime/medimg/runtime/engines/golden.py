"""Golden inputs: images as the network takes them and Keras's answers, to verify an engine on its own GPU.

The file holds two arrays and no names or headers, since the images are patients'.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import DataError
from medimg.runtime.files.writing import replaced
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics import metrics
from medimg.runtime.tasks import PROBABILITIES, Arrays, Probabilities

SUFFIX = ".golden.npz"
LIMITS = {"fp32": 1e-4, "fp16": 5e-3}
"""How much further from Keras an engine may be than its ONNX file is, in one probability."""
AGREEMENT_LOSS = 0.01
"""Top-1 agreement that an INT8 engine may lose against its ONNX file, rounded up to whole images."""


Infer: TypeAlias = Callable[[NDArray[np.uint8]], Arrays]


@dataclass(frozen=True)
class Golden:
    """Inputs and the answers that Keras gives."""

    images: NDArray[np.uint8]
    """`(images, rows, columns, 3)` uint8 RGB, after the resize."""
    probabilities: Probabilities
    """`(images, classes)` float32."""


@dataclass(frozen=True)
class GoldenCheck:
    """How an engine's answers to golden inputs compare with Keras's."""

    images: int
    golden_sha256: str
    """Of the file with the inputs."""
    max_abs_diff: float
    top1_agreement: float
    passed: bool
    limit: str
    """What was asked of it, in words."""


def write_golden(path: Path, golden: Golden) -> None:
    """Write golden inputs, readable by this user alone."""
    with replaced(path, private=True) as temporary, temporary.open("wb") as file:
        np.savez(file, images=golden.images, probabilities=golden.probabilities)


def read_golden(path: Path, spec: ModelSpec) -> Golden:
    """Read golden inputs.

    Args:
        path: the file.
        spec: of the model that they are to fit.

    Raises:
        DataError: it is unreadable, or belongs to another model.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            golden = Golden(arrays["images"], arrays["probabilities"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a file of golden inputs, or a damaged one ({error})") from None
    shape, answers = (spec.image.rows, spec.image.columns, 3), (len(golden.images), spec.classes)
    if golden.images.shape[1:] != shape or golden.probabilities.shape != answers or not answers[0]:
        raise DataError(
            f"{path}: holds images of shape {golden.images.shape} and answers of shape "
            f"{golden.probabilities.shape}; the model takes {shape} and has {spec.classes} classes"
        )
    if golden.images.dtype != np.uint8 or golden.probabilities.dtype != np.float32:
        raise DataError(f"{path}: holds other types than uint8 images and float32 answers")
    return golden


def check(infer: Infer, spec: ModelSpec, path: Path, most: int) -> GoldenCheck:
    """Run golden inputs through an engine.

    Args:
        infer: answers a batch on the engine.
        spec: its spec.
        path: the golden inputs.
        most: images at once.
    """
    golden = read_golden(path, spec)
    batches = np.split(golden.images, range(most, len(golden.images), most))
    answers = np.concatenate([infer(batch)[PROBABILITIES] for batch in batches])
    difference = float(np.abs(answers - golden.probabilities).max())
    agreement = metrics.top1_agreement(golden.probabilities, answers)
    passed, limit = _judge(spec, len(answers), difference, agreement)
    return GoldenCheck(len(answers), file_sha256(path), difference, agreement, passed, limit)


def _judge(spec: ModelSpec, images: int, difference: float, agreement: float) -> tuple[bool, str]:
    """Ask of an engine what its ONNX file gave, and a little room for another order of summation."""
    known = spec.verification
    if spec.precision == "int8":
        least = (known.top1_agreement if known else 1.0) - AGREEMENT_LOSS
        allowed = int(np.ceil(images * (1 - least)))
        wrong = round(images * (1 - agreement))
        return wrong <= allowed, f"at most {allowed} of {images} first classes other than Keras's"
    limit = (known.max_abs_diff if known else 0.0) + LIMITS[spec.precision]
    # A NaN is within no limit.
    return bool(difference <= limit), f"at most {limit:.1e} from Keras"
