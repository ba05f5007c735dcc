"""Which processors there are, and how many this process may use."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.machine.system_files import system_text

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(quota_file: Path = CGROUP_QUOTA) -> int:
    """Count the processors that affinity and the cgroup quota leave to this process, at least one."""
    affinity = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return affinity
    if quota == "max":
        return affinity
    return max(1, min(affinity, round(int(quota) / int(period))))


def cpu_name(root: Path = Path("/")) -> str:
    """Read the processor's name: x86 has it in cpuinfo, an ARM board in the device tree.

    Args:
        root: where `proc` lies.
    """
    for line in system_text(root / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return system_text(root / "proc/device-tree/model").strip("\0\n") or platform.machine()


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """List the instruction sets, as Linux calls them; none where the system does not say.

    Args:
        root: where `proc` lies.
    """
    lines = system_text(root / "proc/cpuinfo").splitlines()
    described = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(flag for flags in described for flag in flags.split())


def saturates_in_int8(root: Path = Path("/")) -> bool:
    """Tell whether this processor adds products of 8 bits in pairs that saturate: x86 without VNNI or AMX.

    Args:
        root: where `proc` lies.
    """
    flags = cpu_flags(root)
    return "avx2" in flags and not {"avx_vnni", "avx512_vnni", "amx_int8"} & flags


@dataclass(frozen=True)
class Division:
    """How many threads decode files and how many compute at the same time."""

    decoding: int
    inference: int


def divide(threads: int) -> Division:
    """Divide processors between decoding and inference: all to both, over bounded queues.

    Which of the two is the slower depends on the files, and may change within a folder. A thread that waits
    for the other side costs nothing, so the operating system divides better than a fixed rule would: the rate
    is within a few percent of the ideal whichever side is slower (`benchmarks/results/speed-files.json`).
    """
    return Division(threads, threads)
