"""TensorRT on an NVIDIA GPU: one engine, one context, one stream."""

import ctypes
import math
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.backends import Availability, Tuning
from medimg.runtime.engines.layers import inspect_engine
from medimg.runtime.engines.library import Messages, TensorRt, is_out_of_memory, load_tensorrt, messages
from medimg.runtime.engines.verified import was_verified
from medimg.runtime.errors import BackendError, GpuMemoryError, MedimgError, ModelError, UsageError
from medimg.runtime.machine.cuda import Cuda, Device, Resources
from medimg.runtime.model.containers import Artefact
from medimg.runtime.model.plan import REBUILD, EngineRecord
from medimg.runtime.tasks import Arrays

if TYPE_CHECKING:
    import tensorrt as trt

INPUT, OUTPUT = "image", "probabilities"


def availability() -> Availability:
    """Say whether TensorRT can run here: driver, GPU and library are tried in this order."""
    version = None
    try:
        cuda = Cuda()
        devices = tuple(f"gpu:{number}" for number in range(cuda.count()))
        version = load_tensorrt().__version__
    except MedimgError as error:
        return Availability("tensorrt", version, (), str(error))
    return Availability("tensorrt", version, devices, None if devices else "no NVIDIA GPU is there")


def open_artefact(artefact: Artefact, device: str, _threads: int, _tuned_for: Tuning) -> "TensorRtBackend":
    """Load an engine onto a GPU."""
    return TensorRtBackend(artefact, load_tensorrt(), Cuda(), int(device.partition(":")[2]))


