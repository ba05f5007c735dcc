"""The lines of `tegrastats`, which Jetson Linux brings.

The words are those of "tegrastats Utility" in NVIDIA's Jetson Linux Developer Guide; they differ between
boards and releases, so each is looked for by itself and may be missing. Rails follow the chapter "Platform
Power and Performance" of the same guide.
"""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medimg.runtime.errors import MissingDependencyError, UsageError

_TOTALS = (
    ("VIN",),
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that together are the power of the board (`VIN`) or of the module: AGX Thor; Orin Nano, Orin NX,
Xavier NX and TX2; Nano; AGX Orin; Thor on a carrier without `VIN`; AGX Xavier."""

_RAIL = re.compile(r"(?<!\S)([A-Z]\w*) (-?\d+)(?:mW)?(?:/-?\d+(?:mW)?){1,2}(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)(\w+)@(-?\d+(?:\.\d+)?)C")
_RAM = re.compile(r"(?<!\S)RAM (\d+)/(\d+)MB")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\]")
_GPU = re.compile(r"(?<!\S)GR3D_FREQ (?:(\d+)%)?(?:@\[?(\d+))?")
_SENSOR_OFF_C = -256.0


@dataclass(frozen=True)
class TegraSample:
    """What one line says."""

    ram_used_mb: int
    """Of the memory that processor and GPU share."""
    ram_total_mb: int
    cpu_load: tuple[float | None, ...]
    """Of each core, 0 to 1 of its present clock; None where it is powered down."""
    gpu_load: float | None
    """0 to 1; None where the board does not say."""
    gpu_clock_mhz: int | None
    temperatures_c: dict[str, float]
    """By sensor; those that are powered down are left out."""
    rails_w: dict[str, float]
    """Power at this moment by rail; some rails are parts of others, see `power_w`."""

    @property
    def power_rails(self) -> tuple[str, ...]:
        """The rails that `power_w` adds; empty on a board whose rails are not known."""
        return next((rails for rails in _TOTALS if all(rail in self.rails_w for rail in rails)), ())

    @property
    def power_w(self) -> float | None:
        """Power of the module, or of the board where it is measured; None on a board that is not known."""
        return sum(self.rails_w[rail] for rail in self.power_rails) if self.power_rails else None


def parse_line(line: str) -> TegraSample | None:
    """Read one line.

    Returns:
        None for a line that is no sample, such as a message about rights.
    """
    ram, cpu, gpu = _RAM.search(line), _CPU.search(line), _GPU.search(line)
    if not ram:
        return None
    load, clock = gpu.groups() if gpu else (None, None)
    temperatures = {name: float(value) for name, value in _TEMPERATURE.findall(line)}
    return TegraSample(
        ram_used_mb=int(ram[1]),
        ram_total_mb=int(ram[2]),
        cpu_load=tuple(_load(core) for core in cpu[1].split(",")) if cpu else (),
        gpu_load=None if load is None else int(load) / 100,
        gpu_clock_mhz=None if clock is None else int(clock),
        temperatures_c={name: value for name, value in temperatures.items() if value > _SENSOR_OFF_C},
        rails_w={name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line)},
    )


@contextmanager
def watch(
    interval_ms: int = 100, program: str = "tegrastats"
) -> Iterator[Iterator[tuple[float, TegraSample]]]:
    """Run `tegrastats` for the length of a block.

    Args:
        interval_ms: time between samples.
        program: its name or path.

    Yields:
        An iterator of samples, each with the `time.monotonic()` in seconds at which it came. It waits for the
        next sample, and ends when the program does.

    Raises:
        MissingDependencyError: this machine has no `tegrastats`.
    """
    if interval_ms < 1:
        raise UsageError(f"an interval of {interval_ms} ms: 1 is the least")
    command = [program, "--interval", str(interval_ms)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError as error:
        raise MissingDependencyError(
            f"needs {program} ({error.strerror}): Jetson Linux has it in the package nvidia-l4t-tools"
        ) from None
    with process:
        assert process.stdout is not None, "it is a pipe"
        try:
            yield ((time.monotonic(), sample) for line in process.stdout if (sample := parse_line(line)))
        finally:
            process.terminate()


def _load(core: str) -> float | None:
    percent, sign, _ = core.partition("%")
    return int(percent) / 100 if sign and percent.strip().isdigit() else None
