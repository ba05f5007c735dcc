"""What a machine tells of itself: clocks, temperature, throttling, memory, energy and who else is at work.

Sources:
    Linux: Documentation/admin-guide/pm/cpufreq.rst, power/powercap/powercap.rst, filesystems/proc.rst;
    NVIDIA: NVML API reference; Jetson Linux Developer Guide, "tegrastats utility".
"""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MIB = 2**20


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
        self._stat = root / "proc/stat"
        self._own = root / "proc/self"
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
        return _mean([float(found) for found in re.findall(r"cpu MHz\s*: ([\d.]+)", _text(self._cpuinfo))])

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

    def memory_mib(self) -> float | None:
        """Resident memory of this process."""
        words = _text(self._own / "statm").split()
        return int(words[1]) * PAGE_BYTES / MIB if len(words) > 1 else None

    def energies_j(self) -> tuple[float, ...]:
        """Read the counter of each package."""
        return tuple((_number(path) or 0.0) / 1e6 for path in self._energies)

    def energy_ranges_j(self) -> tuple[float, ...]:
        """Give where each counter begins again at 0."""
        return tuple((_number(path.with_name("max_energy_range_uj")) or 0.0) / 1e6 for path in self._energies)

    def busy_s(self) -> tuple[float, float]:
        """Give the processor seconds used since the start by everybody, and by this process."""
        first = _text(self._stat).partition("\n")[0].split()
        everybody = sum(map(int, first[1:4])) + sum(map(int, first[6:8])) if len(first) > 7 else 0
        own = _text(self._own / "stat").rpartition(")")[2].split()
        mine = sum(map(int, own[11:13])) if len(own) > 12 else 0
        return everybody / TICKS_PER_S, mine / TICKS_PER_S


class NvmlGpu:
    """An NVIDIA GPU through the package `nvidia-ml-py`."""

    name = "NVML"

    def __init__(self, nvml: Any, number: int) -> None:  # noqa: ANN401  a module without types
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(number)

    def read(self) -> GpuReading:
        """Ask the driver; what a GPU does not support is None."""
        nvml = self._nvml
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        energy_mj = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        slowed = (
            nvml.nvmlClocksThrottleReasonHwSlowdown
            | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonSwPowerCap
        )
        return GpuReading(
            memory_mib=None if memory is None else memory.used / MIB,
            temperature_c=self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            clock_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            throttled=None if reasons is None else bool(reasons & slowed),
            energy_j=None if energy_mj is None else energy_mj / 1e3,
        )

    def _ask(self, function: str, *arguments: int) -> Any:  # noqa: ANN401  whatever NVML answers
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


class JetsonGpu:
    """A Jetson board through the lines of `tegrastats`, which a thread reads."""

    name = "tegrastats"

    def __init__(self, lines: Iterator[str]) -> None:
        self._last = GpuReading()
        self._thread = threading.Thread(target=self._follow, args=(lines,), daemon=True)
        self._thread.start()

    def read(self) -> GpuReading:
        """Give the last line's figures."""
        return self._last

    def _follow(self, lines: Iterator[str]) -> None:
        for line in lines:
            self._last = parse_tegrastats(line)


def parse_tegrastats(line: str) -> GpuReading:
    """Read one line; the board's whole input is one rail or the sum of several."""
    rails = {name: int(power) for name, power in re.findall(r"(\w+) (\d+)(?:mW)?/\d+(?:mW)?", line)}
    whole = next((rails[name] for name in ("VDD_IN", "POM_5V_IN") if name in rails), None)
    if whole is None and "VDD_GPU_SOC" in rails:
        whole = sum(rails.get(name, 0) for name in ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
    temperature = re.search(r"(?i)\bgpu@([\d.]+)C", line)
    clock = re.search(r"GR3D_FREQ \d+%@\[?(\d+)", line)
    memory = re.search(r"RAM (\d+)/\d+MB", line)
    return GpuReading(
        memory_mib=float(memory[1]) if memory else None,
        temperature_c=float(temperature[1]) if temperature else None,
        clock_mhz=float(clock[1]) if clock else None,
        power_w=None if whole is None else whole / 1e3,
    )


@contextmanager
def open_gpu(device: str) -> Iterator[NvmlGpu | JetsonGpu | None]:
    """Find who tells of the GPU that a benchmark runs on; on a Jetson, of the whole board.

    Args:
        device: `cpu` or `gpu:N`.
    """
    if tegrastats := shutil.which("tegrastats"):
        with subprocess.Popen(
            [tegrastats, "--interval", "500"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout, "it is a pipe"
            try:
                yield JetsonGpu(process.stdout)
            finally:
                process.terminate()
        return
    if device == "cpu":
        yield None
        return
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  a missing package or driver, which has errors of its own
        yield None
        return
    try:
        yield NvmlGpu(pynvml, int(device.partition(":")[2] or 0))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
