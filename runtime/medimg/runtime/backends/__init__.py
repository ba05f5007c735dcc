"""Back ends: each runs an artefact behind one small protocol and says what would make it available."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import BackendError
from medimg.runtime.machine.cpus import saturates_in_int8
from medimg.runtime.machine.memory import allowance, limited
from medimg.runtime.model.containers import Artefact
from medimg.runtime.model.spec import ModelSpec, Precision
from medimg.runtime.tasks import PROBABILITIES, Arrays
from medimg.runtime.tasks.probabilities import require_columns

Tuning: TypeAlias = Literal["latency", "throughput"]
"""Whether one batch is to be answered soonest, with all threads, or many at once, each with fewer threads."""


class Backend(Protocol):
    """A loaded artefact on one device."""

    name: str
    """`onnxruntime`, `openvino` or `tensorrt`."""
    device: str
    """`cpu`, or `gpu:N`."""
    precision: str
    """What the convolutions really run in: `fp32`, `bf16`, `fp16` or `int8`."""

    parallel: int
    """Calls of `infer`, each from a thread of its own, that keep the device busy."""
    batch_size: int
    """Images a call that give the highest throughput, or near it."""

    def infer(self, images: NDArray[np.generic], outputs: Sequence[str] = (PROBABILITIES,)) -> Arrays:
        """Run one batch; several threads may call it at once.

        Args:
            images: `(batch, rows, columns, 3)` uint8 RGB, or the float32 input of an artefact whose
                preprocessing is unspecified.
            outputs: names of those that are wanted.

        Returns:
            Float32 arrays by output.
        """

    def close(self) -> None:
        """Free the device's memory."""


@dataclass(frozen=True)
class Availability:
    """Whether a back end can run here."""

    name: str
    version: str | None
    devices: tuple[str, ...]
    """What it can run on: `cpu`, `gpu:0`, …; empty if it is missing."""
    remedy: str | None
    """What would make it available; None if it is."""


_MODULES = {
    "openvino": "medimg.runtime.backends.with_openvino",
    "onnxruntime": "medimg.runtime.backends.with_onnxruntime",
    "tensorrt": "medimg.runtime.backends.with_tensorrt",
}
_WRONG_FILE = {
    False: "{} runs engines: build one with medimg-export MODEL.onnx --to tensorrt",
    True: "{} cannot run a TensorRT engine: leave --backend out, or take the .onnx file",
}
NAMES = ("openvino", "onnxruntime")
"""Those that run ONNX files, in the order in which `auto` prefers them on a CPU: OpenVINO is faster. In
INT8 it is the other way round on processors where OpenVINO's sums saturate."""
ENGINE_NAMES = ("tensorrt",)
"""Those that run engines."""


def availability() -> tuple[Availability, ...]:
    """Ask every back end whether it can run here."""
    return tuple(availability_of(name) for name in _MODULES)


def availability_of(name: str) -> Availability:
    """Import one back end's library, if it is installed, and ask what it can run on."""
    found: Availability = _module(name).availability()
    return found


@dataclass(frozen=True)
class Choice:
    """The back end and the device that an artefact runs on."""

    backend: str
    device: str
    reason: str
    """Why `auto` picked them; empty where both were asked for by name."""

    def open(self, artefact: Artefact, threads: int, tuned_for: Tuning = "latency") -> Backend:
        """Load an artefact whose bytes have been checked.

        Args:
            artefact: the model.
            threads: processor threads for inference.
            tuned_for: `latency` unless many batches are sent at once.

        Raises:
            BackendError: the back end refuses it, or it does not answer as its spec says.
        """
        open_artefact = _module(self.backend).open_artefact
        on_processor = partial(open_artefact, artefact, "cpu", threads, tuned_for)
        if self.device == "cpu":
            return _opened_within_bounds(on_processor, artefact)
        if self.backend in NAMES:
            # A GPU's driver reserves more memory than any bound allows: the graph is tried without it first.
            _opened_within_bounds(on_processor, artefact).close()
        opened: Backend = open_artefact(artefact, self.device, threads, tuned_for)
        return opened


