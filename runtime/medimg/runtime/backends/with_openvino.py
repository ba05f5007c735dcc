"""OpenVINO on the CPU."""

import os
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.backends import Availability, Tuning
from medimg.runtime.errors import BackendError, MissingDependencyError
from medimg.runtime.machine.cpus import saturates_in_int8
from medimg.runtime.model.containers import Artefact
from medimg.runtime.optional import require
from medimg.runtime.tasks import PROBABILITIES, Arrays

_MATRIX_LAYERS = ("Convolution", "FullyConnected", "MatMul")
_FIRST_USE = threading.Lock()
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


def availability() -> Availability:
    """Say whether OpenVINO is installed; only its CPU device is used."""
    try:
        openvino = import_openvino()
    except MissingDependencyError as error:
        return Availability("openvino", None, (), str(error))
    return Availability("openvino", openvino.__version__.split("-")[0], ("cpu",), None)


SATURATES = (
    "this processor has no VNNI, and OpenVINO's int8 sums saturate there: answers may differ from those that "
    "were proven; --backend onnxruntime gives them"
)


class OpenVinoBackend:
    """An artefact compiled by OpenVINO for the CPU, in float32 or its own INT8, never lower."""

    name = "openvino"
    device = "cpu"
    batch_size = 1
    """Convolutions of one image fill a core; a larger batch only leaves its caches."""

    def __init__(self, artefact: Artefact, threads: int, tuned_for: Tuning) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        try:
            model = core.read_model(artefact.content)
            # Without the hint OpenVINO may lower an fp32 file to bf16 by itself.
            options = {
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": tuned_for.upper(),
                "INFERENCE_NUM_THREADS": threads,
                # Each process would pin its threads to the first processors, and two share one between them.
                "ENABLE_CPU_PINNING": threads >= (os.cpu_count() or 1),
            }
            self._compiled: Any = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise BackendError(f"{artefact.path}: OpenVINO refuses it: {error}") from None
        streams = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        # Twice as many requests as streams: the next one waits where the last one ends.
        self.parallel = 1 if tuned_for == "latency" else 2 * int(streams)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.parallel):
            self._requests.put(self._compiled.create_infer_request())
        self.precision = _matrix_precision(self._compiled)
        self.notes = (SATURATES,) if self.precision == "int8" and saturates_in_int8() else ()

    def infer(self, images: NDArray[np.generic], outputs: Sequence[str] = (PROBABILITIES,)) -> Arrays:
        """Run one batch; see `Backend.infer`."""
        request = self._requests.get()
        try:
            if request is None:
                raise BackendError("the classifier is closed")
            # With one thread OpenVINO 2026.4 loses errors (no memory), and its last answer would stay.
            for name in outputs:
                _forget(request.get_tensor(name).data)
            request.infer({"image": images}, share_inputs=True)
            return {name: _answer(request.get_tensor(name).data, images) for name in outputs}
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed on a batch of shape {images.shape}: {error}") from None
        finally:
            self._requests.put(request)

    def close(self) -> None:
        """Free the compiled model, once calls under way have ended: OpenVINO would leave them hanging."""
        for _ in range(self.parallel):
            self._requests.get()
        self._compiled = None
        for _ in range(self.parallel):
            self._requests.put(None)


def _answer(output: NDArray[Any], images: NDArray[np.generic]) -> NDArray[np.float32]:
    if output.shape[:1] != images.shape[:1]:
        found = f"with an array of shape {output.shape}"
        raise BackendError(f"OpenVINO answered a batch of shape {images.shape} {found}")
    return np.array(output, np.float32)


def _forget(answer: NDArray[Any]) -> None:
    """Put what is no number in place of an earlier answer."""
    answer.fill(np.nan if answer.dtype.kind == "f" else 0)


def open_artefact(artefact: Artefact, _device: str, threads: int, tuned_for: Tuning) -> OpenVinoBackend:
    """Compile an artefact for the CPU."""
    return OpenVinoBackend(artefact, threads, tuned_for)


def import_openvino() -> ModuleType:
    """Import OpenVINO without its usage reports, which go to a third party as soon as it is imported.

    OpenVINO has a stub for the case that its reporting package is not installed; None in `sys.modules` is
    that case.

    Raises:
        MissingDependencyError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None forbids the import
    openvino = require("openvino", "cpu")
    with _FIRST_USE:
        # Its table of types is made at the first use, and two threads that come first together wait for each
        # other for ever: the one has the table's lock and wants the interpreter's, the other the reverse.
        openvino.Type.u8.to_dtype()
    return openvino


def _matrix_precision(compiled: Any) -> str:  # noqa: ANN401  openvino has no types
    """Read from the compiled graph in what most convolutions and matrix products run."""
    kinds: list[str] = []
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in _MATRIX_LAYERS:
            kind = info["runtimePrecision"].astype(str)
            kinds.append(_PRECISIONS.get(kind, kind))
    return max(set(kinds), key=kinds.count) if kinds else "fp32"
