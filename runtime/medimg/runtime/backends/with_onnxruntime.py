"""ONNX Runtime on the CPU, and on NVIDIA GPUs through its CUDA provider."""

import importlib
import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.backends import Availability, Probabilities, Tuning
from medimg.runtime.containers import Artefact
from medimg.runtime.errors import BackendError, MissingDependencyError
from medimg.runtime.optional import require

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def availability() -> Availability:
    """Say whether ONNX Runtime is installed, and which devices its build and this machine offer."""
    try:
        onnxruntime = require("onnxruntime", "cpu")
    except MissingDependencyError as error:
        return Availability("onnxruntime", None, (), str(error))
    gpus = _cuda_devices() if _CUDA in onnxruntime.get_available_providers() else 0
    devices = (*(f"gpu:{number}" for number in range(gpus)), "cpu")
    return Availability("onnxruntime", onnxruntime.__version__, devices, None)


class OnnxRuntimeBackend:
    """An artefact in an ONNX Runtime session whose provider is the one asked for."""

    name = "onnxruntime"
    batch_size = 8

    def __init__(self, artefact: Artefact, device: str, threads: int, tuned_for: Tuning) -> None:
        onnxruntime = require("onnxruntime", "cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.parallel = 1
        if tuned_for == "throughput":
            # Two calls keep the processor busy between batches; waiting threads leave it to the decoders.
            self.parallel = 2
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider: str | tuple[str, dict[str, str]] = _CPU
        if device != "cpu":
            # Without this a session asked for CUDA falls back to the CPU and says nothing.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            provider = (_CUDA, {"device_id": device.partition(":")[2], "use_tf32": "0"})
        try:
            self._session: Any = onnxruntime.InferenceSession(artefact.content, options, [provider])
        except _errors() as error:
            raise BackendError(f"{artefact.path}: ONNX Runtime refuses it on {device}: {error}") from None
        if self._session.get_providers()[0] != (_CPU if device == "cpu" else _CUDA):
            raise BackendError(
                f"{artefact.path}: ONNX Runtime gave {self._session.get_providers()[0]} for {device}"
            )
        self.device = device
        self.precision = _executed_precision(artefact.spec.precision, device)

    def infer(self, images: NDArray[np.generic]) -> Probabilities:
        """Run one batch; see `Backend.infer`."""
        session = self._session
        if session is None:
            raise BackendError("the classifier is closed")
        try:
            (probabilities,) = session.run(["probabilities"], {"image": images})
        except _errors() as error:
            raise BackendError(f"ONNX Runtime failed on a batch of shape {images.shape}: {error}") from None
        return np.asarray(probabilities, np.float32)

    def close(self) -> None:
        """Free the session."""
        self._session = None


def open_artefact(artefact: Artefact, device: str, threads: int, tuned_for: Tuning) -> OnnxRuntimeBackend:
    """Make a session for an artefact."""
    return OnnxRuntimeBackend(artefact, device, threads, tuned_for)


def _errors() -> tuple[type[Exception], ...]:
    """Collect ONNX Runtime's exceptions, which share no base class of their own."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    found = (item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))
    return (*found, RuntimeError, ValueError)


def _executed_precision(precision: str, device: str) -> str:
    """Its CPU kernels for x86 have no fp16 convolution: the session casts to fp32 around them."""
    if precision == "fp16" and device == "cpu" and platform.machine() == "x86_64":
        return "fp32"
    return precision


def _cuda_devices() -> int:
    """Count GPUs through the CUDA runtime; the provider's presence in the build proves none."""
    import ctypes

    for library in ("libcudart.so.13", "libcudart.so.12", "libcudart.so"):
        try:
            runtime = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int(0)
        return count.value if runtime.cudaGetDeviceCount(ctypes.byref(count)) == 0 else 0
    return 0
