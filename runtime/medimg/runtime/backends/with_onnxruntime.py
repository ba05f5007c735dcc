"""ONNX Runtime on the CPU, and on NVIDIA GPUs through its CUDA provider."""

import importlib
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.backends import Availability, Tuning
from medimg.runtime.backends.cuda_form import FUSES, for_cuda
from medimg.runtime.errors import BackendError, GpuMemoryError, MedimgError, MissingDependencyError
from medimg.runtime.machine.cuda import Cuda
from medimg.runtime.model.containers import Artefact
from medimg.runtime.optional import require
from medimg.runtime.tasks import PROBABILITIES, Arrays

_FATAL = 4
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_CUDA_OPTIONS = {
    # float32 means float32.
    "use_tf32": "0",
    # The default search tries every algorithm anew for each batch size, and the last batch is often smaller.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Doubling its memory each time it grows would leave little for anything else on the GPU.
    "arena_extend_strategy": "kSameAsRequested",
}
SHAPE_OPERATORS = frozenset(
    {"Shape", "Size", "Gather", "Slice", "Concat", "Cast", "Unsqueeze", "Squeeze", "Constant", "ReduceProd"}
    | {"Add", "Sub", "Mul", "Div"}
)
"""What arithmetic on shapes consists of. All have kernels for data on the GPU; ONNX Runtime puts those of
them on the CPU that work on shapes, which are needed there."""


def availability() -> Availability:
    """Say whether ONNX Runtime is installed, and which devices its build and this machine offer."""
    try:
        onnxruntime = require("onnxruntime", "cpu")
    except MissingDependencyError as error:
        return Availability("onnxruntime", None, (), str(error))
    gpus = _cuda_devices() if _CUDA in onnxruntime.get_available_providers() else 0
    devices = (*(f"gpu:{number}" for number in range(gpus)), "cpu")
    return Availability("onnxruntime", onnxruntime.__version__, devices, None)


WITHOUT_SATURATION = {"session.x64quantprecision": "1"}
"""On processors without VNNI, ONNX Runtime's kernels for int8 add products in pairs that saturate at 16 bits,
and probabilities may be off by 0.7; with this entry it takes kernels for uint8 there. Others are the same."""


class OnnxRuntimeBackend:
    """An artefact in an ONNX Runtime session whose provider is the one asked for."""

    name = "onnxruntime"
    batch_size = 8

    def __init__(self, artefact: Artefact, device: str, threads: int, tuned_for: Tuning) -> None:
        options: dict[str, str] = {}
        # A GPU computes one batch while another is copied; calls that share a processor delay each other.
        self.parallel = 2 if tuned_for == "throughput" and device != "cpu" else 1
        if tuned_for == "throughput":
            # Waiting threads leave the processor to the decoders.
            options["session.intra_op.allow_spinning"] = "0"
        self.device = device
        self._number = int(device.partition(":")[2] or 0)
        if device == "cpu":
            self._session = _open(artefact, device, threads, {**options, **WITHOUT_SATURATION}, [_CPU])
        else:
            refuse_int8(artefact)
            form = replace(artefact, content=for_cuda(artefact.content)) if _is_fp16(artefact) else artefact
            self._session = self._open_on_gpu(form, threads, options)
        used = self._session.get_providers()[0]
        if used != (_CPU if device == "cpu" else _CUDA):
            raise BackendError(f"{artefact.path}: ONNX Runtime gave {used} for {device}")
        self.precision = _executed_precision(artefact.spec.precision, device)

    def infer(self, images: NDArray[np.generic], outputs: Sequence[str] = (PROBABILITIES,)) -> Arrays:
        """Run one batch; see `Backend.infer`."""
        session = self._session
        if session is None:
            raise BackendError("the classifier is closed")
        try:
            if self.device == "cpu":
                found = session.run(list(outputs), {"image": images})
            else:
                found = _run_bound(session, images, outputs, ("cuda", self._number))
        except _errors() as error:
            raise _failure(error, images) from None
        return {name: np.asarray(item, np.float32) for name, item in zip(outputs, found, strict=True)}

    def _open_on_gpu(self, artefact: Artefact, threads: int, options: dict[str, str]) -> Any:  # noqa: ANN401
        """Open a session all of whose nodes run on the GPU, but for arithmetic on shapes."""
        onnxruntime = require("onnxruntime", "gpu")
        if _CUDA not in onnxruntime.get_available_providers():
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} here is built without CUDA: "
                "pip uninstall onnxruntime, then pip install 'medimg[gpu]'"
            )
        if hasattr(onnxruntime, "preload_dlls"):
            # CUDA and cuDNN that pip installed lie outside the loader's path.
            onnxruntime.preload_dlls()
        # Where cuDNN has no plan of one kind another is taken, and the first is printed as an error; what
        # does fail is raised.
        onnxruntime.set_default_logger_severity(_FATAL)
        # Tensor cores take float16 with the channels last, and are a quarter faster so; float32 loses 6 %.
        layout = {"prefer_nhwc": "1" if _is_fp16(artefact) else "0"}
        provider = (_CUDA, {"device_id": str(self._number), **_CUDA_OPTIONS, **layout})
        # Without this a session asked for CUDA falls back to the CPU and says nothing.
        strict = {**options, "session.disable_cpu_ep_fallback": "1"}
        try:
            return _open(artefact, self.device, threads, strict, [provider])
        except BackendError as refused:
            recorded = {**options, "session.record_ep_graph_assignment_info": "1"}
            try:
                session = _open(artefact, self.device, threads, recorded, [provider, _CPU])
            except BackendError:
                raise refused from None
            if session.get_providers()[0] != _CUDA:
                raise refused from None
            require_shapes_alone_on_cpu(artefact, session)
            return session

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _is_fp16(artefact: Artefact) -> bool:
    return artefact.spec.precision == "fp16"


