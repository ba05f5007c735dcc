"""What a machine tells of itself: clocks, temperature, throttling, memory, energy and who else is at work.

Sources:
    Linux: Documentation/admin-guide/pm/cpufreq.rst, power/powercap/powercap.rst.
"""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.errors import BackendError, MissingDependencyError
from medimg.runtime.machine import tegrastats
from medimg.runtime.machine.cuda import Cuda
from medimg.runtime.machine.nvml import GpuSample, Nvml
from medimg.runtime.machine.system_files import system_text
from medimg.runtime.machine.tegrastats import TegraSample
from medimg.runtime.optional import require

MIB = 2**20
TEGRASTATS_EVERY_MS = 500


@dataclass(frozen=True)
class GpuReading:
    """A GPU's state at one moment; None stands for what it does not tell."""

    memory_mib: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttled: bool | None = None
    """Whether its clock is held down by heat or by its power limit."""
    energy_j: float | None = None
    """A counter: two readings' difference is what was drawn between them."""
    power_w: float | None = None


class Processor:
    """The processor's sensors, as the kernel shows them.

    Args:
        root: where `proc` and `sys` lie.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        cpus = root / "sys/devices/system/cpu"
        self._cpuinfo = root / "proc/cpuinfo"
        self._psutil = require("psutil", "bench")
        self._clocks = sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._throttles = sorted(cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
        self._temperatures = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
        # Packages are numbered `intel-rapl:N`; what lies inside them, `intel-rapl:N:M`, is part of them.
        self._energies = [
            path
            for path in sorted((root / "sys/class/powercap").glob("intel-rapl:*/energy_uj"))
            if path.parent.name.count(":") == 1 and _number(path) is not None
        ]

    @property
    def has_energy(self) -> bool:
        """Whether there is a counter that this user may read."""
        return bool(self._energies)

    def clock_mhz(self) -> float | None:
        """Mean of all cores."""
        if self._clocks:
            return _mean([number / 1e3 for path in self._clocks if (number := _number(path)) is not None])
        described = system_text(self._cpuinfo)
        return _mean([float(found) for found in re.findall(r"cpu MHz\s*: ([\d.]+)", described)])

    def temperature_c(self) -> float | None:
        """Of the hottest zone."""
        return max(
            (number / 1e3 for path in self._temperatures if (number := _number(path)) is not None),
            default=None,
        )

    def throttle_count(self) -> int | None:
        """Times that heat has held a core or a package down since the machine was started."""
        counts = [int(number) for path in self._throttles if (number := _number(path)) is not None]
        return sum(counts) if counts else None

    def memory_mib(self) -> float:
        """Resident memory of this process."""
        return float(self._psutil.Process().memory_info().rss / MIB)

    def energies_j(self) -> tuple[float, ...]:
        """Read the counter of each package."""
        return tuple((_number(path) or 0.0) / 1e6 for path in self._energies)

    def energy_ranges_j(self) -> tuple[float, ...]:
        """Give where each counter begins again at 0."""
        return tuple((_number(path.with_name("max_energy_range_uj")) or 0.0) / 1e6 for path in self._energies)

    def busy_s(self) -> tuple[float, float]:
        """Give the processor seconds used since the start by everybody, and by this process."""
        all_, own = self._psutil.cpu_times(), self._psutil.Process().cpu_times()
        return all_.user + all_.nice + all_.system + all_.irq + all_.softirq, own.user + own.system


class NvmlGpu:
    """An NVIDIA GPU as its driver tells of it.

    Args:
        sample: what `Nvml.sampler` gave.
    """

    name = "NVML"

    def __init__(self, sample: Callable[[], GpuSample]) -> None:
        self._sample = sample

    def read(self) -> GpuReading:
        """Ask the driver; what a GPU does not support is None."""
        found = self._sample()
        return GpuReading(
            memory_mib=None if found.memory_used_bytes is None else found.memory_used_bytes / MIB,
            temperature_c=found.temperature_c,
            clock_mhz=found.clock_mhz,
            throttled=found.throttled,
            energy_j=found.energy_j,
            power_w=found.power_w if found.energy_j is None else None,
        )


class JetsonGpu:
    """A Jetson board through the samples of `tegrastats`, which a thread reads."""

    name = "tegrastats"

    def __init__(self, samples: Iterator[tuple[float, TegraSample]]) -> None:
        self._last = GpuReading()
        self._thread = threading.Thread(target=self._follow, args=(samples,), daemon=True)
        self._thread.start()

    def read(self) -> GpuReading:
        """Give the last sample."""
        return self._last

    def _follow(self, samples: Iterator[tuple[float, TegraSample]]) -> None:
        for _, sample in samples:
            warmth = {name.lower(): value for name, value in sample.temperatures_c.items()}
            self._last = GpuReading(
                memory_mib=float(sample.ram_used_mb),
                temperature_c=warmth.get("gpu"),
                clock_mhz=None if sample.gpu_clock_mhz is None else float(sample.gpu_clock_mhz),
                power_w=sample.power_w,
            )


@contextmanager
def open_gpu(device: str) -> Iterator[NvmlGpu | JetsonGpu | None]:
    """Find who tells of the GPU that a benchmark runs on; on a Jetson, of the whole board.

    Args:
        device: `cpu` or `gpu:N`.
    """
    with ExitStack() as opened:
        yield _open_gpu(device, opened)


def _open_gpu(device: str, opened: ExitStack) -> NvmlGpu | JetsonGpu | None:
    if shutil.which("tegrastats"):
        return JetsonGpu(opened.enter_context(tegrastats.watch(TEGRASTATS_EVERY_MS)))
    if device == "cpu":
        return None
    try:
        bus_id = Cuda().device(int(device.partition(":")[2] or 0)).bus_id
        return NvmlGpu(opened.enter_context(Nvml()).sampler(bus_id))
    except (MissingDependencyError, BackendError):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(system_text(path))
    except ValueError:
        return None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