def _opened_within_bounds(open_artefact: Callable[[], Backend], artefact: Artefact) -> Backend:
    """Load an artefact and have it answer one image, in memory that is bounded by its size."""
    spec, path = artefact.spec, artefact.path
    most = allowance(len(artefact.content), spec.image.rows * spec.image.columns)
    try:
        with limited(most):
            opened = open_artefact()
            try:
                answers = opened.infer(_blank_image(spec))[PROBABILITIES]
                require_columns(answers, spec, str(path))
                if len(answers) != 1:
                    raise BackendError(f"{path}: answers one image with {len(answers)} rows: export it again")
            except BaseException:
                opened.close()
                raise
    except (MemoryError, BackendError) as error:
        if isinstance(error, BackendError) and "alloc" not in str(error):
            raise
        raise BackendError(
            f"{path}: refused: one image takes more than {most / 1e9:.1f} GB of memory"
        ) from None
    return opened


def _blank_image(spec: ModelSpec) -> NDArray[np.generic]:
    """Return a black image, `(1, rows, columns, channels)`, as the artefact takes it."""
    if spec.intensity.rule == "unspecified":
        return np.zeros((1, spec.image.rows, spec.image.columns, spec.intensity.channels), np.float32)
    return np.zeros((1, spec.image.rows, spec.image.columns, 3), np.uint8)


def choose_backend(
    precision: Precision, backend: str = "auto", device: str = "auto", *, engine: bool = False
) -> Choice:
    """Pick where an artefact runs.

    Args:
        precision: the artefact's.
        backend: the name of one, or `auto`.
        device: `auto`, `cpu`, `gpu` or `gpu:N`. A device that is asked for is had or is an error;
            `auto` takes the first GPU that a back end can use, else the CPU.
        engine: whether the artefact is a TensorRT engine.

    Raises:
        BackendError: the back end or the device cannot be had; the message says what would help.
    """
    if backend != "auto" and backend not in _MODULES:
        raise BackendError(f"no back end {backend!r}: choose from auto, {', '.join(_MODULES)}")
    exact_first = precision == "int8" and saturates_in_int8()
    names = ENGINE_NAMES if engine else NAMES[::-1] if exact_first else NAMES
    if backend not in ("auto", *names):
        raise BackendError(_WRONG_FILE[engine].format(backend))
    candidates = [availability_of(name) for name in (names if backend == "auto" else (backend,))]
    for wanted in _engine_devices(device) if engine else _devices(device, precision):
        able = [candidate.name for candidate in candidates if wanted in candidate.devices]
        if able:
            reasons = [_why_device(wanted, precision, backend)] if device == "auto" and not engine else []
            if engine:
                reasons += ["engines run in TensorRT"] if backend == "auto" else []
            elif backend == "auto":
                reasons.append(_why_backend(able, wanted, exact_first=exact_first))
            return Choice(able[0], wanted, ", ".join(reasons))
    remedies = "; ".join(c.remedy or f"{c.name} offers {', '.join(c.devices)}" for c in candidates)
    raise BackendError(f"device {device!r} cannot be had: {remedies}")


def _why_device(device: str, precision: Precision, backend: str) -> str:
    if device != "cpu":
        return "the first GPU"
    if precision == "int8":
        return "int8 is for processors"
    return "no back end has a GPU here" if backend == "auto" else f"{backend} has no GPU here"


def _why_backend(able: list[str], device: str, *, exact_first: bool) -> str:
    if len(able) == 1:
        return f"only {able[0]} has {device} here"
    return "openvino's int8 saturates on this processor" if exact_first else f"{able[0]} is faster"


def _devices(device: str, precision: Precision) -> tuple[str, ...]:
    if device == "auto":
        # ONNX Runtime's CUDA provider has no INT8 convolutions: there the CPU is the better choice.
        return ("cpu",) if precision == "int8" else ("gpu:0", "cpu")
    if device == "gpu":
        return ("gpu:0",)
    kind, _, number = device.partition(":")
    if device != "cpu" and not (kind == "gpu" and number.isdigit()):
        raise BackendError(f"no device {device!r}: choose from auto, cpu, gpu, gpu:N")
    return (device,)


def _engine_devices(device: str) -> tuple[str, ...]:
    if device == "cpu":
        raise BackendError("an engine runs on the GPU: leave --device cpu out, or take the .onnx file")
    return _devices("gpu" if device == "auto" else device, "fp32")


def _module(name: str) -> ModuleType:
    return importlib.import_module(_MODULES[name])