def refuse_int8(artefact: Artefact) -> None:
    """Refuse an INT8 artefact on a GPU.

    Raises:
        BackendError: it is one.
    """
    if artefact.spec.precision == "int8":
        raise BackendError(
            f"{artefact.path}: ONNX Runtime has no INT8 convolutions on the GPU, where it is slower "
            "than FP32: build a TensorRT engine (medimg-export MODEL.int8.onnx --to tensorrt), or take "
            "the fp16 file, or --device cpu"
        )


def require_shapes_alone_on_cpu(artefact: Artefact, session: Any) -> None:  # noqa: ANN401  no types
    """Read where a session's nodes run, and accept only arithmetic on shapes on the CPU.

    Args:
        artefact: names the file in messages.
        session: made with `session.record_ep_graph_assignment_info`.

    Raises:
        BackendError: other nodes run on the CPU, or this ONNX Runtime does not tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise BackendError(
            f"{artefact.path}: some of its nodes have no place on the GPU, and this ONNX Runtime does not "
            "say which: pip install --upgrade onnxruntime-gpu"
        )
    on_cpu = [
        f"{node.name} ({node.op_type})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == _CPU
        for node in part.get_nodes()
        if node.op_type not in SHAPE_OPERATORS
    ]
    if on_cpu:
        named = ", ".join(on_cpu[:5]) + (f" and {len(on_cpu) - 5} more" if len(on_cpu) > 5 else "")
        raise BackendError(f"{artefact.path}: would run on the CPU in part: {named}: choose --device cpu")


def _open(
    artefact: Artefact, device: str, threads: int, entries: dict[str, str], providers: list[Any]
) -> Any:  # noqa: ANN401  no types
    onnxruntime = require("onnxruntime", "cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # It writes to standard error, with escape sequences and names from the file; exceptions say the same.
    options.log_severity_level = 4
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    try:
        left_out = FUSES if device != "cpu" and _is_fp16(artefact) else ()
        return onnxruntime.InferenceSession(
            artefact.content, options, providers, disabled_optimizers=left_out
        )
    except _errors() as error:
        raise BackendError(f"{artefact.path}: ONNX Runtime refuses it on {device}: {error}") from None


def _run_bound(
    session: Any,  # noqa: ANN401  no types
    images: NDArray[np.generic],
    outputs: Sequence[str],
    device: tuple[str, int],
) -> list[Any]:
    """Run a batch with input and output in the device's memory, and copy what is wanted back."""
    onnxruntime = require("onnxruntime", "gpu")
    binding = session.io_binding()
    on_device = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), *device)
    binding.bind_ortvalue_input("image", on_device)
    for name in outputs:
        binding.bind_output(name, *device)
    session.run_with_iobinding(binding)
    found: list[Any] = binding.copy_outputs_to_cpu()
    return found


def _failure(error: Exception, images: NDArray[np.generic]) -> BackendError:
    message = f"ONNX Runtime failed on a batch of shape {images.shape}: {error}"
    if "failed to allocate memory" in str(error).lower() or "out of memory" in str(error).lower():
        return GpuMemoryError(f"{message}: a smaller --batch-size needs less")
    return BackendError(message)


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
    try:
        return Cuda().count()
    except MedimgError:
        return 0
