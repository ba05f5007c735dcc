"""Golden inputs: images as the network takes them and Keras's answers, to verify an engine on its own GPU.

The file holds two arrays and no names or headers, since the images are patients'.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.backends import Backend, Probabilities
from medimg.runtime.errors import DataError, TrustError, UsageError
from medimg.runtime.files.plain import to_plain
from medimg.runtime.files.writing import replaced
from medimg.runtime.machine.cuda import Device
from medimg.runtime.model import trust
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics import metrics

SUFFIX = ".golden.npz"
LIMITS = {"fp32": 1e-4, "fp16": 5e-3}
"""How much further from Keras an engine may be than its ONNX file is, in one probability."""
AGREEMENT_LOSS = 0.01
"""Top-1 agreement that an INT8 engine may lose against its ONNX file, rounded up to whole images."""


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


def check(backend: Backend, spec: ModelSpec, path: Path, most: int) -> GoldenCheck:
    """Run golden inputs through an engine.

    Args:
        backend: the engine.
        spec: its spec.
        path: the golden inputs.
        most: images at once.
    """
    golden = read_golden(path, spec)
    batches = np.split(golden.images, range(most, len(golden.images), most))
    answers = np.concatenate([backend.infer(batch) for batch in batches])
    difference = float(np.abs(answers - golden.probabilities).max())
    agreement = metrics.top1_agreement(golden.probabilities, answers)
    passed, limit = _judge(spec, len(answers), difference, agreement)
    return GoldenCheck(len(answers), file_sha256(path), difference, agreement, passed, limit)


def verify_engine(model: Path, golden: Path, trusted: Sequence[str] = ()) -> GoldenCheck:
    """Run golden inputs through an engine file on this GPU, and keep the outcome.

    Args:
        model: the `.plan` file.
        golden: the golden inputs.
        trusted: SHA-256 of records (`.plan.json`) of engines that the user vouches for.

    Raises:
        UsageError: it is no engine.
        MedimgError: see `medimg.runtime.classifier.Classifier`.
    """
    from medimg.runtime.backends.with_tensorrt import TensorRtBackend
    from medimg.runtime.classifier import Classifier

    with Classifier(model, trusted=trusted) as classifier:
        backend = classifier.backend
        if not isinstance(backend, TensorRtBackend):
            raise UsageError(f"{model}: golden inputs verify TensorRT engines (.plan)")
        found = check(backend, classifier.spec, golden, backend.record.profile.most)
        note_check(backend.record.engine_sha256, backend.gpu, found)
    return found


def note_check(engine_sha256: str, gpu: Device, found: GoldenCheck) -> None:
    """Keep in this user's cache how an engine did on this GPU."""
    trust.write_note("verified", _name(engine_sha256, gpu), to_plain(found))


def was_verified(engine_sha256: str, gpu: Device) -> bool:
    """Tell whether it is known that an engine has passed its golden inputs on this very GPU."""
    try:
        note = trust.read_note("verified", _name(engine_sha256, gpu)) or {}
    except TrustError:
        return False
    return note.get("passed") is True


def _name(engine_sha256: str, gpu: Device) -> str:
    return f"{engine_sha256}-{gpu.uuid}"


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
