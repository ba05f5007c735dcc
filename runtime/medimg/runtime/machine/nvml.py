"""NVML, the monitor that comes with NVIDIA's driver, through ctypes.

Names and units: "NVML API Reference Guide". GPUs are found by their PCI bus id, because NVML and CUDA number
them in different orders. Orin boards have no NVML: `tegrastats` is their monitor.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from medimg.runtime.errors import BackendError, MissingDependencyError

LIBRARY = "libnvidia-ml.so.1"
_NOT_SUPPORTED = 3
_TEMPERATURE_OF_GPU = 0
_CLOCK_OF_SM = 1
_SLOWED = 0x4 | 0x8 | 0x20
"""Clocks held down by the power limit, by the hardware, or by heat (`nvmlClocksThrottleReasons`)."""
_NAME_BYTES = 96


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver knows."""

    name: str
    bus_id: str
    """PCI bus id, such as `00000000:3B:00.0`."""


@dataclass(frozen=True)
class GpuSample:
    """One GPU's state at one moment; None stands for what it does not measure."""

    power_w: float | None
    """Drawn by the whole board, memory included; averaged over up to a second by the driver."""
    energy_j: float | None
    """Drawn since the driver was loaded: two samples' difference is exact where `power_w` is not."""
    temperature_c: float | None
    gpu_load: float | None
    """Share of the last sample period in which a kernel ran, 0 to 1."""
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    clock_mhz: float | None
    """Of the multiprocessors."""
    throttled: bool | None
    """Whether its clock is held down by heat or by its power limit."""


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Utilization(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in ("gpu", "memory")]


class Nvml:
    """A session with NVML; use it in a `with` block.

    Args:
        library: the shared library's name or path.

    Raises:
        MissingDependencyError: no NVIDIA driver is installed.
        BackendError: the driver does not answer.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library: Any = ctypes.CDLL(library)
        except OSError as error:
            raise MissingDependencyError(f"needs NVIDIA's driver, which brings NVML ({error})") from None
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        self._call("nvmlInit_v2")

    def __enter__(self) -> "Nvml":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._library.nvmlShutdown()

    @property
    def driver_version(self) -> str:
        """The driver's version, such as `580.65.06`."""
        return self._text("nvmlSystemGetDriverVersion")

    def gpus(self) -> tuple[Gpu, ...]:
        """List the GPUs in NVML's order."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        found = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            self._call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(device))
            found.append(Gpu(self._text("nvmlDeviceGetName", device), self._bus_id(device)))
        return tuple(found)

    def sampler(self, bus_id: str) -> Callable[[], GpuSample]:
        """Give a function that reads one GPU's state.

        Args:
            bus_id: its PCI bus id, as `gpus` and CUDA's `cudaDeviceGetPCIBusId` give it.
        """
        device = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByPciBusId_v2", bus_id.encode(), ctypes.byref(device))
        return lambda: self._sample(device)

    def _sample(self, device: ctypes.c_void_p) -> GpuSample:
        power, energy, celsius = ctypes.c_uint(), ctypes.c_ulonglong(), ctypes.c_uint()
        load, memory, clock, reasons = _Utilization(), _Memory(), ctypes.c_uint(), ctypes.c_ulonglong()
        has_memory = self._has("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        has_power = self._has("nvmlDeviceGetPowerUsage", device, ctypes.byref(power))
        has_energy = self._has("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(energy))
        has_load = self._has("nvmlDeviceGetUtilizationRates", device, ctypes.byref(load))
        has_celsius = self._has(
            "nvmlDeviceGetTemperature", device, _TEMPERATURE_OF_GPU, ctypes.byref(celsius)
        )
        has_clock = self._has("nvmlDeviceGetClockInfo", device, _CLOCK_OF_SM, ctypes.byref(clock))
        has_reasons = self._has("nvmlDeviceGetCurrentClocksThrottleReasons", device, ctypes.byref(reasons))
        return GpuSample(
            power_w=power.value / 1000 if has_power else None,
            energy_j=energy.value / 1000 if has_energy else None,
            temperature_c=float(celsius.value) if has_celsius else None,
            gpu_load=load.gpu / 100 if has_load else None,
            memory_used_bytes=memory.used if has_memory else None,
            memory_total_bytes=memory.total if has_memory else None,
            clock_mhz=float(clock.value) if has_clock else None,
            throttled=bool(reasons.value & _SLOWED) if has_reasons else None,
        )

    def _bus_id(self, device: ctypes.c_void_p) -> str:
        # nvmlPciInfo_t: the old bus id of 16 bytes, five numbers of 4 bytes, then the bus id of 32 bytes.
        info = ctypes.create_string_buffer(68)
        self._call("nvmlDeviceGetPciInfo_v3", device, info)
        return info.raw[36:].partition(b"\0")[0].decode("ascii", "replace")

    def _text(self, name: str, *arguments: object) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self._call(name, *arguments, text, ctypes.c_uint(_NAME_BYTES))
        return text.value.decode("utf-8", "replace")

    def _has(self, name: str, *arguments: object) -> bool:
        """Call what a GPU may not support, and tell whether it does."""
        return self._call(name, *arguments, allowed=(_NOT_SUPPORTED,)) == 0

    def _call(self, name: str, *arguments: object, allowed: tuple[int, ...] = ()) -> int:
        status = int(getattr(self._library, name)(*arguments))
        if status and status not in allowed:
            reason = self._library.nvmlErrorString(status).decode("utf-8", "replace")
            raise BackendError(f"NVIDIA's driver does not answer: {name} failed: {reason} ({status})")
        return status