class TensorRtBackend:
    """An engine on one GPU; calls from several threads take turns.

    Args:
        artefact: an engine that may run, with its record.
        api: TensorRT.
        cuda: the CUDA runtime.
        number: which GPU.

    Raises:
        ModelError: the engine is for another GPU or another TensorRT; it is not deserialised then.
        BackendError: the GPU or TensorRT fails.
    """

    name = "tensorrt"
    parallel = 1

    def __init__(self, artefact: Artefact, api: TensorRt, cuda: Cuda, number: int) -> None:
        assert artefact.engine is not None, "choose_backend gives engines alone to TensorRT"
        self.record = artefact.engine
        self._cuda, self._number, self._lock = cuda, number, threading.Lock()
        cuda.select(number)
        self.gpu = cuda.device(number)
        check_fits(artefact, self.gpu, api.__version__)
        self.device, self.batch_size = f"gpu:{number}", self.record.profile.best
        self.precision = self.record.executed_precision
        self.notes = tuple(_notes(self.record, self.gpu))
        self._said: Messages = messages(api)
        self._resources = Resources(cuda)
        try:
            self._load(artefact, api)
            self._allocate(artefact, api)
        except GpuMemoryError as error:
            self._release()
            raise GpuMemoryError(f"{artefact.path}: {error}: {self._smaller()}") from None
        except BackendError as error:
            self._release()
            raise BackendError(f"{artefact.path}: {error}") from None
        except BaseException:
            self._release()
            raise

    def infer(self, images: NDArray[np.generic], outputs: Sequence[str] = (OUTPUT,)) -> Arrays:
        """Run one batch; see `Backend.infer`.

        Raises:
            UsageError: more images than the engine takes.
        """
        filled, most = len(images), self.record.profile.most
        if filled > most:
            raise UsageError(
                f"a batch of {filled} images: the engine takes {most} at most: "
                f"choose --batch-size {most}, or build it with --batch-size 1,{most},{filled}"
            )
        if images.shape[1:] != self._input.shape[1:] or images.dtype != self._input.dtype:
            raise BackendError(
                f"images of shape {images.shape[1:]} and type {images.dtype}: the engine takes "
                f"{self._input.shape[1:]} and {self._input.dtype}"
            )
        with self._lock:
            if self._context is None:
                raise BackendError("the classifier is closed")
            # Threads start on the first GPU, whichever the engine is on.
            self._cuda.select(self._number)
            try:
                return self._run(images, filled, outputs)
            except GpuMemoryError as error:
                raise GpuMemoryError(f"a batch of {filled} images: {error}: {self._smaller()}") from None

    def close(self) -> None:
        """Free the engine and its memory, once the call under way has ended."""
        with self._lock:
            try:
                self._cuda.select(self._number)
            finally:
                self._release(check=True)

    def layers(self, api: TensorRt) -> list[dict[str, Any]]:
        """List what the engine runs, as its inspector tells it for the batch that it is tuned for."""
        with self._lock:
            self._set_batch(self.record.profile.best)
            return inspect_engine(api, self._engine, self._context)

    def _load(self, artefact: Artefact, api: TensorRt) -> None:
        self._runtime: trt.Runtime = api.Runtime(self._said.logger)
        # Version-compatible engines carry their own runtime: native code, which has been vouched for.
        self._runtime.engine_host_code_allowed = self.record.version_compatible
        self._engine: trt.ICudaEngine = self._runtime.deserialize_cuda_engine(artefact.content)
        if self._engine is None:
            raise _failure("TensorRT cannot load the engine", self._said.explain())
        self._context: trt.IExecutionContext = self._engine.create_execution_context()
        if self._context is None:
            raise GpuMemoryError(f"the engine does not fit on the GPU ({self._said.explain()})")

    def _allocate(self, artefact: Artefact, api: TensorRt) -> None:
        """Make a stream, and room for the largest batch of every tensor."""
        tensors, most = self._tensors(api), self.record.profile.most
        if tensors.get(OUTPUT) != ((artefact.spec.classes,), np.float32) or INPUT not in tensors:
            found = ", ".join(f"{name} {shape}" for name, (shape, _) in tensors.items())
            raise ModelError(
                f"{artefact.path}: its tensors ({found}) are not those of its record with "
                f"{artefact.spec.classes} classes: {REBUILD}"
            )
        self._stream = self._resources.stream()
        self._input = self._pinned(most, *tensors[INPUT])
        self._outputs = {name: self._pinned(most, *tensors[name]) for name in tensors if name != INPUT}
        self._on_device = {
            name: self._resources.device_memory(most * math.prod(shape) * np.dtype(kind).itemsize)
            for name, (shape, kind) in tensors.items()
        }
        for name, address in self._on_device.items():
            self._do(self._context.set_tensor_address(name, address), f"refuses memory for {name}")
        self._set_batch(self.record.profile.best)

    def _tensors(self, api: TensorRt) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """Name the engine's inputs and outputs: their shapes without the batch, and their types."""
        kinds: dict[object, type[np.generic]] = {
            api.DataType.UINT8: np.uint8,
            api.DataType.FLOAT: np.float32,
        }
        found = {}
        for place in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(place)
            shape, kind = tuple(self._engine.get_tensor_shape(name))[1:], self._engine.get_tensor_dtype(name)
            if kind not in kinds or min(shape, default=1) < 1:
                raise BackendError(
                    f"the engine's tensor {name} of shape {shape} and type {kind} is not medimg's"
                )
            found[name] = (shape, kinds[kind])
        return found

    def _run(self, images: NDArray[np.generic], filled: int, outputs: Sequence[str]) -> Arrays:
        cuda, stream = self._cuda, self._stream
        # A batch below the profile's least is run at the least; what is beyond the images is not looked at.
        self._set_batch(max(filled, self.record.profile.least))
        self._input[:filled] = images
        cuda.copy_to_device(
            self._on_device[INPUT], self._input.ctypes.data, self._input[:filled].nbytes, stream
        )
        self._do(self._context.execute_async_v3(stream), f"failed on a batch of shape {images.shape}")
        found = {name: self._outputs[name][:filled] for name in outputs}
        for name, values in found.items():
            cuda.copy_to_host(values.ctypes.data, self._on_device[name], values.nbytes, stream)
        cuda.wait(stream)
        return {name: values.copy() for name, values in found.items()}

    def _set_batch(self, size: int) -> None:
        shape = (size, *self._input.shape[1:])
        self._do(self._context.set_input_shape(INPUT, shape), f"refuses the shape {shape}")

    def _pinned(self, most: int, shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
        size = most * math.prod(shape) * np.dtype(kind).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self._resources.pinned_memory(size))
        return np.ctypeslib.as_array(memory).view(kind).reshape(most, *shape)

    def _do(self, done: bool, otherwise: str) -> None:
        if not done:
            raise _failure(f"the engine {otherwise}", self._said.explain())

    def _smaller(self) -> str:
        half = max(1, self.record.profile.most // 2)
        return f"a smaller batch needs less: build it with --batch-size 1,{half},{half}, or free GPU memory"

    def _release(self, *, check: bool = False) -> None:
        """Free everything; what fails on the way is logged, and raised if asked for."""
        self._context = self._engine = self._runtime = None
        try:
            self._resources.free()
        except BackendError:
            if check:
                raise


def _failure(what: str, reason: str) -> BackendError:
    kind = GpuMemoryError if is_out_of_memory(reason) else BackendError
    return kind(f"{what}: {reason}")


def _notes(record: EngineRecord, gpu: Device) -> Iterator[str]:
    if not was_verified(record.engine_sha256, gpu):
        yield (
            f"nothing has verified this engine on this GPU ({gpu.name}): export with --golden N, "
            "and medimg-run inspect MODEL.plan --golden FILE verifies it"
        )
    if record.gpu != gpu.name:
        yield f"the engine was built on {record.gpu}: one built on this {gpu.name} may be faster"
    if record.other_precision:
        yield f"not in the precision asked for: {', '.join(record.other_precision)}"


def check_fits(artefact: Artefact, gpu: Device, version: str) -> None:
    """Check that an engine is for this GPU and this TensorRT, before it is deserialised.

    Raises:
        ModelError: it is not.
    """
    record = artefact.engine
    assert record is not None, "only engines are checked"
    if record.compute_capability != gpu.compute_capability:
        raise ModelError(
            f"{artefact.path}: was built for compute capability {record.compute_capability} ({record.gpu}); "
            f"this GPU, {gpu.name}, has {gpu.compute_capability}: {REBUILD}"
        )
    if record.tensorrt == version or (record.version_compatible and _is_later(version, record.tensorrt)):
        return
    raise ModelError(
        f"{artefact.path}: was built by TensorRT {record.tensorrt}, here is {version}: {REBUILD}; engines "
        "built with --version-compatible run in later versions of the same major one"
    )


def _is_later(version: str, built: str) -> bool:
    """Tell whether a version follows another within the same major version."""
    ours, theirs = (tuple(map(int, re.findall(r"\d+", text))) for text in (version, built))
    return ours[:1] == theirs[:1] and ours >= theirs
