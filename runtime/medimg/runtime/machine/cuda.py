"""The CUDA runtime through ctypes: what running an engine needs, with every return code checked.

`libcudart` is there wherever TensorRT is, on JetPack 6 and 7 too, so nothing has to be installed for it.
Names and codes: "CUDA Runtime API", NVIDIA.
"""

import ctypes
import logging
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medimg.runtime.errors import BackendError, GpuMemoryError, MissingDependencyError

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_OUT_OF_MEMORY, _DRIVER_TOO_OLD, _NO_DEVICE, _BAD_DEVICE = 2, 35, 100, 101
_LOST = frozenset({46, 214, 219, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 720, 999})
"""Errors after which nothing works any more in this process: the device is gone, or its context is."""
_TO_DEVICE, _TO_HOST = 1, 2
_NON_BLOCKING = 1
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
_PROPERTIES_BYTES = 1 << 14
"""More than `cudaDeviceProp` has in any version; its first fields, name and UUID, have kept their places."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """A GPU as CUDA sees it."""

    number: int
    name: str
    uuid: str
    """32 hexadecimal digits, the same for as long as the GPU exists."""
    bus_id: str
    """PCI bus id, by which NVML knows it."""
    compute_capability: str
    """`8.7` for Orin."""
    integrated: bool
    """Whether it shares its memory with the processor, as on Jetson."""

    @property
    def sm(self) -> str:
        """The compute capability as file names have it: `sm87`."""
        return f"sm{self.compute_capability.replace('.', '')}"


class Cuda:
    """The CUDA runtime library.

    Args:
        library: its name or path; looked for among the system's and those that pip installed unless given.

    Raises:
        MissingDependencyError: there is none.
    """

    def __init__(self, library: str | None = None) -> None:
        self._library: Any = _load((library,) if library else (*NAMES, *_installed_by_pip()))
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            getattr(self._library, name).restype = ctypes.c_char_p

    def count(self) -> int:
        """Count the GPUs.

        Raises:
            BackendError: there is no driver, or it is older than this library needs.
        """
        found = ctypes.c_int()
        status = self._library.cudaGetDeviceCount(ctypes.byref(found))
        if status == _NO_DEVICE:
            return 0
        if status == _DRIVER_TOO_OLD:
            raise BackendError(self._about_the_driver())
        self._check("cudaGetDeviceCount", status)
        return found.value

    def device(self, number: int) -> Device:
        """Describe one GPU."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self.call("cudaGetDeviceProperties", properties, number)
        bus_id = ctypes.create_string_buffer(32)
        self.call("cudaDeviceGetPCIBusId", bus_id, ctypes.c_int(len(bus_id)), number)
        major, minor = self._attribute(_MAJOR, number), self._attribute(_MINOR, number)
        return Device(
            number=number,
            name=properties.raw[:256].partition(b"\0")[0].decode("utf-8", "replace"),
            uuid=properties.raw[256:272].hex(),
            bus_id=bus_id.value.decode("ascii", "replace"),
            compute_capability=f"{major}.{minor}",
            integrated=bool(self._attribute(_INTEGRATED, number)),
        )

    def select(self, number: int) -> None:
        """Make a GPU the calling thread's own; each thread starts with the first."""
        self.call("cudaSetDevice", number)

    def free_bytes(self) -> tuple[int, int]:
        """Give the free and the total memory of the thread's GPU."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy; `source` must be pinned and stay as it is until the stream has been waited for."""
        self._copy(target, source, size, _TO_DEVICE, stream)

    def copy_to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy; `target` must be pinned."""
        self._copy(target, source, size, _TO_HOST, stream)

    def wait(self, stream: int) -> None:
        """Wait for all that is queued; what failed meanwhile is raised here."""
        self.call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the library by name.

        Raises:
            GpuMemoryError: memory ran out.
            BackendError: any other failure.
        """
        self._check(name, getattr(self._library, name)(*arguments))

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        pointers = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self.call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), kind, ctypes.c_void_p(stream))

    def _attribute(self, attribute: int, number: int) -> int:
        value = ctypes.c_int()
        self.call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, number)
        return value.value

    def _check(self, name: str, status: int) -> None:
        if status == 0:
            return
        reason = (
            f"{name}: {self._text('cudaGetErrorString', status)} ({self._text('cudaGetErrorName', status)})"
        )
        if status == _OUT_OF_MEMORY:
            raise GpuMemoryError(f"the GPU is out of memory ({reason})")
        if status in _LOST:
            raise BackendError(
                f"the GPU is lost to this process ({reason}): start it again; see dmesg for Xid"
            )
        if status == _BAD_DEVICE:
            raise BackendError(f"there is no such GPU ({reason}): medimg-run doctor lists them")
        if status == _DRIVER_TOO_OLD:
            raise BackendError(self._about_the_driver())
        raise BackendError(f"the GPU failed ({reason})")

    def _text(self, name: str, status: int) -> str:
        text: bytes = getattr(self._library, name)(status)
        return text.decode("utf-8", "replace")

    def _about_the_driver(self) -> str:
        """Tell a missing driver from an old one: CUDA has one code for both."""
        driver, runtime = ctypes.c_int(), ctypes.c_int()
        self._library.cudaDriverGetVersion(ctypes.byref(driver))
        self._library.cudaRuntimeGetVersion(ctypes.byref(runtime))
        if not driver.value:
            return "no NVIDIA driver is loaded: install it, for example with sudo ubuntu-drivers install"
        return (
            f"NVIDIA's driver is too old: it supports CUDA {_version(driver.value)}, the installed libraries "
            f"need {_version(runtime.value)}: update the driver"
        )


class Resources:
    """Memory and streams of one GPU, freed together, last one first.

    Args:
        cuda: the library.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._held: list[tuple[str, int]] = []

    def device_memory(self, size: int) -> int:
        """Allocate bytes on the GPU; give their address there."""
        pointer = ctypes.c_void_p()
        self._cuda.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        return self._hold("cudaFree", pointer)

    def pinned_memory(self, size: int) -> int:
        """Allocate bytes of the host that the GPU copies from and to by itself; give their address."""
        pointer = ctypes.c_void_p()
        self._cuda.call("cudaMallocHost", ctypes.byref(pointer), ctypes.c_size_t(size))
        return self._hold("cudaFreeHost", pointer)

    def stream(self) -> int:
        """Make a stream that does not wait for others; give its handle."""
        handle = ctypes.c_void_p()
        self._cuda.call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
        return self._hold("cudaStreamDestroy", handle)

    def free(self) -> None:
        """Free everything that is held, also where some of it cannot be freed; a second call does nothing.

        Raises:
            BackendError: the first failure, when the rest has been freed.
        """
        failure: BackendError | None = None
        while self._held:
            name, address = self._held.pop()
            try:
                self._cuda.call(name, ctypes.c_void_p(address))
            except BackendError as error:
                failure = failure or error
                _logger.warning("%s", error)
        if failure:
            raise failure

    def _hold(self, free: str, pointer: ctypes.c_void_p) -> int:
        address = pointer.value or 0
        self._held.append((free, address))
        return address


def _load(names: tuple[str, ...]) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise MissingDependencyError(
        "needs the CUDA runtime (libcudart): medimg[gpu] and medimg[tensorrt] bring it, on Jetson it is in "
        "the package cuda-cudart"
    )


def _installed_by_pip() -> Iterator[str]:
    """Find the libraries of NVIDIA's wheels, newest first; they lie outside the loader's path."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    yield from map(
        str, sorted(packages.glob("*/lib/libcudart.so.*"), key=lambda path: path.name, reverse=True)
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
