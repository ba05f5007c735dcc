"""NVML, the monitor that comes with NVIDIA's driver, through NVIDIA's own package for it.

Names and units: "NVML API Reference Guide". GPUs are found by their PCI bus id, because NVML and CUDA number
them in different orders. Orin boards have no NVML: `tegrastats` is their monitor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from medimg.runtime.errors import BackendError, MissingDependencyError
from medimg.runtime.optional import require

_SLOWED = 0x4 | 0x8 | 0x20
"""Clocks held down by the power limit, by the hardware, or by heat (`nvmlClocksThrottleReasons`)."""


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


class Nvml:
    """A session with NVML; use it in a `with` block.

    Raises:
        MissingDependencyError: `nvidia-ml-py` is not installed, or no NVIDIA driver.
        BackendError: the driver does not answer.
    """

    def __init__(self) -> None:
        self._nvml: Any = require("pynvml", "bench")
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError_LibraryNotFound as error:
            raise MissingDependencyError(f"needs NVIDIA's driver, which brings NVML ({error})") from None
        except self._nvml.NVMLError as error:
            raise _unanswered("Init", error) from None

    def __enter__(self) -> "Nvml":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._nvml.nvmlShutdown()

    @property
    def driver_version(self) -> str:
        """The driver's version, such as `580.65.06`."""
        return str(self._ask("SystemGetDriverVersion"))

    def gpus(self) -> tuple[Gpu, ...]:
        """List the GPUs in NVML's order."""
        count = self._ask("DeviceGetCount")
        devices = [self._ask("DeviceGetHandleByIndex", index) for index in range(count)]
        return tuple(
            Gpu(self._ask("DeviceGetName", device), self._ask("DeviceGetPciInfo", device).busId)
            for device in devices
        )

    def sampler(self, bus_id: str) -> Callable[[], GpuSample]:
        """Give a function that reads one GPU's state.

        Args:
            bus_id: its PCI bus id, as `gpus` and CUDA's `cudaDeviceGetPCIBusId` give it.
        """
        device = self._ask("DeviceGetHandleByPciBusId", bus_id.encode())
        return lambda: self._sample(device)

    def _sample(self, device: object) -> GpuSample:
        power, energy = (
            self._ask("DeviceGetPowerUsage", device),
            self._ask("DeviceGetTotalEnergyConsumption", device),
        )
        celsius = self._ask("DeviceGetTemperature", device, self._nvml.NVML_TEMPERATURE_GPU)
        load, memory = (
            self._ask("DeviceGetUtilizationRates", device),
            self._ask("DeviceGetMemoryInfo", device),
        )
        clock = self._ask("DeviceGetClockInfo", device, self._nvml.NVML_CLOCK_SM)
        reasons = self._ask("DeviceGetCurrentClocksThrottleReasons", device)
        return GpuSample(
            power_w=None if power is None else power / 1000,
            energy_j=None if energy is None else energy / 1000,
            temperature_c=None if celsius is None else float(celsius),
            gpu_load=None if load is None else load.gpu / 100,
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            clock_mhz=None if clock is None else float(clock),
            throttled=None if reasons is None else bool(reasons & _SLOWED),
        )

    def _ask(self, name: str, *arguments: object) -> Any:  # noqa: ANN401  as many types as questions
        """Call one of NVML's functions; None where the GPU does not support it."""
        try:
            return getattr(self._nvml, f"nvml{name}")(*arguments)
        except self._nvml.NVMLError_NotSupported:
            return None
        except self._nvml.NVMLError as error:
            raise _unanswered(name, error) from None


def _unanswered(name: str, error: Any) -> BackendError:  # noqa: ANN401  pynvml is optional
    return BackendError(f"NVIDIA's driver does not answer: nvml{name} failed: {error} ({error.value})")
