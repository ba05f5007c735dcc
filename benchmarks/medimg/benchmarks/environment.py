"""The machine and the software that a figure belongs to; nothing that names a host, a user or a folder."""

import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

from medimg.runtime.doctor import examine
from medimg.runtime.machine.cpus import cpu_name
from medimg.runtime.machine.system_files import system_text

LoadAverage: TypeAlias = tuple[float, float, float]
"""Over 1, 5 and 15 minutes."""


@dataclass(frozen=True)
class Environment:
    """Where and when the measurement was made."""

    started: str
    """UTC, ISO 8601."""
    cpu: str
    """The processor's model name."""
    cpu_features: tuple[str, ...]
    """Instruction sets that matter for inference."""
    cores: int
    """Logical processors of the machine."""
    affinity: tuple[int, ...]
    """Numbers of the processors that this process may run on."""
    governor: str | None
    """Frequency governor; None where the kernel shows none, as in most virtual machines."""
    load_average: LoadAverage
    """Before the first run."""
    kernel: str
    machine: str
    """Architecture."""
    python: str
    medimg: str
    packages: dict[str, str]
    """Versions of the installed packages that take part."""


def now() -> str:
    """Give the time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_environment(started: str, load_average: LoadAverage, root: Path = Path("/")) -> Environment:
    """Look at this machine, which imports every back end: call it when nothing is left to measure.

    Args:
        started: when the measurement began, and
        load_average: how busy the machine was then.
        root: where `proc` and `sys` lie.
    """
    findings = examine(threads=1)
    versions = {**findings.packages, **{backend.name: backend.version for backend in findings.backends}}
    return Environment(
        started=started,
        cpu=cpu_name(root),
        cpu_features=findings.cpu_features,
        cores=os.cpu_count() or 1,
        affinity=tuple(sorted(os.sched_getaffinity(0))),
        governor=_governor(root),
        load_average=load_average,
        kernel=platform.release(),
        machine=findings.machine,
        python=findings.python,
        medimg=findings.medimg,
        packages={name: found for name, found in versions.items() if found},
    )


def _governor(root: Path) -> str | None:
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    return ", ".join(sorted({system_text(file).strip() for file in files})) or None
